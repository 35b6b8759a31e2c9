"""The commands that make would run, from `make --dry-run`: nothing is installed."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
INDEX = "https://download.pytorch.org/whl/cpu"


def would_run(tmp_path, target, *variables):
    command = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}", *variables]
    environment = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True).stdout


def installs(printed):
    """Options and requirements of each `pip install` of this package."""
    return re.findall(r"bin/pip install --disable-pip-version-check +(.*?) >&2", printed)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("caption", ["."]), ("demo", ['".[demo]"']), ("train-flickr8k", ['".[train]"']), ("test", ['".[dev]"'])],
)
def test_a_target_installs_what_it_takes_and_only_from_the_usual_index(tmp_path, target, wanted):
    assert installs(would_run(tmp_path, target)) == [f"--editable {each}" for each in wanted]


def test_pytorch_is_taken_from_another_index_where_one_is_named(tmp_path):
    (options,) = installs(would_run(tmp_path, "test", f"TORCH_INDEX={INDEX}"))
    assert options == f'--extra-index-url {INDEX} --editable ".[dev]"'


@pytest.mark.parametrize(("variables", "threads"), [([], os.cpu_count()), (["OMP_NUM_THREADS=1"], 1)])
def test_training_takes_a_gpu_where_there_is_one_and_all_cores(tmp_path, variables, threads):
    launches = re.findall(r"bin/accelerate launch (.*?) --config", would_run(tmp_path, "train-flickr8k", *variables))
    assert (
        launches == [f"--num_cpu_threads_per_process {threads} scripts/train.py"] * 3
    )  # Accelerate chooses the device


def test_captions_alone_go_to_the_standard_output_of_make_caption():
    rule = MAKEFILE.partition("$(VENV)/.installed: ")[2].partition("\n\n")[0]
    lines = [line for line in rule.splitlines()[1:] if "touch" not in line]
    assert len(lines) == 2
    assert all(line.startswith("\t@") and line.endswith(">&2") for line in lines)
    assert "--quiet" not in rule  # its progress is seen


def test_every_extra_that_a_target_installs_exists():
    named = set(re.findall(r"^[a-z0-9-]+:.*?\$\(VENV\)/\.installed-(\w+)", MAKEFILE, re.MULTILINE))
    assert {"demo", "dev", "train"} <= named <= EXTRAS.keys()
