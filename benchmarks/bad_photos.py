"""Peak memory of captioning a folder of worst-case files, compared with ordinary photos.

    python benchmarks/bad_photos.py [--graphs GRAPHS]

The corpus of tests/support/bad_images.py, and pictures just below the pixel limit, are captioned with PyTorch or ONNX
Runtime; so are the images in demo/examples, as the baseline. Bad files may add at most 1 GiB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 1 << 30  # bytes

# A separate process, since getrusage may report its parent's peak.
CAPTION = """
import json, sys, time
from hf_gru_captioner.cli import main
start = time.monotonic()
code = main(sys.argv[1:])
with open("/proc/self/status") as file:
    most = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
print(json.dumps([code, most * 1024, time.monotonic() - start]))
"""


def caption(folder: Path, output: Path, options: list[str]) -> tuple[int, int, float]:
    """Exit code, peak memory in bytes, seconds."""
    command = [sys.executable, "-c", CAPTION, "caption", str(folder), "--output", str(output), *options]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    code, most, seconds = json.loads(process.stdout.splitlines()[-1])
    return code, most, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", help="ONNX graphs of gru-captioner export")
    arguments = parser.parse_args()
    options = ["--backend", "onnxruntime", "--graphs", arguments.graphs] if arguments.graphs else []
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import bad_images

    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        bad_images.make_corpus(corpus)
        for name, content, _ in bad_images.just_right():
            (corpus / name).write_bytes(content)
        figures = {
            name: caption(folder, Path(scratch) / f"{name}.jsonl", options)
            for name, folder in (("ordinary", ROOT / "demo" / "examples"), ("bad", corpus))
        }
    for name, (code, most, seconds) in figures.items():
        print(f"{name} photos: {most / 2**20:.0f} MiB, {seconds:.0f} s, exit code {code}")
    added = figures["bad"][1] - figures["ordinary"][1]
    print(f"bad files add {added / 2**20:.0f} MiB: {added / LIMIT:.2f} of the limit")


if __name__ == "__main__":
    main()
