import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature

from hf_gru_captioner.cli import main

CAPTIONS = ["A brown dog runs on grass", "The man's dog jumps on the beach", "A blue bike on the beach"]


@pytest.fixture
def arguments(make_photo, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = Dataset.from_dict({"image": [make_photo(0), make_photo(1)], "labels": [["dog"], ["zebra"]]})
    rows.cast_column("image", ImageFeature()).to_parquet(tmp_path / "images.parquet")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"captions": CAPTIONS, "labels": ["dog"]}))
    (tmp_path / "synonyms.yaml").write_text("person: [man]\nzebra: [striped horse]\n")
    paths = {"images": "images.parquet", "captions": "captions.jsonl", "output": "new", "synonyms": "synonyms.yaml"}
    return ["borrow", *(word for name, path in paths.items() for word in (f"--{name}", str(tmp_path / path)))]


def test_captions_are_borrowed_and_counted(arguments, checkpoint, tmp_path, capsys):
    assert main([*arguments, "--checkpoint", str(checkpoint), "--per-image", "2", "--min-words", "5"]) == 0
    assert load_dataset(str(tmp_path / "new"), split="train")["captions"][:] == [[CAPTIONS[0]]]  # the other has a man
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["1 of 2 images got captions, 1 in total", "1 of them had fewer than 30 candidates"]
    assert said[2] == "skipped: 1 image that had no candidates"
    assert said[3].startswith("labels of images without candidates: zebra (1); --synonyms")
    assert said[5:7] == ["0: dog", f"  {CAPTIONS[0]}"]
    assert said[-1] == f"written: {tmp_path / 'new'}"


def test_captions_that_name_a_color_are_not_borrowed(arguments, tmp_path, capsys):
    """With the files of configs/synonyms, of which the first says that "orange vest" names no label."""
    synonyms = Path(__file__).parents[2] / "configs" / "synonyms"
    captions = ["A brown dog runs", "A bright orange dog", "A dog in orange vests", "A dog runs"]
    (tmp_path / "captions.jsonl").write_text(json.dumps({"captions": captions, "labels": ["dog"]}))
    files = [str(synonyms / name) for name in ("coco.yaml", "colors.yaml")]
    assert main([*arguments, "--synonyms", *files, "--min-words", "3"]) == 0
    assert load_dataset(str(tmp_path / "new"), split="train")["captions"][:] == [["A dog runs"]]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--per-image", "40"), "candidates must be at least per_image"),
        (("--min-words", "20"), "max_words must be at least min_words"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--synonyms", "no-such-file.yaml"), "no-such-file.yaml"),
        (("--captions", "no/such/folder"), "no/such/folder does not exist"),
        (("--checkpoint", "/no/such/checkpoint"), "/no/such/checkpoint"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(arguments, tmp_path, capsys, option, message):
    assert main([*arguments, *option]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("gru-captioner: ")
    assert message in error
    assert not (tmp_path / "new").exists()
