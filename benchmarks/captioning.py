"""Milliseconds a photo on one core: encoder, decoder and the rest, with beams and greedy.

    python benchmarks/captioning.py [CHECKPOINT] [--photos 64]

Times are of this machine; the ratios, against the encoder alone in the same run (what any captioner on this encoder
must pay), carry over. Photos are noise: the time does not depend on what a photo shows, but for the caption's length.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image

from hf_gru_captioner import Captioner


def milliseconds(function, photos: int, repeats: int = 3) -> float:
    """Best of several runs, a photo."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times) / photos * 1000


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    model, processor = captioner.model, captioner.processor
    random = np.random.default_rng(0)
    photos = [Image.fromarray(random.integers(0, 256, (375, 500, 3), dtype=np.uint8)) for _ in range(arguments.photos)]

    for batch_size in (1, arguments.batch_size):
        batch = photos[:batch_size]
        pixel_values = processor(images=batch)["pixel_values"]
        encoder = milliseconds(lambda p=pixel_values: model.encoder.vision(p), batch_size)
        preparation = milliseconds(lambda b=batch: processor(images=b), batch_size)
        regions = model.encoder.vision(pixel_values)
        print(f"batch of {batch_size}: preparation {preparation:.1f} ms, encoder {encoder:.1f} ms a photo")
        for num_beams in (1, 3, 5):
            decoder = milliseconds(
                lambda r=regions, n=num_beams: model.generate(
                    encoder_outputs=model.get_encoder()(regions=r), num_beams=n, min_new_tokens=11, max_new_tokens=11
                ),
                batch_size,
            )
            total = milliseconds(lambda b=batch, n=num_beams: captioner(b, num_beams=n), batch_size)
            print(
                f"  {num_beams} beams: decoder {decoder:.1f} ms for 11 words, Captioner {total:.1f} ms a photo, "
                f"{total / encoder:.2f} x the encoder alone"
            )


if __name__ == "__main__":
    main()
