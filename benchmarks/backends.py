"""Milliseconds a photo on PyTorch, ONNX Runtime and OpenVINO, from pixels to text, in turns.

    gru-captioner export --output runs/graphs
    python benchmarks/backends.py runs/graphs [--threads 1]

The runs of the backends alternate; the figure is the median, the ratio is to generate() of transformers on PyTorch,
what everybody has. Photos are the examples of the demo, as the encoder takes them, so that their decoding costs little.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image

from hf_gru_captioner import Captioner
from hf_gru_captioner.hub import EXAMPLES


class Generating(Captioner):
    """Captions by generate(), whatever our own search knows."""

    def _search_settings(self, generation, num_captions):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    photos = [Image.open(path).convert("RGB").resize((224, 224)) for path in sorted(EXAMPLES.glob("*.jpg"))]
    captioners = {"generate()": Generating.from_pretrained(), "torch": Captioner.from_pretrained()}
    for backend in ("onnxruntime", "openvino"):
        captioners[backend] = Captioner.from_pretrained(backend=backend, graphs=arguments.graphs)
    print(f"| photos at once | beams | {' | '.join(captioners)} |")
    print("|---" * (2 + len(captioners)) + "|")
    for batch_size in (1, len(photos)):
        for num_beams in (1, 3, 5):
            times: dict[str, list[float]] = {name: [] for name in captioners}
            for repeat in range(-1, arguments.repeats):  # the first warms up
                for name, captioner in captioners.items():
                    batch = photos if batch_size > 1 else [photos[repeat % len(photos)]]
                    start = time.perf_counter()
                    captioner(batch, num_beams=num_beams, batch_size=batch_size)
                    if repeat >= 0:
                        times[name].append(1000 * (time.perf_counter() - start) / len(batch))
            medians = {name: statistics.median(each) for name, each in times.items()}
            cells = [f"{each:.1f} ({medians['generate()'] / each:.1f} x)" for each in medians.values()]
            print(f"| {batch_size} | {num_beams} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
