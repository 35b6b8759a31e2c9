"""Counts the captions that depend on how the model is run: backend, threads, batch size, CPU instructions.

    python benchmarks/same_captions.py ../shared/flickr8k [--count 1000] [--checkpoint FOLDER]

Every run is a separate process; the first, PyTorch with one thread and a batch size of 1, is the baseline. Prints a
table, and the captions that differ.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = {  # name -> backend, threads, batch size, environment
    "torch": ("torch", 1, 1, {}),
    "torch, 2 threads": ("torch", 2, 1, {}),
    "torch, 16 photos at once": ("torch", 1, 16, {}),
    "torch, ATEN_CPU_CAPABILITY=default": ("torch", 1, 1, {"ATEN_CPU_CAPABILITY": "default"}),
    "torch, ONEDNN_MAX_CPU_ISA=SSE41": ("torch", 1, 1, {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "onnxruntime": ("onnxruntime", 1, 1, {}),
    "onnxruntime, 2 threads": ("onnxruntime", 2, 1, {}),
    "onnxruntime, 16 photos at once": ("onnxruntime", 1, 16, {}),
}


def photos(source: Path, count: int) -> list[bytes]:
    """Encoded images of the first photos in the validation split."""
    import pyarrow.parquet

    files: list[bytes] = []
    for path in sorted((source / "data").glob("validation*.parquet")):
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(64, columns=["image"]):
            files += [row["image"]["bytes"] for row in batch.to_pylist()]
            if len(files) >= count:
                return files[:count]
    return files


def caption_all(source: Path, count: int, checkpoint: str | None, backend: str, threads: int, batch_size: int) -> None:
    from hf_gru_captioner import Captioner

    captioner = Captioner.from_pretrained(checkpoint, backend=backend, num_threads=threads)
    captions = captioner(photos(source, count), batch_size=batch_size)
    json.dump([(each.text, each.score) for each in captions], sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder with data/validation*.parquet")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--checkpoint", help="folder (the package's checkpoint)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        backend, threads, batch_size, _ = RUNS[arguments.run]
        caption_all(arguments.source, arguments.count, arguments.checkpoint, backend, threads, batch_size)
        return
    written: dict[str, list] = {}
    for name in dict.fromkeys([next(iter(RUNS)), *arguments.runs]):
        _, threads, _, settings = RUNS[name]
        environment = {**os.environ, **settings, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        written[name] = json.loads(output)
        print(f"captioned by {name}", file=sys.stderr, flush=True)
    first, expected = next(iter(written.items()))
    print(f"| of {len(expected)} captions, not those of {first} | |\n|---|---|")
    for name, captions in written.items():
        differing = sum(one[0] != other[0] for one, other in zip(captions, expected, strict=True))
        print(f"| {name} | {differing} |")
    for name, captions in written.items():
        for number, ((text, score), (other, other_score)) in enumerate(zip(captions, expected, strict=True)):
            if text != other:
                print(f"\nphoto {number}, {name}: {text} ({score:.6f})\n    {first}: {other} ({other_score:.6f})")


if __name__ == "__main__":
    main()
