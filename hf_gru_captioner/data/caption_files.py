"""Reads images and captions from files that `datasets` doesn't support, as `ImageEntry`s.

Layouts, each recognized by its content:

- a table of image paths and captions, one row per caption or one per image, in any format of `tables.py`, such as
  `gru-captioner caption --output` writes;
- `{name: caption}` or `{name: [caption, ...]}` in JSON;
- COCO captions (https://cocodataset.org/#format-data);
- Karpathy's json (https://cs.stanford.edu/people/karpathy/deepimagesent/);
- the Flickr8k token file with its split lists (Hodosh et al., 2013), and Kaggle's `captions.txt` of the same images;
- text files beside the images, `photo.txt` or `photo.caption`, one caption per line.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..coco import parse_annotations
from ..errors import counted, listed
from .columns import (
    IMAGE_NAMES,
    IMAGE_SUFFIXES,
    KNOWN_LAYOUTS,
    SPLIT_NAMES,
    WORDLESS,
    caption_weights_of,
    find_columns,
    has_words,
    is_list_of_text,
    looks_like_image,
    shown,
    shown_names,
    texts_of,
)
from .encodings import decode_text
from .folders import DiskFolder, Folder, plain_file_name, with_slashes
from .tables import (
    BY_NAME,
    ChosenColumns,
    Row,
    UnknownColumnsError,
    parquet_rows,
    rows_of_cells,
    rows_of_columns,
    rows_of_objects,
    table_rows,
)

KNOWN_JSONS = (
    "COCO captions {images, annotations}, Karpathy's {images: [{filename, split, sentences}]}, "
    "a list of {image, caption}, {name: caption}"
)
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".xlsx", ".parquet", ".txt", ".token")
SUFFIXES = (*TABLES, ".zip", ".tar")
KNOWN_FILES = (
    ".csv, .tsv, .jsonl, .ndjson, .json, .xlsx, .parquet, .txt (Flickr8k tokens or a table), .zip, .tar (webdataset)"
)
OTHER_TABLES = {  # unsupported formats that people have, and what to do
    **dict.fromkeys((".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".gsheet"), "save it as .xlsx or .csv"),
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"), "unpack it"),
    **dict.fromkeys((".doc", ".docx", ".odt", ".pdf", ".rtf"), "save its table as .csv"),
    **dict.fromkeys((".pkl", ".pickle", ".npy", ".npz", ".db", ".sqlite", ".feather"), "write it as .csv or .parquet"),
}
TEXT_FOLDERS = ("annotations", "Flickr8k_text")  # hold captions only; their images are one level up
SIDECARS = (".txt", ".caption", ".json")  # files with captions of the photo of the same name, by precedence
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "photo", "pictures")  # beside folders of captions
CAPTION_FOLDERS = ("captions", "caption", "texts", "text", "txt", "prompts", "descriptions")
NUMBERS = re.compile(r"(?:[-+\d.eE]+[ \t]+){3,}[-+\d.eE]+\s*(?:[-+\d.eE]+\s+)*[-+\d.eE]*\s*")  # four or more
NOT_CAPTIONS = re.compile(r"(readme|licen[sc]e|changelog|notice|requirements)\b.*|(dataset_infos?|state)\.json", re.I)
USUAL_TABLES = (
    *("*.token.txt", "*.token", "captions.txt", "captions.csv", "captions.tsv", "captions.jsonl", "captions.ndjson"),
    *("captions.xlsx", "captions.json"),
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.ndjson", "metadata.json", "metadata.xlsx")
TOKEN_LINE = re.compile(r"(?P<path>\S+)#\d+\t(?P<caption>.*)")
LFS_POINTER = b"version https://git-lfs.github.com/"
NAMED_ROWS = 5  # listed in a notice


class ImageEntry(NamedTuple):
    """An image of a caption file."""

    path: str  # as in the file; "" if missing
    captions: tuple[str, ...]
    split: str | None  # None if unknown
    image_id: str
    caption_weights: tuple[float, ...] | None = None  # None: 1 each
    labels: tuple[str, ...] | None = None  # None if unknown
    where: str = ""  # its first row, such as "row 7"
    problem: str | None = None  # why it can't be used


@dataclass
class Captions:
    """The content of a source's files.

    Attributes:
        entries: The images, in the order of the files.
        folder: Where images are searched first.
        notices: Sentences about what was skipped or may be a mistake.
        columns: How the columns were interpreted, if there are several candidates.
    """

    entries: list[ImageEntry]
    folder: Folder
    notices: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


def split_of(name: str) -> str | None:
    """`train`, `validation` or `test` if the name contains such a word: `captions_val2017.json` -> `validation`."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def caption_files(folder: Folder) -> list[str]:
    """The files of a folder that contain its captions, by relative path; empty if there are none.

    Raises:
        ValueError: Several tables are candidates; names them. Or the only ones can't be read; with the reason.
    """
    names = folder.names
    for year in ("2017", "2014"):
        if coco := [name for name in names if re.fullmatch(rf"annotations/captions_.*{year}\.json", name)]:
            return coco
    top = [name for name in names if os.path.dirname(name) in ("", *TEXT_FOLDERS)]
    for pattern in USUAL_TABLES:
        if tables := [name for name in top if PurePosixPath(name.lower()).match(pattern)]:
            return sorted(tables, key=lambda name: ("/" in name, name))[:1]
    for name in top:
        if PurePosixPath(name).match("dataset*.json") and _is_karpathy(folder, name):
            return [name]
    if metadata := [name for name in names if PurePosixPath(name).name.lower() in METADATA]:
        return metadata
    return _other_tables(folder)


def _other_tables(folder: Folder) -> list[str]:
    """Tables with other names in a folder or in the folders of its splits."""
    images = {os.path.splitext(name)[0] for name in folder.names if name.lower().endswith(IMAGE_SUFFIXES)}
    folders = {each.split("/")[0] for each in folder.names if "/" in each}
    tables, faults = [], []
    for name in folder.names:
        stem, suffix = os.path.splitext(name)
        parent = os.path.dirname(name)
        if (
            suffix.lower() not in TABLES
            or (parent and parent.lower() not in SPLIT_NAMES and parent not in TEXT_FOLDERS)
            or NOT_CAPTIONS.fullmatch(os.path.basename(name))
            or _is_about(name, folders)
            or re.fullmatch(r".*\.(train|dev|test)Images\.txt", name)
            or (suffix.lower() in SIDECARS and (stem in images or os.path.splitext(stem)[0] in images))
        ):
            continue
        try:
            read_table(folder, name)
        except (OSError, ValueError) as error:
            if suffix.lower() not in (".txt", ".json"):  # these are often something else
                faults.append(error)
            continue
        tables.append(name)
    if len(tables) > 1 and len({split_of(name) for name in tables} - {None}) < len(tables):
        raise ValueError(
            f"{folder.path} has several tables of captions: name one of them instead of the folder, or call them by "
            f"their splits (train.csv, validation.csv). Found: {shown_names(tables)}."
        )
    if faults and not tables:
        raise faults[0]
    return tables


def _is_about(name: str, folders: Collection[str]) -> bool:
    """Whether a table describes a folder of images, such as img2dataset's `00000.parquet` and `00000_stats.json`."""
    match = re.fullmatch(r"(\d+)(?:\.parquet|_stats\.json)", name)
    return match is not None and match[1] in folders


def read_captions(source: Path, chosen: ChosenColumns = BY_NAME) -> Captions | None:
    """The captions in a file, a folder or a ZIP archive with the images; None if a folder has another layout.

    Raises:
        ValueError: As in [`read_caption_file`], or there are several tables in the folder.
    """
    if source.is_file() and source.suffix.lower() != ".zip":
        folder: Folder = DiskFolder(source.parent)
        captions = Captions([], folder)
        _read_into(captions, source.name, str(source), chosen, lambda entry: entry)
        return captions
    folder = DiskFolder(source) if source.is_dir() else _archive(source)
    names = caption_files(folder)
    captions = Captions([], folder)
    for name in names:
        parent = os.path.dirname(name)
        is_nested = bool(parent) and parent not in TEXT_FOLDERS
        in_parent = parent.split("/")[0].lower() if is_nested else ""

        def placed(entry: ImageEntry, parent=parent, is_nested=is_nested, in_parent=in_parent) -> ImageEntry:
            split = entry.split or SPLIT_NAMES.get(in_parent)
            if not is_nested or not entry.path or with_slashes(entry.path).startswith(("/", "http")):
                return entry._replace(split=split)
            path = f"{parent}/{with_slashes(entry.path)}"
            image_id = path if entry.image_id == entry.path else entry.image_id
            return entry._replace(path=path, image_id=image_id, split=split)

        shown_name = f"{folder.path}/{name}"
        _read_into(captions, name, shown_name, chosen, placed, in_one=len(names) == 1)
    if names:
        captions.columns += _beside(folder, names)
        return captions
    return _sidecars(folder)


def _beside(folder: Folder, names: Sequence[str]) -> list[str]:
    """A sentence about other possible caption files that are not read, if there are any."""
    images = {os.path.splitext(name)[0] for name in folder.names if name.lower().endswith(IMAGE_SUFFIXES)}
    tables, sidecars = [], []
    for name in folder.names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in (".txt", ".caption") and stem in images:
            sidecars.append(name)
        elif (
            suffix.lower() in TABLES
            and name not in names
            and os.path.dirname(name) in {os.path.dirname(each) for each in names}
            and any(PurePosixPath(os.path.basename(name).lower()).match(each) for each in (*USUAL_TABLES, *METADATA))
        ):
            tables.append(name)
    others = [*([f"text files beside {counted(len(sidecars), 'image')}"] if sidecars else []), *tables]
    if not others:
        return []
    return [f"{folder.path}: captions from {shown_names(names)}; not read: {shown_names(others)}"]


def _archive(path: Path) -> Folder:
    from .folders import Archive

    return Archive(path)


def _read_into(
    captions: Captions,
    name: str,
    shown_name: str,
    chosen: ChosenColumns,
    placed: Callable[[ImageEntry], ImageEntry],
    in_one: bool = True,
) -> None:
    reading = read_table(captions.folder, name, chosen, shown_name)
    where = "" if in_one else f"{name}, "
    captions.entries += [
        placed(entry._replace(where=where + entry.where if entry.where else "")) for entry in reading.entries
    ]
    captions.notices += reading.notices
    captions.columns += reading.columns


def read_caption_file(path: Path, chosen: ChosenColumns = BY_NAME) -> list[ImageEntry]:
    """Reads a caption file.

    Raises:
        ValueError: The file's layout is unknown; shows the columns or top-level keys found. Or a name or caption in it
            is invalid; shows where.
    """
    return read_table(DiskFolder(path.parent), path.name, chosen, str(path)).entries


def read_table(folder: Folder, name: str, chosen: ChosenColumns = BY_NAME, shown_name: str | None = None) -> "_Reading":
    """Reads a caption file in a folder, like [`read_caption_file`].

    Args:
        folder, name: The folder, and the file's name in it.
        chosen: Column names given by the user.
        shown_name: The file's name in messages.

    Raises:
        ValueError: As in [`read_caption_file`].
    """
    path = shown_name or f"{folder.path}/{name}"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in TABLES:
        remedy = f": {OTHER_TABLES[suffix]}" if suffix in OTHER_TABLES else ""
        raise ValueError(f"{path} is not a known kind of caption file{remedy}. Known: {KNOWN_FILES}.")
    reading = _Reading(path, split_of(PurePosixPath(name).stem))
    if suffix == ".parquet" and isinstance(folder, DiskFolder):
        _add_rows(reading, parquet_rows(path, folder.path / name, chosen), chosen)
    else:
        content = folder.read(name)
        if not content.strip():
            raise ValueError(f"{path} is empty.")
        if content.startswith(LFS_POINTER):
            raise ValueError(f"{path} is a Git LFS pointer instead of the file: git lfs pull fetches it.")
        is_text = suffix in (".txt", ".token")
        if not (is_text and _add_tokens(reading, decode_text(content, path))):
            _add_content(reading, table_rows(path, content, chosen), chosen)
        if is_text:
            _keep_listed(reading, folder, os.path.dirname(name))
    reading.finish()
    return reading


class _Reading:
    """Collects the images of a file while it is read.

    Args:
        path: The file's name in messages.
        split: Split of images for which the file gives none.
    """

    def __init__(self, path: str, split: str | None = None):
        self.path = path
        self.split = split
        self.columns: list[str] = []
        self._entries: dict[tuple[str, str | None], ImageEntry] = {}
        self._empty: list[tuple[tuple[str, str | None], str]] = []
        self._wordless: list[tuple[tuple[str, str | None], str]] = []
        self._texts: dict[tuple[str, str | None], str] = {}  # an example of a text without words
        self.num_failed = 0  # rows with an error instead of a caption, from `gru-captioner caption --output`
        self.entries: list[ImageEntry] = []
        self.notices: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: ImageEntry, texts: Sequence[str]) -> None:
        """Adds a row.

        Args:
            entry: Its image.
            texts: Its captions, including those that will be dropped.
        """
        try:
            "".join((entry.path, entry.image_id, entry.split or "", *texts)).encode()
        except UnicodeEncodeError as error:  # JSON can contain a lone surrogate, which can't be encoded
            raise ValueError(
                f"{self.path}{', ' * bool(entry.where)}{entry.where}: image {shown(entry.path)} contains half of a "
                "surrogate pair."
            ) from error
        key = (with_slashes(entry.path) or entry.where, entry.split)
        for text in texts:
            if not has_words(text):
                (self._wordless if text else self._empty).append((key, entry.where or shown(entry.path)))
                if text:
                    self._texts.setdefault(key, text)
        entry = entry._replace(captions=tuple(filter(has_words, texts)))
        known = self._entries.get(key)
        self._entries[key] = _merged(known, entry) if known else entry

    def keep(self, splits: Mapping[str, str]) -> None:
        """Keeps only these images, and assigns them to their splits."""
        self._entries = {
            (name, splits[name]): entry._replace(split=splits[name])
            for (name, _), entry in self._entries.items()
            if name in splits
        }

    def finish(self) -> None:
        """Lists the images, and notes what was dropped from those that are used."""
        if not self._entries:
            raise ValueError(f"{self.path} has no rows" + (" with captions." if self.num_failed else "."))
        if self.num_failed:
            failed = counted(self.num_failed, "row has", "rows have")
            self.notices.append(f"{self.path}: {failed} an error in place of a caption, and left out.")
        for key, text in self._texts.items():
            if key in self._entries and not self._entries[key].captions:
                problem = f"no caption with a word: {shown(text)}"
                self._entries[key] = self._entries[key]._replace(problem=self._entries[key].problem or problem)
        self.entries = list(self._entries.values())
        used = {key for key, entry in self._entries.items() if entry.captions}
        for dropped, what in (
            (self._empty, "empty"),
            (self._wordless, WORDLESS),
        ):
            rows = [where for key, where in dropped if key in used]
            if rows:
                self.notices.append(
                    f"{self.path}: {counted(len(rows), 'caption is', 'captions are')} {what}, and left "
                    f"out ({listed(rows, NAMED_ROWS)})."
                )
        lost = [entry.where for entry in self.entries if any("\ufffd" in caption for caption in entry.captions)]
        if lost:
            self.notices.append(
                f"{self.path}: {counted(len(lost), 'image has a caption', 'images have captions')} with \ufffd in "
                f"place of letters that another program lost ({listed(lost, NAMED_ROWS)})."
            )
        in_splits: dict[str, list[ImageEntry]] = {}
        for (name, _), entry in self._entries.items():
            in_splits.setdefault(name, []).append(entry)
        shared = [entries for entries in in_splits.values() if len(entries) > 1]
        if shared:
            places = [
                f"{shown(entries[0].path)} "
                + ", ".join(f"in {entry.split or 'no split'} ({entry.where})" for entry in entries)
                for entries in shared
            ]
            self.notices.append(
                f"{self.path}: {counted(len(shared), 'image is', 'images are')} in two splits, so "
                f"that scores on them say little: {listed(places, NAMED_ROWS, '; ')}."
            )


def _merged(first: ImageEntry, second: ImageEntry) -> ImageEntry:
    """Merges two rows of the same image."""
    weights = None
    if first.caption_weights or second.caption_weights:
        both = ((each.caption_weights or (1.0,) * len(each.captions)) for each in (first, second))
        weights = tuple(weight for each in both for weight in each)
    labels = second.labels if first.labels is None else first.labels
    return first._replace(captions=first.captions + second.captions, caption_weights=weights, labels=labels)


def merged_files(entries: Iterable[ImageEntry], file_of: Callable[[ImageEntry], str]) -> list[ImageEntry]:
    """Merges images of the same file, such as paths that differ only in case."""
    merged: dict[str, ImageEntry] = {}
    for entry in entries:
        file = file_of(entry)
        merged[file] = _merged(merged[file], entry) if file in merged else entry
    return list(merged.values())


def _add_content(reading: _Reading, content: Any, chosen: ChosenColumns) -> None:
    """Adds the result of [`table_rows`]: rows, or a JSON value."""
    path = reading.path
    if isinstance(content, list) and all(isinstance(row, Row) for row in content):
        return _add_rows(reading, content, chosen)
    if isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        return _add_rows(reading, rows_of_objects(content), chosen)
    if isinstance(content, Mapping) and set(content) == {"columns", "index", "data"}:  # as pandas splits a table
        content = [content["columns"], *content["data"]] if isinstance(content["data"], list) else content
    if isinstance(content, list) and content and all(isinstance(row, list) for row in content):
        return _add_rows(reading, rows_of_cells(content, chosen), chosen)
    if isinstance(content, Mapping) and "images" in content:
        if "annotations" in content:
            return _add_coco(reading, content)
        images = _objects(path, content, "images")
        if images and "sentences" in images[0]:
            return _add_karpathy(reading, images)
        return _add_rows(reading, rows_of_objects(images), chosen)
    if isinstance(content, Mapping):
        if rows := rows_of_columns(content):
            return _add_rows(reading, rows, chosen)
        objects = [value for value in content.values() if isinstance(value, Mapping)]
        are_objects = bool(content) and len(objects) == len(content)
        if are_objects and not any(map(looks_like_image, content)):
            columns = find_columns(tuple(objects[0]), *chosen) if chosen == BY_NAME else None
            if columns is None or (columns.image and columns.captions):  # keyed by row number or name
                return _add_rows(reading, rows_of_objects(objects), chosen)
            if columns.captions:
                return _add_names(reading, content)
        if any(map(looks_like_image, content)) or (content and all(str(key).isdigit() for key in content)):
            return _add_names(reading, content)
        tables = [value for value in content.values() if isinstance(value, list) and value]
        if len(tables) == 1 and all(isinstance(row, Mapping) for row in tables[0]):
            return _add_rows(reading, rows_of_objects(tables[0]), chosen)
    keys = content if isinstance(content, Mapping) else [type(content).__name__]
    raise ValueError(f"{path} has an unknown layout. Top-level keys found: {shown_names(keys)}. Known: {KNOWN_JSONS}.")


def _add_rows(reading: _Reading, rows: Iterable[Row], chosen: ChosenColumns) -> None:
    for where, cells in rows:
        place = f"{reading.path}, {where}"
        names = tuple(map(str, cells))
        try:
            columns = find_columns(names, *chosen)
        except ValueError as error:
            raise ValueError(f"{reading.path}: {error}") from error
        if columns.image is not None and cells.get("error") and not any(cells[each] for each in columns.captions):
            reading.num_failed += 1
            continue
        if not reading and (columns.image is None or not columns.captions):
            known = f"an image path ({', '.join(IMAGE_NAMES)}) and {KNOWN_LAYOUTS}"
            raise UnknownColumnsError(reading.path, names, columns, known)
        if not reading and (others := _not_read(names, columns)):
            reading.columns.append(
                f"{reading.path}: images from column {columns.image!r}, captions from "
                f"{', '.join(map(repr, columns.captions))}; not read: {shown_names(others)}"
            )
        name = _name(place, cells, columns.image) if columns.image and cells[columns.image] not in (None, "") else ""
        split = _name(place, cells, columns.split) if columns.split and cells[columns.split] else None
        if columns.split is None and columns.maybe_split and isinstance(cells[columns.maybe_split], str):
            maybe = cells[columns.maybe_split].strip()
            split = maybe if maybe.lower() in SPLIT_NAMES else None
        has_id = columns.image_id and cells[columns.image_id] not in (None, "")
        captions = [cells[column] for column in columns.captions]
        if columns.weights is None and any(not _is_blank(cell) for cell in captions):
            captions = [cell for cell in captions if not _is_blank(cell)]  # numbered columns may be partly blank
        labels = cells[columns.labels] if columns.labels else None
        entry = ImageEntry(
            name,
            (),
            SPLIT_NAMES.get(split, SPLIT_NAMES.get(split.lower(), split)) if split else reading.split,
            _name(place, cells, columns.image_id or "") if has_id else with_slashes(name) or where,
            _caption_weights(place, cells[columns.weights], captions) if columns.weights else None,
            tuple(labels) if is_list_of_text(labels) else None,
            where,
            None if name else "no image path",
        )
        reading.add(entry, _texts(place, captions) or [""])


def _is_blank(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _not_read(names: Sequence[str], columns: Any) -> list[str]:
    """Unused columns that might have been intended instead."""
    unused = tuple(name for name in names if name not in columns.captions and name != columns.image)
    others = find_columns(unused)
    return [name for name in (others.image, *others.captions) if name is not None]


def _add_names(reading: _Reading, content: Mapping[str, Any]) -> None:
    """Adds `{name: caption}`, `{name: [caption, ...]}` or `{name: {"caption": ...}}`."""
    for number, (name, value) in enumerate(content.items(), 1):
        where = f"row {number}"
        cells = [value]
        if isinstance(value, Mapping):
            columns = find_columns(tuple(value))
            if not columns.captions:
                raise ValueError(
                    f"{reading.path}, {where} ({shown(name)}) has no captions. Columns found: {shown_names(value)}. "
                    f"Known: {KNOWN_LAYOUTS}."
                )
            cells = [value[column] for column in columns.captions]
        texts = _texts(f"{reading.path}, {where} ({shown(name)})", cells)
        reading.add(ImageEntry(name, (), reading.split, with_slashes(name), where=where), texts)


def _objects(path: str, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = content[key]
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f'{path}: "{key}" is not a list of objects, found {shown(rows)}.')
    return rows


def _add_coco(reading: _Reading, content: Mapping[str, Any]) -> None:
    images, captions = parse_annotations(reading.path, content)
    for number, (image_id, row) in enumerate(images.items(), 1):
        where = f"image {number}"
        name = _name(f"{reading.path}, image {image_id}", row, "file_name")
        texts = texts_of([list(captions[image_id])])
        reading.add(ImageEntry(name, (), reading.split, image_id, where=where), texts)


def _add_karpathy(reading: _Reading, images: list[Mapping[str, Any]]) -> None:
    for number, image in enumerate(images, 1):
        where = f"image {number}"
        place = f"{reading.path}, {where}"
        name = _name(place, image, "filename")
        folder = _name(place, image, "filepath") if "filepath" in image else ""
        split = _name(place, image, "split") if "split" in image else None
        image_id = _name(place, image, "cocoid") if "cocoid" in image else name
        entry = ImageEntry(
            os.path.join(folder, name), (), SPLIT_NAMES.get(split, split) if split else None, image_id, where=where
        )
        reading.add(entry, _texts(place, [image.get("sentences")]))


def _is_karpathy(folder: Folder, name: str) -> bool:
    if isinstance(folder, DiskFolder):
        with (folder.path / name).open("rb") as file:  # COCO's file has 140 MB
            beginning = file.read(1 << 16)
    else:
        beginning = folder.read(name)[: 1 << 16]
    return b'"images"' in beginning and b'"sentences"' in beginning


def _add_tokens(reading: _Reading, text: str) -> bool:
    """Adds the images of a token file; False if the first line is not `name.jpg#0<tab>caption`."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        match = TOKEN_LINE.fullmatch(line)
        if match:
            texts = _texts(f"{reading.path}, row {number}", [match["caption"]])
            reading.add(ImageEntry(match["path"], (), None, match["path"], where=f"row {number}"), texts)
        elif not reading:
            return False
        elif line.strip():
            raise ValueError(
                f"{reading.path}, row {number}: found {line.strip()[:60]!r} in line {number}, not "
                "name.jpg#0<tab>caption."
            )
    return bool(reading)


def _keep_listed(reading: _Reading, folder: Folder, parent: str) -> None:
    """Assigns images to the splits in Flickr8k's lists, if there are any; images in no list are then skipped."""
    listed: dict[str, str] = {}
    folders = [parent, *(f"{parent}/{name}".strip("/") for name in TEXT_FOLDERS)]
    for name in _files_in(folder, folders):
        match = re.fullmatch(r".*\.(train|dev|test)Images\.txt", os.path.basename(name))
        if match:
            names = decode_text(folder.read(name), f"{folder.path}/{name}").split()
            listed.update(dict.fromkeys(names, SPLIT_NAMES[match[1]]))
    if listed:
        reading.keep(listed)


def _files_in(folder: Folder, parents: Sequence[str]) -> list[str]:
    """The files directly in these folders."""
    if not isinstance(folder, DiskFolder):
        return [name for name in folder.names if os.path.dirname(name) in parents]
    return [
        os.path.join(parent, path.name)
        for parent in parents
        if (folder.path / parent).is_dir()
        for path in sorted((folder.path / parent).glob("*Images.txt"))
    ]


def _sidecars(folder: Folder) -> Captions | None:
    """Images with captions in text files beside them; None if no image has one."""
    images: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for name in folder.names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(stem, []).append(name)
        elif suffix.lower() in SIDECARS and not NOT_CAPTIONS.fullmatch(os.path.basename(name)):
            texts.setdefault(stem, []).append(name)
    by_plain_name: dict[str, list[str]] = {}  # images by normalized stem
    bare: dict[str, list[str]] = {}  # the same without a folder such as `images`
    for stem, files in images.items():
        by_plain_name.setdefault(plain_file_name(stem), []).extend(files)
        bare.setdefault(_without_folder(stem, IMAGE_FOLDERS), []).extend(files)
    sidecars: dict[str, list[str]] = {}  # by image
    unmatched: list[str] = []
    for stem, files in texts.items():
        partners = images.get(stem) or ([stem] if stem.lower().endswith(IMAGE_SUFFIXES) else [])  # photo.jpg.txt
        if not partners:
            similar = by_plain_name.get(plain_file_name(stem), [])
            if not similar and (inside := _without_folder(stem, CAPTION_FOLDERS)) != plain_file_name(stem):
                similar = bare.get(inside, [])
            partners = similar if len(similar) == 1 else []
        for image in partners:
            sidecars.setdefault(image, []).extend(files)
        if not partners:
            unmatched += [name for name in files if not name.lower().endswith(".json")]
    if not any(image in sidecars for each in images.values() for image in each):
        return None
    reading = _Reading(str(folder.path))
    for image in sorted(name for each in images.values() for name in each):
        split = SPLIT_NAMES.get(image.split("/")[0].lower()) if "/" in image else None
        files = sorted(sidecars.get(image, ()), key=lambda name: SIDECARS.index(os.path.splitext(name)[1].lower()))
        if len(files) > 1:
            files = [name for name in files if not name.lower().endswith(".json")]
        beside = ", ".join(map(os.path.basename, files))
        captions = [text for name in files for text in _sidecar_captions(folder, name)]
        problem = None if files else "no caption: no text file beside it"
        reading.add(ImageEntry(image, (), split, image, where=beside, problem=problem), captions)
    for name in unmatched:
        reading.add(ImageEntry("", (), None, name, where=name, problem="a text file without a photo of its name"), [])
    reading.finish()
    return Captions(reading.entries, folder, reading.notices)


def _without_folder(stem: str, folders: Sequence[str]) -> str:
    """A normalized path without the first folder that has one of these names."""
    *parents, name = plain_file_name(stem).split("/")
    index = next((index for index, each in enumerate(parents) if each in folders), len(parents))
    return "/".join([*parents[:index], *parents[index + 1 :], name])


def _sidecar_captions(folder: Folder, name: str) -> list[str]:
    path = f"{folder.path}/{name}"
    text = decode_text(folder.read(name), path)
    if not name.lower().endswith(".json"):
        if NUMBERS.fullmatch(text):
            raise ValueError(f"{path} has numbers alone, as the boxes of a detector: captions are words.")
        return captions_in_text(path, text)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    columns = find_columns(tuple(content)) if isinstance(content, Mapping) else None
    cells = [content] if columns is None else [content[column] for column in columns.captions]
    return _texts(path, cells)


def captions_in_text(path: object, text: str) -> list[str]:
    """The captions in a text file that belongs to one image, one per line."""
    return _texts(str(path), [line for line in text.splitlines() if line.strip()] or [""])


def _name(place: str, row: Mapping[str, Any], key: str) -> str:
    """A file name, an id or a split, given as text or a number."""
    value = row.get(key)
    if not isinstance(value, str | int | float):
        raise ValueError(f'{place}: "{key}" must be text or a number, found {shown(value)}.')
    return str(value).strip()


def _texts(place: str, cells: Iterable[Any]) -> list[str]:
    try:
        return texts_of(cells)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _caption_weights(place: str, cell: Any, captions: Iterable[Any]) -> tuple[float, ...] | None:
    try:
        if isinstance(cell, str):  # in a CSV file: a number, or a list in brackets
            cell = json.loads(cell or "null")
        return None if cell is None else tuple(caption_weights_of(cell, captions))
    except (ValueError, RecursionError) as error:  # the latter for deeply nested brackets
        raise ValueError(f"{place}: {error}") from error
