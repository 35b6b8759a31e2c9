"""Images and captions of files that `datasets` has no reader for, as `ImageEntry`s.

Formats, each recognised by its content:

- a table (CSV, TSV, JSON lines, Parquet) of image paths and captions, one row per caption or one per image, such as
  `gru-captioner caption --output` writes; its rows of images that could not be read are passed over;
- COCO captions (https://cocodataset.org/#format-data), a file or the data set's root folder;
- Karpathy's json (https://cs.stanford.edu/people/karpathy/deepimagesent/);
- the Flickr8k token file with its split lists (Hodosh et al., 2013), and Kaggle's `captions.txt` of the same images.
"""

import csv
import itertools
import json
import logging
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import pyarrow
import pyarrow.parquet

from ..coco import parse_annotations
from ..errors import brief
from ..untrusted_images import ADDRESSES, MAX_CAPTION

_logger = logging.getLogger(__name__)

KNOWN_LAYOUTS = (
    "captions (a list of strings), caption, text or txt (a string or a list), caption_0 ... caption_4 (strings), "
    "sentences (a list of strings or of {'raw': string})"
)
PATH_COLUMNS = (
    *("file_name", "filename", "image", "filepath", "file_path", "path", "image_path", "image_file"),
    *("image_name", "img", "img_path", "photo"),
)
KNOWN_JSONS = (
    "COCO captions {images, annotations}, Karpathy's {images: [{filename, split, sentences}]}, "
    "a list of {image, caption}"
)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".token", ".tar")
KNOWN_FILES = ".csv, .tsv, .jsonl, .json, .parquet, .txt (Flickr8k tokens or a table), .tar (webdataset)"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
USUAL_FOLDERS = (
    *("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset"),
    *("flickr30k-images", "flickr30k_images", "train2017", "val2017", "train2014", "val2014"),
)
TEXT_FOLDERS = ("annotations", "Flickr8k_text")  # hold captions only; their images are one level up
MAX_WEIGHT = 1000.0  # of a caption
MAX_SHOWN = 60  # characters of what a message shows
NAMES_SHOWN = 20  # columns or keys that a message shows
TOKEN_LINE = re.compile(r"(?P<path>\S+)#\d+\t(?P<caption>.*)")


class ImageEntry(NamedTuple):
    """An image of a caption file."""

    path: str  # as in the file
    captions: tuple[str, ...]
    split: str | None  # None if unknown
    image_id: str
    caption_weights: tuple[float, ...] | None = None  # None: 1 each
    labels: tuple[str, ...] | None = None  # None if unknown


class LocatedImage(NamedTuple):
    """An image with size and time of its file, so that another file of the same name is not mistaken for it."""

    path: str
    captions: tuple[str, ...]
    image_id: str
    num_bytes: int  # -1 if there is no such file
    mtime_ns: int
    caption_weights: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None


def split_of(name: str) -> str | None:
    """`train`, `validation` or `test` if a word of the name says so: `captions_val2017.json` -> `validation`."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def caption_files(source: Path) -> list[Path]:
    """The file itself, or the caption files of a folder; empty if the folder has another layout."""
    if source.is_file():
        return [source]
    for year in ("2017", "2014"):
        if coco := sorted((source / "annotations").glob(f"captions_*{year}.json")):
            return coco
    for folder in (source, *(source / name for name in TEXT_FOLDERS)):
        for pattern in ("*.token.txt", "*.token", "captions.txt", "captions.csv", "captions.tsv", "captions.jsonl"):
            if tables := sorted(folder.glob(pattern)):
                return tables[:1]
        karpathy = [path for path in sorted(folder.glob("dataset*.json")) if _is_karpathy(path)]
        if karpathy:
            return karpathy[:1]
    return []


def read_caption_file(path: Path) -> list[ImageEntry]:
    """Reads a caption file.

    Raises:
        ValueError: The layout of the file is unknown; shows the columns or top-level keys that were found. Or a text,
            a name or a caption in it is not one; shows where.
    """
    try:
        entries = _read_by_suffix(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not a caption file: its JSON is nested too deeply.") from error
    for entry in entries:
        try:
            "".join((entry.path, entry.image_id, entry.split or "", *entry.captions)).encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a character, which nothing can store
            raise ValueError(f"{path}: image {_shown(entry.path)} contains half of a surrogate pair.") from error
    return entries


def _read_by_suffix(path: Path) -> list[ImageEntry]:
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_table(path, _json_lines(path))
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path, _separated_lines(path))
    if path.suffix == ".parquet":
        return _read_table(path, _parquet_rows(path))
    if path.suffix in (".txt", ".token"):
        return _in_listed_splits(path, _read_tokens(path) or _read_table(path, _separated_lines(path)))
    raise ValueError(f"{path} is not a known kind of caption file. Known: {KNOWN_FILES}.")


def locate_images(
    entries: Sequence[ImageEntry], folder: Path, images: Path | None = None, outside: bool = True
) -> list[LocatedImage]:
    """Finds the files of images under `images`, otherwise in the usual folders beside the caption file in `folder`.

    URLs are returned as they are. With `outside`, paths may also be relative to the working directory, as those of
    `gru-captioner caption` are; without it, paths that lead out of these folders are searched for in them by their last
    component.

    Raises:
        FileNotFoundError: None of the files exists; names the folders that were searched.
    """
    roots = [images] if images is not None else [folder]
    if images is None and folder.name in TEXT_FOLDERS:
        roots.append(folder.parent)
    folders = [path for root in roots for name in USUAL_FOLDERS if (path := root / name).is_dir()]
    folders_of = {  # folders of another split last: names may recur in another split
        split: sorted(folders, key=lambda path, split=split: split_of(path.name) not in (None, split))  # type: ignore[misc]
        for split in {entry.split for entry in entries}
    }
    names = {os.path.basename(entry.path) for entry in entries}
    bare_names_are_unique = len(names) == len({entry.path for entry in entries})
    found = []
    for entry in entries:
        if entry.path.startswith(ADDRESSES):
            found.append(_with_file(entry, entry.path, 0, 0))
            continue
        leads_out = os.path.isabs(entry.path) or ".." in Path(entry.path).parts
        spellings = [] if leads_out and not outside else [entry.path]
        if bare_names_are_unique and os.path.dirname(entry.path):
            spellings.append(os.path.basename(entry.path))
        own_folders = folders_of[entry.split]
        if outside and images is None and os.path.isfile(entry.path) and not leads_out:
            own_folders = [*own_folders, Path.cwd()]
        found.append(_located(entry, spellings, own_folders, roots[0]))
    if entries and all(image.num_bytes < 0 for image in found):
        searched = ", ".join(str(root) for root in roots)
        subfolders = ", ".join(name for name in USUAL_FOLDERS if name)
        raise FileNotFoundError(
            f"None of the {len(entries)} images exists, the first is {entries[0].path!r}. Searched: {searched} and the "
            f"subfolders {subfolders}. Name the folder of the images with images=."
        )
    return found


def _located(entry: ImageEntry, spellings: Sequence[str], folders: Sequence[Path], root: Path) -> LocatedImage:
    """The first file of one of these names in one of these folders; otherwise the missing one below `root`."""
    candidates = (folder / spelling for spelling in spellings for folder in folders)
    path = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # never raises
    if path:
        state = path.stat()
        return _with_file(entry, str(path), state.st_size, state.st_mtime_ns)
    missing = root / (entry.path if spellings[:1] == [entry.path] else os.path.basename(entry.path))
    return _with_file(entry, str(missing), -1, -1)


def _with_file(entry: ImageEntry, path: str, num_bytes: int, mtime_ns: int) -> LocatedImage:
    return LocatedImage(path, entry.captions, entry.image_id, num_bytes, mtime_ns, entry.caption_weights, entry.labels)


def caption_columns(columns: Iterable[str]) -> list[str]:
    """The columns that hold captions in a known layout; empty if there are none."""
    columns = list(columns)
    for column in ("captions", "caption", "text", "txt", "sentences"):
        if column in columns:
            return [column]
    return sorted(column for column in columns if column.startswith("caption_") and column[8:].isdigit())


def captions_of(cells: Iterable[Any]) -> list[str]:
    """The captions in the cells of a row: strings, `{"raw": string}`, or lists of these; empty ones are skipped.

    Raises:
        ValueError: A caption is not text, or has more than 10,000 characters.
    """
    return [text for text in _texts_of(cells) if text]


def caption_weights_of(cell: Any, cells: Iterable[Any]) -> list[float]:
    """The weight of each caption that `captions_of(cells)` returns.

    Args:
        cell: The weights, one for each caption, empty captions included; null for 1 each; one number for one caption.
        cells: The captions.

    Raises:
        ValueError: Another number of weights, or one that is not above 0 and at most 1000.
    """
    texts = _texts_of(cells)
    weights = [1.0] * len(texts) if cell is None else cell if isinstance(cell, list | tuple) else [cell]
    if len(weights) != len(texts):
        raise ValueError(f"caption_weights must have a number for each caption, found {len(weights)} for {len(texts)}.")
    for weight in weights:
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight <= MAX_WEIGHT:
            raise ValueError(f"a caption weight must be above 0 and at most {MAX_WEIGHT:g}, found {_shown(weight)}.")
    return [float(weight) for weight, text in zip(weights, texts, strict=True) if text]


def is_list_of_text(value: Any) -> TypeGuard[Sequence[str]]:
    """Whether a value may be labels of an image."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _texts_of(cells: Iterable[Any]) -> list[str]:
    """As `captions_of`, with empty captions as empty strings."""
    captions: list[str] = []
    for cell in cells:
        if cell is None:
            continue
        is_one = isinstance(cell, str | Mapping) or not isinstance(cell, Iterable)
        for caption in [cell] if is_one else cell:
            text = caption.get("raw") or caption.get("sentence") if isinstance(caption, Mapping) else caption
            if text is None:
                text = ""
            if not isinstance(text, str):
                raise ValueError(f"a caption must be text, found {_shown(text)}.")
            if len(text) > MAX_CAPTION:
                raise ValueError(f"a caption has {len(text):,} characters, more than {MAX_CAPTION:,}.")
            captions.append(text.strip())
    return captions


def _read_json(path: Path) -> list[ImageEntry]:
    text = path.read_text("utf-8-sig")
    try:
        content = json.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
        raise ValueError(
            f"{path} is not one JSON value ({error}). If it is JSON lines, rename it to .jsonl."
        ) from error
    if isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        return _read_table(path, content)
    if isinstance(content, Mapping) and "images" in content:
        if "annotations" in content:
            return _read_coco(path, content)
        images = _rows(path, content, "images")
        if images and "sentences" in images[0]:
            return _read_karpathy(path, images)
    keys = content if isinstance(content, Mapping) else [type(content).__name__]
    raise ValueError(f"{path} has an unknown layout. Top-level keys found: {_names(keys)}. Known: {KNOWN_JSONS}.")


def _rows(path: Path, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = content[key]
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f'{path}: "{key}" is not a list of objects, found {_shown(rows)}.')
    return rows


def _read_coco(path: Path, content: Mapping[str, Any]) -> list[ImageEntry]:
    images, captions = parse_annotations(path, content)
    split = split_of(path.stem)
    return [
        ImageEntry(_name(f"{path}, image {image_id}", row, "file_name"), _stripped(captions[image_id]), split, image_id)
        for image_id, row in images.items()
    ]


def _read_karpathy(path: Path, images: list[Mapping[str, Any]]) -> list[ImageEntry]:
    entries = []
    for number, image in enumerate(images, 1):
        where = f"{path}, image {number}"
        name = _name(where, image, "filename")
        folder = _name(where, image, "filepath") if "filepath" in image else ""
        split = _name(where, image, "split") if "split" in image else None
        image_id = _name(where, image, "cocoid") if "cocoid" in image else name
        captions = _captions(where, [image.get("sentences")])
        entries.append(
            ImageEntry(os.path.join(folder, name), captions, SPLIT_NAMES.get(split, split) if split else None, image_id)
        )
    return entries


def _is_karpathy(path: Path) -> bool:
    with path.open("rb") as file:  # COCO's file has 140 MB
        beginning = file.read(1 << 16)
    return b'"images"' in beginning and b'"sentences"' in beginning


def _read_tokens(path: Path) -> list[ImageEntry]:
    """Images of a token file; empty if the first line is not `name.jpg#0<tab>caption`."""
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            match = TOKEN_LINE.fullmatch(line.rstrip("\r\n"))
            if match:
                captions.setdefault(match["path"], []).append(match["caption"])
            elif not captions:
                return []
            elif line.strip():
                raise ValueError(f"{path}, line {number}: found {line.strip()[:60]!r}, not name.jpg#0<tab>caption.")
    return [ImageEntry(name, tuple(captions_of(texts)), None, name) for name, texts in captions.items()]


def _in_listed_splits(path: Path, entries: list[ImageEntry]) -> list[ImageEntry]:
    """Images with the splits of Flickr8k's lists, if there are any; then images of no list are skipped."""
    listed: dict[str, str] = {}
    for folder in (path.parent, *(path.parent / name for name in TEXT_FOLDERS)):
        for word, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
            for names in folder.glob(f"*.{word}Images.txt"):
                try:
                    listed.update(dict.fromkeys(names.read_text("utf-8").split(), split))
                except UnicodeDecodeError as error:
                    raise ValueError(f"{names} is not UTF-8 text ({error}): save it as UTF-8.") from error
    if not listed:
        return entries
    return [entry._replace(split=listed[entry.path]) for entry in entries if entry.path in listed]


def _json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
            if not isinstance(row, Mapping):
                raise ValueError(f"{path}, line {number}: found {line.strip()[:60]!r}, not an object of columns.")
            yield row


def _separated_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        delimiter = max(",\t;|", key=header.count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        try:
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: more cells than the header's {len(row) - 1}. Quote "
                        f"captions that contain {delimiter!r}."
                    )
                yield {name.strip(): cell for name, cell in row.items()}
        except csv.Error as error:  # such as an unclosed quotation mark
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def _parquet_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    """Rows without those columns that hold something other than text and numbers, such as images."""
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            kinds = pyarrow.types
            columns = [
                column.name
                for column in table.schema_arrow
                if not (kinds.is_struct(column.type) or kinds.is_binary(column.type))
            ]
            for batch in table.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file: {brief(error)}.") from error


def _read_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[ImageEntry]:
    entries: dict[str, ImageEntry] = {}
    split_of_file = split_of(path.stem)
    num_failed = 0
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if row.get("error") and not any(row.get(column) for column in caption_columns(row)):
            num_failed += 1
            continue
        path_column = next((column for column in PATH_COLUMNS if column in row), None)
        captions = caption_columns(row)
        if path_column is None or not captions:
            raise ValueError(
                f"{path} has no {'captions' if path_column else 'image path'} in a known layout. "
                f"Columns found: {_names(row)}. Known: an image path ({', '.join(PATH_COLUMNS)}) and "
                f"{KNOWN_LAYOUTS}."
            )
        name = _name(where, row, path_column) if row[path_column] else ""
        split = _name(where, row, "split") if row.get("split") else None
        new = ImageEntry(
            name,
            _captions(where, (row[column] for column in captions)),
            SPLIT_NAMES.get(split, split) if split else split_of_file,
            _name(where, row, "image_id") if row.get("image_id") else name,
            _caption_weights(where, row, captions),
            tuple(row["labels"]) if is_list_of_text(row.get("labels")) else None,
        )
        known = entries.get(name)
        if known and known.split != new.split:
            raise ValueError(
                f"{path} has image {_shown(name)} in two splits, {_names([known.split])} and {_names([new.split])}."
            )
        entries[name] = _merged(known, new) if known else new
    if num_failed:
        _logger.warning("%s: %d rows have an error in place of a caption and are passed over", path, num_failed)
    if not entries:
        raise ValueError(f"{path} has no rows with captions." if num_failed else f"{path} has no rows.")
    return list(entries.values())


def _name(where: str, row: Mapping[str, Any], key: str) -> str:
    """A file name, an id or a split: text, or a number."""
    value = row.get(key)
    if not isinstance(value, str | int | float):
        raise ValueError(f'{where}: "{key}" must be text or a number, found {_shown(value)}.')
    return str(value)


def _captions(where: str, cells: Iterable[Any]) -> tuple[str, ...]:
    try:
        return tuple(captions_of(cells))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _caption_weights(where: str, row: Mapping[str, Any], captions: Iterable[str]) -> tuple[float, ...] | None:
    cell = row.get("caption_weights")
    try:
        if isinstance(cell, str):  # of a CSV file: a number, or a list in brackets
            cell = json.loads(cell or "null")
        return None if cell is None else tuple(caption_weights_of(cell, (row[column] for column in captions)))
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets
        raise ValueError(f"{where}: {error}") from error


def _merged(first: ImageEntry, second: ImageEntry) -> ImageEntry:
    """An image with the captions of two rows."""
    weights = None
    if first.caption_weights or second.caption_weights:
        both = ((each.caption_weights or (1.0,) * len(each.captions)) for each in (first, second))
        weights = tuple(weight for each in both for weight in each)
    labels = second.labels if first.labels is None else first.labels
    return first._replace(captions=first.captions + second.captions, caption_weights=weights, labels=labels)


def _stripped(captions: Iterable[str]) -> tuple[str, ...]:
    return tuple(captions_of([list(captions)]))


def _shown(value: Any) -> str:
    """A value of a file, whatever it is, short enough for a message."""
    text = reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _names(names: Iterable[Any]) -> str:
    shown = [" ".join(str(name)[:MAX_SHOWN].split()) for name in itertools.islice(names, NAMES_SHOWN + 1)]
    return ", ".join(shown[:NAMES_SHOWN]) + (" and more" if len(shown) > NAMES_SHOWN else "")
