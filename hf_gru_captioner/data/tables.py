"""Reads the rows of a table in any format: CSV with any common delimiter, JSON, JSON lines, Excel, Parquet.

The format is recognized by content, not by file name. Messages give row numbers: as in a spreadsheet, counting the
header; for JSON lines the line number; for JSON and Parquet starting at 1.
"""

import csv
import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any, NamedTuple

from ..errors import needs_extra, reason_of
from .columns import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    SPLIT_NAMES,
    caption_columns,
    find_columns,
    looks_like_image,
    plain_name,
    shown,
    shown_names,
)
from .encodings import decode_text

DELIMITERS = ",\t;|"
UNQUOTED = "\t|"  # delimiters with which most writers don't quote
MAX_UNPACKED = 1_000_000_000  # bytes of a workbook
ZIP, PARQUET = b"PK\x03\x04", b"PAR1"  # magic numbers
WORKBOOK = "xl/workbook.xml"  # a member of every .xlsx file
HEADERLESS = ("image", "caption")
MAX_ABOVE = 10  # rows above the header, such as a title


class Row(NamedTuple):
    """A row of a table."""

    where: str  # such as "row 7"
    cells: Mapping[str, Any]


class ChosenColumns(NamedTuple):
    """Column names given by the user; None to recognize them."""

    image: str | None = None
    caption: str | None = None


BY_NAME = ChosenColumns()


def parse_json(name: object, text: str) -> Any:
    """Parses a JSON text, or JSON lines into a list of [`Row`].

    Raises:
        ValueError: It is neither; names the row.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{name} is not a caption file: its JSON is nested too deeply.") from error
    except ValueError as error:  # also a number with more digits than Python parses
        first, _, others = text.strip().partition("\n")
        has_lines_suffix = str(name).lower().endswith((".jsonl", ".ndjson"))
        if not has_lines_suffix and not (others.strip() and _is_json(first)):
            raise ValueError(f"{name} is not one JSON value ({error}), and not JSON lines either.") from error
    return list(json_lines(name, text))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def json_lines(name: object, text: str) -> Iterator[Row]:
    """The rows of JSON lines.

    Raises:
        ValueError: A line is not a JSON object; gives its number.
    """
    for number, line in enumerate(io.StringIO(text), 1):  # only \\n ends a line, as in JSON lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise ValueError(f"{name} is not a caption file: its JSON is nested too deeply.") from error
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: line {number} is not JSON: {error}.") from error
        if not isinstance(row, Mapping):
            raise ValueError(f"{name}, row {number}: found {shown(line.strip())}, not an object of columns.")
        yield Row(f"row {number}", row)


def rows_of_objects(objects: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of a list of objects."""
    return [Row(f"row {number}", each) for number, each in enumerate(objects, 1)]


def rows_of_columns(content: Mapping[str, Any]) -> list[Row] | None:
    """The rows of column-oriented JSON, each column a list or, as written by pandas, an object by row; else None."""
    names = tuple(content)
    columns = find_columns(names)
    if columns.image is None or not columns.captions:
        return None
    values = list(content.values())
    if all(isinstance(each, list) for each in values) and len({len(each) for each in values}) == 1:
        cells: Iterable[Sequence[Any]] = zip(*values, strict=True)
    elif all(isinstance(each, Mapping) for each in values) and len({tuple(each) for each in values}) == 1:
        cells = zip(*(each.values() for each in values), strict=True)
    else:
        return [Row("row 1", content)]  # JSON lines with a single line
    return rows_of_objects(dict(zip(names, row, strict=True)) for row in cells)


def separated_rows(name: object, text: str, chosen: ChosenColumns = BY_NAME) -> Iterator[Row]:
    """The rows of a CSV file delimited by commas, tabs, semicolons or bars, with or without a header.

    Raises:
        ValueError: A row has more cells than the header, or a quotation mark is unclosed; gives row and line.
    """
    first_line = 1
    if re.match(r"sep=.\r?\n", text):  # Excel's delimiter hint
        text, first_line = text.partition("\n")[2], 2
    above = _lines_above_header(text, chosen)
    text, first_line = text.split("\n", above)[-1], first_line + above
    delimiter, names = _form(text, chosen)
    is_quoted = delimiter not in UNQUOTED or not _is_plain(text, delimiter)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=is_quoted,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
    )
    header = list(names or ())
    number, line = first_line - 1, first_line
    while True:
        number += 1
        where = f"row {number}" + (f" (line {line})" if line != number else "")
        try:
            cells = next(reader, None)
        except csv.Error as error:
            end = reader.line_num + first_line - 1
            raise ValueError(f"{name}, {where}: {_quoting_fault(str(error), line, end)}") from error
        if cells is None:
            return
        end, started = reader.line_num + first_line - 1, line
        line = end + 1
        if not any(cell.strip() for cell in cells):
            continue
        if end > started and (swallowed := _swallowed(cells, delimiter, header)):
            raise ValueError(
                f"{name}, {where}: a quotation mark that opens in line {started} swallows the rows up to line {end}, "
                f"such as {shown(swallowed)}: close it, or write it twice if it belongs to the caption."
            )
        if not header:
            header = _unique([cell.strip() for cell in cells])
            continue
        if len(cells) > len(header):
            if any(cell.strip() for cell in cells[len(header) :]):
                of_header = f"than {len(header)}" if names else f"than the header's {len(header)}"
                raise ValueError(f"{name}, {where}: more cells {of_header}. Quote captions that contain {delimiter!r}.")
            cells = cells[: len(header)]
        yield Row(where, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True)))


def _quoting_fault(error: str, started: int, end: int) -> str:
    if "unexpected end" in error:
        return f"the quotation mark that opens in line {started} is never closed: close it, or write it twice."
    if "expected after" in error:
        lines = f"line {started}" if started == end else f"lines {started} to {end}"
        return (
            f"a quotation mark opens or closes in the middle of a cell in {lines}: a cell with quotation marks begins "
            'and ends with one, and those inside are written twice ("").'
        )
    return f"line {started}: {error}; is a quotation mark open?"


def _swallowed(cells: Sequence[str], delimiter: str, header: Sequence[str]) -> str | None:
    """The first line inside a cell that looks like a separate row: it has an image, or as many cells as the header and,
    unlike prose, no space after a delimiter and none in the image cell."""
    image = find_columns(tuple(header)).image
    for cell in cells:
        for line in cell.splitlines()[1:]:
            parts = line.split(delimiter)
            inner = [part.strip().strip('"') for part in parts]
            if len(inner) > 1 and any(map(looks_like_image, inner)):
                return line
            is_row = len(inner) == len(header) > 1 and image is not None and not any(p[:1] == " " for p in parts[1:])
            if is_row and not re.search(r"\s", inner[header.index(image)] or " "):
                return line
    return None


def _is_plain(text: str, delimiter: str) -> bool:
    """Whether cells appear to be unquoted: each line has as many delimiters as the first, and some cell begins with an
    unclosed quotation mark."""
    lines = [line for line in text.splitlines() if line.strip()]
    number = lines[0].count(delimiter) if lines else 0
    if not number or any(line.count(delimiter) != number for line in lines):
        return False
    cells = (cell.strip() for line in lines for cell in line.split(delimiter))
    return any(cell.startswith('"') and not re.fullmatch(r'"(?:[^"]|"")*"', cell) for cell in cells)


def _form(text: str, chosen: ChosenColumns) -> tuple[str, tuple[str, ...] | None]:
    """The delimiter, and the column names if the first row is not a header."""
    rows = _cells(next((line for line in text.splitlines() if line.strip(" \t,;|")), ""))
    by_cells = sorted(rows, key=lambda delimiter: -len(rows[delimiter]))  # stable: a comma first
    for delimiter in by_cells:
        if _is_header(rows[delimiter], chosen):
            return delimiter, None
    for delimiter in by_cells:
        if names := _names_without_header(rows[delimiter], chosen):
            return delimiter, names
    return by_cells[0], None


def _cells(line: str) -> dict[str, list[str]]:
    """The cells of a line, by delimiter."""
    rows: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        try:
            rows[delimiter] = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:  # a cell exceeds the size limit
            rows[delimiter] = [line]
    return rows


def _wanted(chosen: ChosenColumns) -> set[str]:
    return {plain_name(name) for name in (chosen.image, *(chosen.caption or "").split(",")) if name}


def _is_header(cells: Iterable[Any], chosen: ChosenColumns) -> bool:
    """Whether cells name an image column and a caption column, or the columns given by the user."""
    cells = ["" if cell is None else str(cell) for cell in cells]
    names, wanted = set(map(plain_name, cells)), _wanted(chosen)
    if wanted:
        return wanted <= names
    return bool(names & set(map(plain_name, IMAGE_NAMES)) and caption_columns(cells))


def _names_without_header(cells: Sequence[Any], chosen: ChosenColumns) -> tuple[str, ...] | None:
    """The column names for a table without a header, judging by its first row: an image and a caption, in either order;
    otherwise None."""
    known = {plain_name(name) for name in (*IMAGE_NAMES, *CAPTION_NAMES)} | _wanted(chosen)
    if len(cells) != 2 or known & set(map(plain_name, cells)):
        return None
    if looks_like_image(cells[0]):
        return HEADERLESS
    return HEADERLESS[::-1] if looks_like_image(cells[1]) else None


def _lines_above_header(text: str, chosen: ChosenColumns) -> int:
    """The number of lines above the header, such as a title; 0 if an image comes first, or no header is recognized."""
    for number, line in enumerate(text.split("\n", MAX_ABOVE + 1)[: MAX_ABOVE + 1]):
        rows = _cells(line)
        if any(_is_header(cells, chosen) for cells in rows.values()):
            return number
        if any(looks_like_image(cell) for cells in rows.values() for cell in cells):
            return 0
    return 0


def _unique(header: Sequence[str]) -> list[str]:
    """Unique column names, with numbers for duplicates: `caption, caption` -> `caption, caption_2`."""
    names: list[str] = []
    for name in header:
        number, unique = 1, name
        while unique in names and name:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def is_workbook(content: bytes) -> bool:
    """Whether a ZIP archive is an Excel workbook."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return WORKBOOK in archive.namelist()
    except Exception:  # zipfile raises errors of any kind
        return False


def workbook_rows(name: object, content: bytes, chosen: ChosenColumns = BY_NAME) -> list[Row]:
    """The rows of an Excel workbook's sheets with images and captions, otherwise of its first sheet. A sheet named
    like a split is that split.

    Raises:
        ValueError: The workbook is damaged, or has no rows.
        MissingExtraError: openpyxl is not installed.
    """
    with needs_extra("xlsx"):
        import openpyxl  # type: ignore[import-untyped]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
                raise ValueError(f"more than {MAX_UNPACKED / 1e9:g} GB when unpacked")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = [(sheet.title, _sheet_rows(sheet, chosen)) for sheet in book.worksheets]
    except Exception as error:  # openpyxl raises errors of any kind
        raise ValueError(f"{name} can't be read as an Excel workbook ({reason_of(error)}): save it as CSV.") from error
    sheets = [(title, rows) for title, rows in sheets if rows]
    if not sheets:
        raise ValueError(f"{name} has no rows.")
    captioned = [sheet for sheet in sheets if _is_captioned(sheet[1][0].cells, chosen)] or sheets[:1]
    if len(sheets) == 1:
        return captioned[0][1]
    return [
        Row(f"sheet {title!r}, {where}", {"split": title, **cells} if title.lower() in SPLIT_NAMES else cells)
        for title, rows in captioned
        for where, cells in rows
    ]


def _sheet_rows(sheet: Any, chosen: ChosenColumns) -> list[Row]:
    sheet.reset_dimensions()  # some writers state a wrong size
    rows = ([_cell_value(value) for value in values] for values in sheet.iter_rows(values_only=True))
    return rows_of_cells(rows, chosen)


def rows_of_cells(table: Iterable[Sequence[Any]], chosen: ChosenColumns = BY_NAME) -> list[Row]:
    """The rows of a table of cells, whose header may be missing or have a title above it. Empty rows are skipped."""
    filled = [
        (number, list(cells))
        for number, cells in enumerate(table, 1)
        if not all(cell is None or cell == "" for cell in cells)
    ]
    for index, (_, cells) in enumerate(filled[: MAX_ABOVE + 1]):
        if _is_header(cells, chosen):
            filled = filled[index:]
            break
        if any(map(looks_like_image, cells)):
            break
    header: list[str] = []
    rows = []
    for number, cells in filled:
        if not header and (names := _names_without_header(cells, chosen)):
            header = list(names)
        elif not header:
            header = _unique(["" if cell is None else str(cell).strip() for cell in cells])
            continue
        header += [""] * (len(cells) - len(header))
        padded = [*cells, *[None] * (len(header) - len(cells))]
        rows.append(Row(f"row {number}", dict(zip(header, padded, strict=True))))
    return rows


def _cell_value(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)  # Excel has no integers
    return value.strip() if isinstance(value, str) else value


def _is_captioned(names: Iterable[str], chosen: ChosenColumns) -> bool:
    try:
        columns = find_columns(tuple(names), *chosen)
    except ValueError:
        return False
    return columns.image is not None and bool(columns.captions)


def parquet_rows(name: object, content: Any, chosen: ChosenColumns = BY_NAME) -> list[Row]:
    """The rows of a Parquet file, with the used columns only.

    Args:
        name: The file's name in messages.
        content: Its bytes, or its path.
        chosen: Column names given by the user.

    Raises:
        ValueError: It is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            names = tuple(file.schema_arrow.names)
            columns = find_columns(names, *chosen)
            if columns.image is None or not columns.captions:
                return [Row("row 1", dict.fromkeys(names))]  # will be rejected with the names of its columns
            used = (
                columns.image,
                *columns.captions,
                columns.split,
                columns.image_id,
                columns.weights,
                columns.labels,
                "error",
            )
            table = file.read([each for each in names if each in used])
        return rows_of_objects(table.to_pylist())
    except Exception as error:  # pyarrow raises its own errors, as well as ValueError and OSError
        if isinstance(error, ValueError) and not isinstance(error, pyarrow.ArrowException):
            raise
        raise ValueError(f"{name} can't be read, it may be damaged ({reason_of(error)}).") from error


def table_rows(name: object, content: bytes, chosen: ChosenColumns = BY_NAME) -> Any:
    """The rows of a table, or the value of a JSON file, which may have another layout.

    Args:
        name: The file's name in messages.
        content: Its bytes.
        chosen: Column names given by the user.

    Raises:
        ValueError: It can't be read; says where.
    """
    if content.startswith(ZIP) and is_workbook(content):
        return workbook_rows(name, content, chosen)
    if content.startswith(PARQUET):
        return parquet_rows(name, content, chosen)
    text = decode_text(content, name)
    if text.lstrip().startswith(("{", "[")) or str(name).lower().endswith((".json", ".jsonl", ".ndjson")):
        content = parse_json(name, text)
        is_list = isinstance(content, list) and all(isinstance(each, Mapping | Row) for each in content)
        if str(name).lower().endswith((".jsonl", ".ndjson")) and not (is_list or isinstance(content, Mapping)):
            return list(json_lines(name, text))  # will be rejected with the line number
        return content
    return list(separated_rows(name, text, chosen))


class UnknownColumnsError(ValueError):
    """A table without a recognized image or caption column.

    Args:
        name: Name of the table in the message.
        names: Names of its columns.
        columns: The recognized columns.
        known: Description of the known columns.

    Attributes:
        option: The option that names the column, `image_column` or `caption_column`.
    """

    def __init__(self, name: object, names: Iterable[str], columns: Any, known: str):
        names = list(names)
        what, self.option = ("captions", "caption_column") if columns.image else ("image path", "image_column")
        self._parts = f"{name} has no {what} in a known layout", f"Columns found: {shown_names(names)}. Known: {known}."
        self._is_row = any(map(looks_like_image, names))
        super().__init__(self.with_remedy(f"{self.option}="))

    def with_remedy(self, option: str) -> str:
        """The message with the option as typed by the caller."""
        above = ", and put a row with the columns' names above the first, which has an image" if self._is_row else ""
        problem, columns = self._parts
        return f"{problem}: name the column with {option}{above}. {columns}"
