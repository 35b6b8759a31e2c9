"""Measures the cost of an installation: megabytes to download and on disk, and seconds.

    python benchmarks/installation.py

Runs the Makefile's own targets, each in a temporary virtual environment, with an empty pip cache; `TORCH_INDEX` works
as for make. Needs the network and, with CUDA, 12 GB of disk.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETS = {"to caption: make caption": ".installed", "everything: make test": ".installed-dev"}
_LOCAL = re.compile(r"Processing (/\S+\.whl)")  # a package that the machine's own index holds
_DOWNLOADED = re.compile(r"Downloading \S+ \(([\d.]+) ([kMG]?)B\)")
_MEGABYTES = {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}


def measure(target: str) -> dict[str, float]:
    """Installs what a target of the Makefile installs, from nothing.

    Raises:
        subprocess.CalledProcessError: It could not be installed; pip's own words are printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        venv = Path(scratch) / "venv"
        environment = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PIP_PROGRESS_BAR": "off"}
        start = time.perf_counter()
        process = subprocess.run(
            ["make", f"VENV={venv}", f"{venv}/{target}"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if process.returncode:
            print(process.stdout, process.stderr, sep="\n")
            process.check_returncode()
        told = process.stdout + process.stderr
        downloaded = sum(float(number) * _MEGABYTES[unit] for number, unit in _DOWNLOADED.findall(told))
        local = sum(Path(file).stat().st_size for file in set(_LOCAL.findall(told))) / 1e6
        on_disk = subprocess.run(["du", "-sk", venv], check=True, capture_output=True, text=True).stdout
        return {
            "seconds": seconds,
            "megabytes of packages": downloaded + local,
            "megabytes on disk": int(on_disk.split()[0]) / 1024,
        }


def main() -> None:
    print(json.dumps({name: measure(target) for name, target in SETS.items()}, indent=1))


if __name__ == "__main__":
    main()
