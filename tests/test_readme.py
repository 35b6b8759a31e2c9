"""What README promises is run: its Python, and the commands it names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_python_to_run():
    assert len(PYTHON_BLOCKS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("block", range(2))
def test_the_python_of_readme_runs_as_it_stands(block):
    process = subprocess.run(
        [sys.executable, "-c", PYTHON_BLOCKS[block]], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert "dog" in process.stdout


def test_every_make_target_that_readme_names_exists():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) <= targets


def test_every_file_that_readme_names_exists():
    named = re.findall(r"(?:scripts|configs|demo|docs|benchmarks|hf_gru_captioner)/[\w/]+\.\w+", README)
    assert {"scripts/train.py", "configs/flickr8k.yaml", "docs/attention.jpg"} <= set(named)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_scores_of_readme_are_those_of_the_model_card():
    rows = re.findall(r"^\| (?:CIDEr|METEOR|BLEU-\d|ROUGE-L) \|.*$", README, re.MULTILINE)
    assert len(rows) == 7
    assert set(rows) <= set((ROOT / "model_card.md").read_text().splitlines())


def test_every_example_photo_has_its_licence():
    licences = (ROOT / "demo" / "examples" / "LICENSES.md").read_text()
    photos = [path.name for path in (ROOT / "demo" / "examples").glob("*.jpg")]
    assert len(photos) >= 6
    assert not [name for name in photos if f"| {name} |" not in licences]


@pytest.mark.parametrize(("page", "printed"), [("scoring", "cider_signature"), ("sharing", "['a small")])
def test_the_python_of_a_page_runs_as_it_stands(page, printed):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    output = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert printed in output


def test_nothing_that_ships_is_left_to_be_filled_in():
    shipped = [ROOT / "README.md", ROOT / "model_card.md", *ROOT.glob("configs/*"), *ROOT.glob("docs/*.md")]
    shipped += list(ROOT.glob("hf_gru_captioner/**/*.py"))
    assert not [path for path in shipped if re.search(r"PLACEHOLDER|\bTODO\b|\bXX\b", path.read_text())]
