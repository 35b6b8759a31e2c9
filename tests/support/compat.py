"""Runs the tests of what touches transformers against several of its releases and prints a table: `make compat`.

    python tests/support/compat.py 5.0.0 5.10 newest

Each release goes into a directory of its own under `.compat/`, with the tokenizers, huggingface_hub and safetensors
that it asks for where the installed ones don't fit, and comes first on the path of the tests. Nothing installed is
changed.
Writes what failed to the standard output and exits with 1 where something did.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
RELEASES = ["5.0.0", "5.10", "5.15", "5.20", "5.23", "newest"]
FOLLOWED = {"huggingface-hub", "safetensors", "tokenizers"}  # other requirements of transformers have no upper bound
TESTS = [
    "tests/model",
    "tests/test_captioner.py",
    "tests/test_remote_code.py",
    "tests/inference/test_beam_search.py",
    "tests/training/test_scst.py",
    "tests/training/test_seq2seq_trainer.py",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", default=RELEASES, help="of transformers; 5.10 is the last of 5.10.x")
    arguments = parser.parse_args()
    rows = []
    for release in arguments.releases:
        folder = install(release)
        found = {each.name.lower().replace("_", "-"): each.version for each in distributions(path=[str(folder)])}
        libraries = {name: found.get(name) or version(name) for name in ("transformers", *sorted(FOLLOWED))}
        print(f"transformers {libraries['transformers']} ...", flush=True)
        started = time.monotonic()
        passed, failed, report = test(folder)
        rows.append([*libraries.values(), passed, failed, f"{time.monotonic() - started:.0f} s"])
        if failed:
            print(report)
    print("\n| " + " | ".join(["transformers", *sorted(FOLLOWED), "passed", "failed", "time"]) + " |")
    print("|" + "---|" * 7)
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    return 1 if any(row[-2] for row in rows) else 0


def install(release: str) -> Path:
    """A directory with that release of transformers, and dependencies whose installed versions don't fit."""
    # tests that run code in a bare process take over the directories of this name
    folder = ROOT / ".compat" / release / "site-packages"
    if not folder.is_dir() or release == "newest":
        minor = f"~={release}.0" if release.count(".") == 1 else f"=={release}"
        pip(folder, "transformers" + ("" if release == "newest" else minor))
    transformers = next(iter(distributions(path=[str(folder)], name="transformers")))
    missing = [str(each) for each in requirements(transformers) if not is_met(each, folder)]
    if missing:
        pip(folder, *missing)
    return folder


def requirements(distribution: Distribution) -> list[Requirement]:
    every = (Requirement(text) for text in distribution.requires or ())
    return [Requirement(f"{each.name}{each.specifier}") for each in every if each.name in FOLLOWED and not each.marker]


def is_met(requirement: Requirement, folder: Path) -> bool:
    own = next(iter(distributions(path=[str(folder)], name=requirement.name)), None)
    return requirement.specifier.contains(own.version if own else version(requirement.name))


def pip(folder: Path, *requirements: str) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, *requirements]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def test(folder: Path) -> tuple[int, int, str]:
    """Number of tests passed and failed (at least 1 if pytest itself failed), and pytest's output."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "HF_MODULES_CACHE": str(folder.parent / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *TESTS]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    report = process.stdout + process.stderr
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|errors?)\b", report)}
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    return counts.get("passed", 0), max(failed, process.returncode != 0), report


if __name__ == "__main__":
    sys.exit(main())
