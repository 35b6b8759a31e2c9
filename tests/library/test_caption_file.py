"""Columns of people in a caption file; `tests/cli/test_caption_output.py` tests what `gru-captioner caption` writes."""

import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from hf_gru_captioner.library.caption_file import CaptionFile

NOW = datetime.datetime(2026, 11, 27, 3, 4, 5, 678_901)
OWN = {
    "labels": pyarrow.array([["cat", "sofa"], []], pyarrow.list_(pyarrow.string())),
    "number": pyarrow.array([1, None], pyarrow.int16()),
    "share": pyarrow.array([0.1, 2.5], pyarrow.float32()),
    "checked": pyarrow.array([True, False]),
    "note": pyarrow.array(["", "text"], pyarrow.large_string()),
    "boxes": pyarrow.array([[{"x": 1, "name": None}], None]),
    "kind": pyarrow.array(["a", "b"]).dictionary_encode(),
    "taken": pyarrow.array([NOW, None], pyarrow.timestamp("us", "Europe/Berlin")),
    "exactly": pyarrow.array([1_700_000_000_123_456_789, 1], pyarrow.timestamp("ns")),
    "day": pyarrow.array([NOW.date(), None]),
    "times": pyarrow.array([[NOW.time()], []]),
    "price": pyarrow.array([Decimal("1.10"), None]),
    "icon": pyarrow.array([b"\xff\x00", None]),
    "names": pyarrow.array([[("en", "cat")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())),
    "half": pyarrow.array(np.array([0.5, 1.5], np.float16)),
    "nothing": pyarrow.nulls(2),
}

READERS = {"jsonl": lambda path: pd.read_json(path, lines=True), "csv": pd.read_csv, "parquet": pd.read_parquet}
WRITERS = {
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "parquet": lambda rows, path: rows.to_parquet(path),
}


@pytest.fixture
def table():
    """A caption file that people have added columns to."""
    paths = pyarrow.array(["a.png", "b.png"])
    return pyarrow.table({"path": paths, "caption": pyarrow.array(["a cat", "a dog"])} | OWN)


def rewrite(path, photos, new):
    file = CaptionFile(path)
    file.collect()
    file.open(photos, "me")
    for photo in new:
        file.write([{"path": photo, "caption": "new", "score": -1.0}])
    file.stop()
    file.finish(photos)
    file.close()


def test_columns_of_people_keep_their_types_and_values(table, tmp_path):
    path = tmp_path / "captions.parquet"
    pyarrow.parquet.write_table(table, path)
    for _ in range(2):
        rewrite(path, ["a.png", "b.png", "c.png"], ["c.png"])
    again = pyarrow.parquet.read_table(path)
    assert again["path"].to_pylist() == ["a.png", "b.png", "c.png"]
    assert again["caption"].to_pylist() == ["a cat", "a dog", "new"]
    for name in OWN:
        before = table[name].combine_chunks()
        after = again[name].combine_chunks()
        assert after.type == before.type, name
        assert after.slice(0, 2).cast(before.type).equals(before), name
        assert not after[2].is_valid, name


@pytest.mark.parametrize("meanwhile", [lambda path: None, Path.unlink], ids=["kept", "deleted"])
def test_columns_survive_a_killed_command(table, tmp_path, meanwhile):
    path = tmp_path / "captions.parquet"
    pyarrow.parquet.write_table(table, path)
    killed = CaptionFile(path)
    killed.collect()
    killed.open(["a.png", "c.png"], "me")
    killed.write([{"path": "c.png", "caption": "new", "score": -1.0}])
    killed.stop()
    killed._lock.close()
    meanwhile(path)
    rewrite(path, ["a.png", "b.png", "c.png"], [])
    again = pyarrow.parquet.read_table(path)
    assert meanwhile is Path.unlink or again["labels"].to_pylist() == [["cat", "sofa"], [], None]
    assert again["exactly"].slice(0, 2).combine_chunks().equals(OWN["exactly"])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_columns_of_people_are_kept_when_a_photo_is_captioned_again(tmp_path, ending):
    path = tmp_path / f"captions.{ending}"
    rewrite(path, ["a.png", "b.png"], ["a.png", "b.png"])
    rows = pd.DataFrame(READERS[ending](path)).assign(note=["mine", "yours"])
    WRITERS[ending](rows, path)
    rewrite(path, ["a.png", "b.png"], ["b.png"])
    assert list(READERS[ending](path)["note"]) == ["mine", "yours"]
    assert list(READERS[ending](path)["caption"]) == ["new", "new"]


def test_no_name_of_a_photo_is_a_formula_in_a_spreadsheet(tmp_path):
    path, photos = tmp_path / "captions.csv", ["=1+1.jpg", "@SUM(A1).jpg", "-2.jpg", "./+3.jpg", "./a.jpg", "b=.jpg"]
    rewrite(path, photos, photos)
    written = ["./=1+1.jpg", "./@SUM(A1).jpg", "./-2.jpg", "././+3.jpg", "./a.jpg", "b=.jpg"]
    assert list(pd.read_csv(path)["path"]) == written
    file = CaptionFile(path)
    file.collect()
    standing = file.open(photos, "me")
    file.close()
    assert standing.done == set(photos)
