"""Runs the README's Python code and commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gru_captioner import load_captions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_python_to_run():
    assert len(PYTHON_BLOCKS) == 3
    assert "train(" in PYTHON_BLOCKS[2]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(2))
def test_the_python_of_readme_runs_as_it_stands(block):
    process = subprocess.run(
        [sys.executable, "-c", PYTHON_BLOCKS[block]], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert "dog" in process.stdout


@pytest.fixture
def drawn_folder(tmp_path, make_photo):
    """A folder of tiny images with captions, for the README's training."""
    folder = tmp_path / "my" / "images"
    folder.mkdir(parents=True)
    lines = ["file_name,caption"]
    for seed in range(12):
        name = "beach.jpg" if seed == 0 else f"{seed}.jpg"
        make_photo(seed).save(folder / name)
        lines += [f"{name},a brown dog runs on the grass", f"{name},two children play"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.slow
def test_the_training_of_readme_runs_on_drawn_images(drawn_folder):
    block = PYTHON_BLOCKS[2]
    assert len(block.splitlines()) == 12
    assert "TrainingConfig.recommended(options)" in block  # as `gru-captioner train SOURCE` does
    epochs = '"optimization.epochs": 12'
    tiny = {"data.cache_folder": "cache", "optimization.mixed_precision": "no", "optimization.images_per_step": 4}
    assert epochs in block
    block = block.replace(epochs, f'"optimization.epochs": 1, **{tiny}')
    few_steps = "from hf_gru_captioner.training import recipe\nrecipe.STEPS, recipe.PASSES = 8, 2\n"
    process = subprocess.run(
        [sys.executable, "-c", few_steps + block],
        capture_output=True,
        text=True,
        cwd=drawn_folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = process.stdout.splitlines()
    assert any(line.endswith(" runs/mine/checkpoint") for line in lines)
    assert any(line.startswith("CIDEr") for line in lines)
    assert lines[-1]


def test_every_make_target_that_readme_names_exists():
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, re.MULTILINE)) <= targets


def test_every_file_that_readme_names_exists():
    of_ours = re.sub(r"https?://\S+", "", README)
    named = re.findall(r"(?:scripts|configs|demo|docs|benchmarks|hf_gru_captioner)/[\w/]+\.\w+", of_ours)
    assert {"scripts/train.py", "configs/flickr8k.yaml", "docs/attention.jpg"} <= set(named)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_scores_of_readme_are_those_of_the_model_card():
    rows = re.findall(r"^\| (?:CIDEr|METEOR|BLEU-\d|ROUGE-L) \|.*$", README, re.MULTILINE)
    assert len(rows) == 7
    card = (ROOT / "model_card.md").read_text().splitlines()
    for row in rows:
        title, coco, human_of_coco, flickr8k, human_of_flickr8k = (cell.strip() for cell in row.strip("|").split("|"))
        for score, human in ((coco, human_of_coco), (flickr8k, human_of_flickr8k)):
            value, _, interval = score.rstrip(")").partition(" (")
            assert f"| {title} | {value} | {interval} | {human} |" in card


def test_every_example_photo_has_its_license():
    licenses = (ROOT / "demo" / "examples" / "LICENSES.md").read_text()
    photos = [path.name for path in (ROOT / "demo" / "examples").glob("*.jpg")]
    assert len(photos) >= 6
    assert not [name for name in photos if f"| {name} |" not in licenses]


def python_of(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(("page", "printed"), [("scoring", "cider_signature"), ("sharing", "['a small")])
def test_the_first_python_of_a_page_runs_as_it_stands(page, printed):
    command = [sys.executable, "-c", python_of(page)[0]]
    assert printed in subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.slow
def test_the_scoring_run_of_its_page_runs_on_prepared_files(tmp_path):
    images = sorted((ROOT / "demo" / "examples").glob("*.jpg"))[:3]
    (tmp_path / "my").mkdir()
    lines = [f"{image},a photo of {image.stem.replace('_', ' ')}" for image in images]
    (tmp_path / "my" / "captions.csv").write_text("\n".join(["file_name,caption", *lines, *lines]) + "\n")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "checkpoint").symlink_to(ROOT / "hf_gru_captioner" / "pretrained")
    ids = load_captions(tmp_path / "my" / "captions.csv", "validation")["image_id"]
    theirs = [{"image_id": image_id, "caption": "a dog"} for image_id in ids]
    (tmp_path / "theirs.json").write_text(json.dumps(theirs))
    command = [sys.executable, "-c", python_of("scoring")[1]]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert "CIDEr" in printed
    assert (tmp_path / "runs" / "score" / "report.html").is_file()


def test_nothing_that_ships_is_left_to_be_filled_in():
    shipped = [ROOT / "README.md", ROOT / "model_card.md", *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("docs/*.md")]
    shipped += list(ROOT.glob("hf_gru_captioner/**/*.py"))
    assert not [path for path in shipped if re.search(r"PLACEHOLDER|\bTODO\b|\bXX\b", path.read_text())]
