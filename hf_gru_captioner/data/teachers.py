"""The teachers that wrote a source's captions, if any: `gru-captioner label` records the teacher in each row."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")  # of a folder
MAX_NAME = 200  # characters


def teachers_of(source: str | Path) -> list[dict[str, str]]:
    """Name and revision of each teacher recorded in a caption file, in order of appearance; empty for other sources.

    Args:
        source: A JSON lines or CSV file, or a folder with one.
    """
    path = Path(source).expanduser()
    files = [path / name for name in TABLES] if path.is_dir() else [path]
    teachers: dict[tuple[str, str], None] = {}
    for file in files:
        for row in _rows(file) if file.is_file() else ():
            teacher, revision = row.get("teacher"), row.get("teacher_revision")
            if isinstance(teacher, str) and teacher:
                teachers[teacher[:MAX_NAME], str(revision or "")[:MAX_NAME]] = None
    return [{"name": name, "revision": revision} for name, revision in teachers]


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a table; malformed ones are skipped, since reading the captions reports them."""
    ending = file.suffix.lower()
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        if ending in (".jsonl", ".ndjson"):
            for line in stream:
                if '"teacher"' not in line:
                    continue
                try:
                    row = json.loads(line)
                except (RecursionError, ValueError):
                    continue
                if isinstance(row, dict):
                    yield row
        elif ending == ".csv":
            header = stream.readline()
            stream.seek(0)
            if "teacher" in header:
                try:
                    yield from csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
                except csv.Error:
                    return
