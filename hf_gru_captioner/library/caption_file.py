"""The caption file that `gru-captioner caption --output` writes and updates: JSON lines, CSV or Parquet.

One row per caption: `path`, `caption` and `score`, or `path` and `error`; `photo_version` (size and time of the file)
and `made_by` (checkpoint and settings) show what has changed since. Other columns, such as labels, are kept; those of a
Parquet file with their types.

While captioning, each process writes its own part, `FILE.part-0` and so on, with all captions of a photo on one line,
so that a killed process truncates at most the last line; the results of earlier commands are in `FILE.part-earlier`. At
the end the parts are merged into the file, in the order of the photos. Only the positions of rows are kept in memory.
"""

import base64
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from ..errors import UsageError, brief, needs_extra
from ..files import PARTIAL, atomic_path
from ..untrusted_images import ADDRESSES

JSON_LINES, CSV, PARQUET = (".jsonl", ".ndjson"), (".csv",), (".parquet",)
ENDINGS = (*JSON_LINES, *CSV, *PARQUET)
COLUMNS = (
    "path",
    "caption",
    "score",
    "error",
    "backend",
    "attention",
    "photo_version",
    "made_by",
)  # of ours, in this order
ROWS_AT_ONCE = 1000  # of Parquet
PACKED = "__arrow__"  # name of a value in Arrow's format in a part
MAX_CELL = 1 << 20  # characters of a CSV cell
_SURROGATE = re.compile("[\udc80-\udcff]")  # a byte of a name that is not UTF-8, as Python spells it
_FORMULA = re.compile(r"(\./)*[=+\-@\t\r]")  # a cell that spreadsheets evaluate, without what `_csv_cell` adds
_SPELLED_SURROGATE = re.compile(r"\\udc([89a-f][0-9a-f])")

Row = dict[str, Any]


@dataclass
class Standing:
    """The state of a command's photos in a caption file.

    Args:
        done: Photos whose rows are up to date.
        failed: Number of photos that could not be read and are retried.
        changed: Number of photos that have changed since, and are captioned again.
        others: Number of photos that were captioned with other settings.
        made_by: One of these other settings.
    """

    done: set[str]
    failed: int = 0
    changed: int = 0
    others: int = 0
    made_by: str = ""


class CaptionFile:
    """
    Args:
        path: The file; its suffix determines the format.
        rank: Index of this process.
        reads_only: Parts are written to a temporary folder, and the file and its parts stay as they are.

    Raises:
        UsageError: A folder, an unknown suffix, or another command is writing this file.
        MissingExtraError: The library for Parquet is not installed.
    """

    def __init__(self, path: Path, rank: int = 0, *, reads_only: bool = False):
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file in it, such as {path / 'captions.jsonl'}.")
        if path.suffix.lower() not in ENDINGS:
            raise UsageError(f"{path}: its ending says how captions are written. Take .jsonl, .csv or .parquet.")
        if path.suffix.lower() in PARQUET:
            with needs_extra("formats"):
                import pyarrow.parquet  # noqa: F401
        self.path = path
        self._temporary = TemporaryDirectory() if reads_only else None
        folder = Path(self._temporary.name) if self._temporary else path.parent
        self._earlier = folder / f"{path.name}.part-earlier"
        self._part = folder / f"{path.name}.part-{rank}"
        self._lock_file = path.with_name(f"{path.name}.lock")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._lock_file, path) if rank == 0 and not reads_only else None
        self._index = _Index([])
        self._stream: IO[bytes] | None = None
        self._is_copy = False  # whether the earlier part has the same content as the file

    def collect(self) -> None:
        """Merges what earlier commands have written. Runs on the first process, before the others open the file.

        Raises:
            UsageError: The file contains something else.
        """
        earlier = self.path.with_name(self._earlier.name)
        parts = [part for part in self._parts() if part != earlier]
        files = [file for file in (self.path, earlier) if file.is_file()]
        self._is_copy = not parts and files == [self.path]
        files.sort(key=lambda file: file.stat().st_mtime_ns)  # the file, if it was edited since the last kill
        if files or parts:
            rows_of = {file: _rows(file) for file in files} | {part: _rows(part) for part in parts}
            _write_parts(self._earlier, (each for rows in rows_of.values() for each in rows))
        for part in parts if not self._temporary else []:
            part.unlink()

    def open(
        self,
        photos: Sequence[str],
        made_by: str,
        is_complete: Callable[[str, Row], bool] = lambda photo, row: True,
    ) -> Standing:
        """Begins a part for this process, and tells what is done. Runs on each process, after `collect`.

        Args:
            photos: Those of the command.
            made_by: Its checkpoint and settings.
            is_complete: Whether a row has all that the command asks for beside a caption.
        """
        self._index = _Index([self._earlier] if self._earlier.exists() else [])
        standing = Standing(set())
        for photo in photos:
            rows = self.rows(photo)
            if not rows:
                continue
            version = photo_version(photo)
            if "error" in rows[0]:
                standing.failed += 1
            elif rows[0].get("photo_version", version) != version:  # rows of others have none
                standing.changed += 1
            elif rows[0].get("made_by", made_by) != made_by:
                standing.others += 1
                standing.made_by = rows[0]["made_by"]
            elif is_complete(photo, rows[0]):
                standing.done.add(photo)
        self._stream = self._part.open("ab")
        return standing

    def rows(self, photo: str) -> list[Row]:
        """The rows of a photo written by earlier commands."""
        return self._index.rows(photo)

    def write(self, rows: Sequence[Row]) -> None:
        """Writes all rows of a photo, replacing earlier ones; other columns of these are kept."""
        assert self._stream is not None
        own = [{name: row[name] for name in row if name not in COLUMNS} for row in self.rows(rows[0]["path"])]
        kept = [own[min(number, len(own) - 1)] if own else {} for number in range(len(rows))]
        self._stream.write(_encoded([row | columns for row, columns in zip(rows, kept, strict=True)]))
        self._stream.flush()

    def stop(self) -> None:
        """Closes this process's part."""
        if self._stream is not None:
            self._stream.close()
        self._index.close()

    def close(self) -> None:
        """Closes the file; parts remain only if they contain what the file does not."""
        self.stop()
        if self._temporary:
            self._temporary.cleanup()
            return
        if self._part.exists() and not self._part.stat().st_size:
            self._part.unlink()
        if self._lock is not None:
            if self._parts() == [self._earlier] and self._is_copy:
                self._earlier.unlink()
            if not self._parts():
                self._lock_file.unlink(missing_ok=True)
            self._lock.close()

    def finish(self, photos: Sequence[str]) -> int:
        """Writes the file, and returns how many of these photos could not be read. Runs on the first process.

        Rows of other photos come first, then the rows of these photos, in order.
        """
        parts = self._parts()
        index = _Index(parts)
        ours, failures = set(photos), 0
        order = [photo for photo in index.photos() if photo not in ours]
        order += photos
        _write_whole(self.path, index, order)
        failures = sum("error" in (index.rows(photo) or [{"error": ""}])[0] for photo in photos)
        index.close()
        for part in parts:
            part.unlink()
        return failures

    def _parts(self) -> list[Path]:
        """Parts that are not yet in the file, oldest first."""
        parts = sorted(self.path.parent.glob(f"{escape(self.path.name)}.part-*"))
        parts = [file for file in parts if file.is_file() and file.suffix != PARTIAL]
        return sorted(parts, key=lambda file: file != self._earlier)


def photo_version(photo: str) -> str | None:
    """Size and modification time of a photo's file, to detect changes; None for a URL or a missing file."""
    if photo.startswith(ADDRESSES):
        return None
    try:
        state = os.stat(os.path.expanduser(photo))
    except (OSError, ValueError):
        return None
    seconds, nanoseconds = divmod(state.st_mtime_ns, 1_000_000_000)
    time = datetime.fromtimestamp(seconds, UTC)
    return f"{state.st_size} bytes, {time:%Y-%m-%d %H:%M:%S}.{nanoseconds:09}"


class _Index:
    """The positions of each photo's rows in parts."""

    def __init__(self, parts: Sequence[Path]):
        self._files = [part.open("rb") for part in parts]
        self._positions: dict[str, tuple[int, int]] = {}
        for number, file in enumerate(self._files):
            position = 0
            for line in file:
                rows = _decoded(line)
                if rows:
                    self._positions[rows[0]["path"]] = (number, position)
                position += len(line)

    def photos(self) -> Iterable[str]:
        return self._positions.keys()

    def rows(self, photo: str) -> list[Row]:
        if photo not in self._positions:
            return []
        number, position = self._positions[photo]
        self._files[number].seek(position)
        return _decoded(self._files[number].readline()) or []

    def close(self) -> None:
        for file in self._files:
            file.close()


def _decoded(line: bytes) -> list[Row] | None:
    """The rows in a line of a part; None if the line is truncated."""
    try:
        rows = json.loads(line)
        return rows if rows[0]["path"] else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(value).encode() + b"\n"


def _write_parts(part: Path, groups: Iterable[list[Row]]) -> None:
    with atomic_path(part) as temporary, temporary.open("wb") as stream:
        for rows in groups:
            stream.write(_encoded(rows))


def _rows(file: Path) -> Iterator[list[Row]]:
    """The rows of a file or part, grouped by photo.

    Raises:
        UsageError: It contains something else.
    """
    if ".part-" in file.suffix:
        with file.open("rb") as stream:
            yield from filter(None, map(_decoded, stream))
        return
    num_groups = Counter(photo for photo, _ in _adjacent_rows(file))
    scattered: dict[str, list[Row]] = {photo: [] for photo, number in num_groups.items() if number > 1}  # re-sorted
    for photo, rows in _adjacent_rows(file):
        if photo in scattered:
            scattered[photo] += rows
        else:
            yield rows
    yield from scattered.values()


def _adjacent_rows(file: Path) -> Iterator[tuple[str, list[Row]]]:
    """Photos with runs of adjacent rows."""
    ending = file.suffix.lower()
    rows = (_json_rows if ending in JSON_LINES else _csv_rows if ending in CSV else _parquet_rows)(file)
    for photo, group in groupby(rows, lambda row: row["path"]):
        yield photo, list(group)


def _json_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield _checked(row, f"{file}, line {number}")


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=header.count)  # depends on the spreadsheet that saved it
            for number, row in enumerate(csv.DictReader(stream, delimiter=delimiter), 2):
                if None in row:
                    raise UsageError(f"{file}, line {number}: more cells than columns. Name another file.")
                row = _without_empty(row)
                if _FORMULA.match(row.get("path", "")):
                    row["path"] = row["path"].removeprefix("./")  # as `_csv_cell` has written it
                yield _checked(row, f"{file}, line {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} is not a CSV in UTF-8 ({brief(error)}). Name another file.") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            rows = (row for batch in table.iter_batches(ROWS_AT_ONCE) for row in _rows_of_batch(batch))
            for number, row in enumerate(rows, 1):
                ours = _without_empty({name: row[name] for name in COLUMNS if name in row})
                own = {name: value for name, value in row.items() if name not in COLUMNS and value is not None}
                yield _checked(ours | own, f"{file}, row {number}")
    except pyarrow.ArrowException as error:
        raise UsageError(f"{file} is not a Parquet file ({brief(error)}). Name another file.") from error


def _rows_of_batch(batch: Any) -> Iterator[Row]:
    names = batch.schema.names
    columns = [_json_values(name, column) for name, column in zip(names, batch.columns, strict=True)]
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _json_values(name: str, column: Any) -> list[Any]:
    """The values of a Parquet column for the parts, which are JSON: those that JSON can't express as `{PACKED: ...}`,
    the value in Arrow's format."""
    import pyarrow

    if name in COLUMNS or _is_json(column.type):
        return list(column.to_pylist())
    values: list[Any] = []
    for number in range(len(column)):
        batch = pyarrow.record_batch([column.slice(number, 1)], [name])
        stream = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(stream, batch.schema) as writer:
            writer.write_batch(batch)
        packed = {PACKED: base64.b64encode(stream.getvalue()).decode()}
        values.append(packed if column[number].is_valid else None)
    return values


def _arrow_column(values: Sequence[Any], kind: Any) -> Any:
    """Values of a column of a Parquet file -> the column, of its original type."""
    import pyarrow

    if _is_json(kind):
        return pyarrow.array(values, kind)
    columns = [pyarrow.nulls(1, kind) if value is None else _unpacked(value).cast(kind) for value in values]
    return pyarrow.concat_arrays(columns)


def _unpacked(value: Mapping[str, str]) -> Any:
    import pyarrow

    with pyarrow.ipc.open_stream(base64.b64decode(value[PACKED])) as stream:
        return stream.read_all().column(0).combine_chunks()


def _is_json(kind: Any) -> bool:
    """Whether JSON can express the values of an Arrow type."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_json(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_dictionary(kind):
        return _is_json(kind.value_type)
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_float32, types.is_float64)
    return any(is_one(kind) for is_one in (*plain, types.is_string, types.is_large_string))


def _without_empty(cells: Mapping[str, Any]) -> Row:
    row = {name: cell for name, cell in cells.items() if cell is not None and cell != ""}
    if isinstance(row.get("path"), str):
        row["path"] = _SPELLED_SURROGATE.sub(lambda spelled: chr(0xDC00 + int(spelled[1], 16)), row["path"])
    if isinstance(row.get("score"), str):
        with suppress(ValueError):
            row["score"] = float(row["score"])
    if "caption" not in row and "error" not in row:
        row["caption"] = ""
    return row


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not {"caption", "error"} & row.keys():
        raise UsageError(f"{where}: not a line of captions. Name another file.")
    # Without our columns that are null, as pandas writes them.
    cells: Row = {name: cell for name, cell in row.items() if cell is not None or name not in COLUMNS}
    if "error" not in cells:
        cells.setdefault("caption", "")
    for name in COLUMNS:
        kind, called = (int | float, "a number") if name == "score" else (str, "text")
        if name in cells and not isinstance(cells[name], kind):
            found = repr(cells[name])[:80]
            raise UsageError(f"{where}: the {name} must be {called}, found {found}. Correct it, or name another file.")
    return cells


def _write_whole(file: Path, index: _Index, photos: Sequence[str]) -> None:
    ending = file.suffix.lower()
    rows = (row for photo in photos for row in index.rows(photo))
    with atomic_path(file) as temporary:
        if ending in JSON_LINES:
            with temporary.open("wb") as stream:
                stream.writelines(map(_encoded, rows))
            return
        names = {name: value for photo in photos for row in index.rows(photo) for name, value in row.items()}
        columns = [name for name in COLUMNS if name in names or name in COLUMNS[:3]]
        columns += [name for name in names if name not in COLUMNS]
        if ending in CSV:
            with temporary.open("w", encoding="utf-8-sig", newline="") as table:  # spreadsheets need the BOM
                writer = csv.DictWriter(table, columns)
                writer.writeheader()
                writer.writerows({name: _csv_cell(name, value) for name, value in row.items()} for row in rows)
        else:
            _write_parquet(temporary, columns, rows, _own_kinds(file, names))


def _own_kinds(file: Path, values: Row) -> dict[str, Any]:
    """Arrow types of the columns that people have added to a Parquet file, as in the file or else in `values`."""
    import pyarrow.parquet

    packed = {name: value for name, value in values.items() if isinstance(value, dict) and PACKED in value}
    schema = pyarrow.parquet.read_schema(file) if file.exists() else []
    in_file = {field.name: field.type for field in schema if field.name not in COLUMNS}
    return {name: _unpacked(value).type for name, value in packed.items()} | in_file


def _write_parquet(file: Path, columns: Sequence[str], rows: Iterator[Row], own_kinds: Mapping[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {name: pyarrow.float64() if name == "score" else pyarrow.string() for name in columns}
    kinds.update(own_kinds)
    schema = pyarrow.schema(list(kinds.items()))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            arrays = []
            for name, kind in kinds.items():
                values = [row.get(name) for row in batch]
                if name in own_kinds:
                    arrays.append(_arrow_column(values, kind))
                else:
                    cells = [value if name == "score" or value is None else _cell(value) for value in values]
                    arrays.append(pyarrow.array(cells, kind))
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _cell(value: Any) -> str:
    """A value as valid Unicode text; undecodable bytes become `\\udc80` and so on."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _SURROGATE.sub(lambda byte: f"\\udc{ord(byte[0]) - 0xDC00:02x}", text)


def _csv_cell(name: str, value: Any) -> str:
    """The same for a CSV, in which no file name may become a formula: `=1.jpg` is written as `./=1.jpg`."""
    text = _cell(value)
    return f"./{text}" if name in ("path", "error") and _FORMULA.match(text) else text


def _locked(file: Path, path: Path) -> IO[bytes]:
    """Locks a file until it is closed or the process ends, if the system supports it.

    Raises:
        UsageError: Another process holds the lock.
    """
    stream = file.open("ab")
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise UsageError(f"another command writes {path} now: wait for its end, or name another file.") from error
        except OSError:
            pass  # a file system without locks
    return stream
