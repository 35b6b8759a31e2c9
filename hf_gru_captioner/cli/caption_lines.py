"""The file of `gru-captioner caption --output`: JSON lines which the next run resumes from, even after a kill."""

import json
from collections.abc import Iterable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import PARTIAL, atomic_path


class LinesFile:
    """Lines `{"path": ..., ...}`, several per image if it has several captions.

    Each process writes a file of its own, `FILE.part-0` and so on, the lines of one image in a single write, so that a
    kill truncates at most the last; [`gather`] then merges the files, in the order of the images.

    Args:
        path: The file; lines that it and its parts already have are kept.
        rank: Index of this process.
        num_captions: Lines per captioned image.

    Raises:
        UsageError: The file exists and holds something else.
    """

    def __init__(self, path: Path, rank: int, num_captions: int):
        self.path = path
        self._num_captions = num_captions
        self._part = path.with_name(f"{path.name}.part-{rank}")
        self.lines = self._read_all()
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _read(self._part, num_captions) if self._part.exists() else {}
        _write_whole(self._part, whole.values())  # without a truncated line
        self._stream = self._part.open("ab")

    def write(self, path: str, records: Sequence[dict[str, Any]]) -> None:
        lines = b"".join(_encode(record) for record in records)
        self._stream.write(lines)
        self._stream.flush()
        self.lines[path] = list(records)

    def close(self) -> None:
        self._stream.close()

    def gather(self, paths: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Merges all parts into one file and returns its lines. Runs on one process, after all have closed theirs."""
        files = self._files()
        lines = self._read_all()
        earlier = [path for path in lines if path not in set(paths)]  # of a command with other images
        _write_whole(self.path, [lines[path] for path in (*earlier, *paths)])
        for file in files:
            if file != self.path:
                file.unlink()
        return lines

    def _read_all(self) -> dict[str, list[dict[str, Any]]]:
        return {path: records for file in self._files() for path, records in _read(file, self._num_captions).items()}

    def _files(self) -> list[Path]:
        parts = sorted(self.path.parent.glob(f"{escape(self.path.name)}.part-*"))
        return [file for file in (self.path, *parts) if file.is_file() and file.suffix != PARTIAL]


def _read(file: Path, num_captions: int) -> dict[str, list[dict[str, Any]]]:
    """Lines by path, of the images whose lines are complete."""
    found: dict[str, list[dict[str, Any]]] = {}
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            found.setdefault(record["path"], []).append(record)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number < len(lines) - 1:  # not one that a kill truncated
                raise UsageError(f"{file}, line {number + 1}: not a line of captions. Name another file.") from error
    return {path: records for path, records in found.items() if "error" in records[0] or len(records) >= num_captions}


def _write_whole(file: Path, lines_of_images: Iterable[Sequence[dict[str, Any]]]) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        for records in lines_of_images:
            stream.writelines(map(_encode, records))


def _encode(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(record).encode() + b"\n"
