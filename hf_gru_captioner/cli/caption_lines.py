"""The file of `gru-captioner caption --output`: JSON lines that a killed run leaves whole and the next goes on from."""

import json
from collections.abc import Iterable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import PARTIAL, atomic_path


class LinesFile:
    """Lines of photos, each `{"path": ..., ...}`, several for a photo with several captions.

    Each process writes a file of its own, `FILE.part-0` and so on, a photo at a time and in one piece, so that a kill
    tears at most the last; [`gather`] then makes one file of all of them, in the order of the photos.

    Args:
        path: The file; what it and its parts hold already is kept.
        rank: This process's number.
        num_captions: Lines of a photo that was captioned.

    Raises:
        UsageError: The file is there and holds something else.
    """

    def __init__(self, path: Path, rank: int, num_captions: int):
        self.path = path
        self._num_captions = num_captions
        self._part = path.with_name(f"{path.name}.part-{rank}")
        self.lines = self._read_all()
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _read(self._part, num_captions) if self._part.exists() else {}
        _write_whole(self._part, whole.values())  # without what a kill has torn
        self._stream = self._part.open("ab")

    def write(self, path: str, records: Sequence[dict[str, Any]]) -> None:
        lines = b"".join(_encode(record) for record in records)
        self._stream.write(lines)
        self._stream.flush()
        self.lines[path] = list(records)

    def close(self) -> None:
        self._stream.close()

    def gather(self, paths: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Makes one file of all parts and returns its lines; runs on one process, when all have closed theirs."""
        files = self._files()
        lines = self._read_all()
        earlier = [path for path in lines if path not in set(paths)]  # of a command with other photos
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
    """Lines of each photo whose lines are all there, by path."""
    found: dict[str, list[dict[str, Any]]] = {}
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            found.setdefault(record["path"], []).append(record)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number < len(lines) - 1:  # not one that a kill has torn
                raise UsageError(
                    f"{file} has something else in line {number + 1} than captions: name another file."
                ) from error
    return {path: records for path, records in found.items() if "error" in records[0] or len(records) >= num_captions}


def _write_whole(file: Path, photos: Iterable[Sequence[dict[str, Any]]]) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        for records in photos:
            stream.writelines(map(_encode, records))


def _encode(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name of bytes that are no text
        return json.dumps(record).encode() + b"\n"
