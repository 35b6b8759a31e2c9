import json

import pytest

from hf_gru_captioner.data.teachers import teachers_of

ROWS = [
    {"path": "a.jpg", "caption": "a dog", "teacher": "me/one", "teacher_revision": "abc"},
    {"path": "a.jpg", "caption": "a cat", "teacher": "me/two"},
    {"path": "b.jpg", "caption": "a dog", "teacher": "me/one", "teacher_revision": "abc"},
    {"path": "c.jpg", "caption": "written by a person"},
]
NAMED = [{"name": "me/one", "revision": "abc"}, {"name": "me/two", "revision": ""}]


@pytest.mark.parametrize("name", ["captions.jsonl", "labels.ndjson"])
def test_teachers_are_named_once_in_the_order_of_the_rows(tmp_path, name):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert teachers_of(path) == NAMED
    assert teachers_of(str(tmp_path)) == (NAMED if name == "captions.jsonl" else [])


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_table_that_a_spreadsheet_has_saved_names_them_too(tmp_path, delimiter):
    lines = [delimiter.join((row["path"], row.get("teacher", ""), row.get("teacher_revision", ""))) for row in ROWS]
    header = delimiter.join(("path", "teacher", "teacher_revision"))
    (tmp_path / "captions.csv").write_text("\n".join([header, *lines]), encoding="utf-8-sig")
    assert teachers_of(tmp_path / "captions.csv") == NAMED


def test_whatever_else_a_source_is_it_names_none(tmp_path):
    (tmp_path / "captions.jsonl").write_text(
        '{"teacher": 3}\n["teacher"]\n{"teacher": "torn\n' + "[" * 100_000 + '"teacher"'
    )
    (tmp_path / "photo.csv").write_bytes(b"\xff\xfe teacher\x00\n\x00")
    for source in (tmp_path, tmp_path / "photo.csv", tmp_path / "nothing", "user/dataset"):
        assert teachers_of(source) == []
