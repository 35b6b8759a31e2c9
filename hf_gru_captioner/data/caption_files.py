"""Photos and captions of files that `datasets` has no reader for, as plain `Photo`s.

Read here, each recognised by what is in it:

- a table (CSV, TSV, JSON lines) of image paths and captions, one row a caption or one row a photo;
- COCO captions (https://cocodataset.org/#format-data), a file or the data set's root folder;
- Karpathy's json (https://cs.stanford.edu/people/karpathy/deepimagesent/);
- the Flickr8k token file with its split lists (Hodosh et al., 2013), and Kaggle's `captions.txt` of the same photos.
"""

import csv
import itertools
import json
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..untrusted_images import ADDRESSES, MAX_CAPTION

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
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".token", ".tar")
KNOWN_FILES = ".csv, .tsv, .jsonl, .json, .txt (Flickr8k tokens or a table), .tar (webdataset)"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
USUAL_FOLDERS = (
    *("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset"),
    *("flickr30k-images", "flickr30k_images", "train2017", "val2017", "train2014", "val2014"),
)
TEXT_FOLDERS = ("annotations", "Flickr8k_text")  # hold captions only; their photos are one level up
MAX_SHOWN = 60  # characters of what a message shows
NAMES_SHOWN = 20  # columns or keys that a message shows
TOKEN_LINE = re.compile(r"(?P<path>\S+)#\d+\t(?P<caption>.*)")


class Photo(NamedTuple):
    """A photo of a caption file."""

    path: str  # as the file writes it
    captions: tuple[str, ...]
    split: str | None  # None where nothing tells
    image_id: str


class FoundPhoto(NamedTuple):
    """A photo and what its file looked like, so that another file of the same name is not taken for it."""

    path: str
    captions: tuple[str, ...]
    image_id: str
    num_bytes: int  # -1 when there is no such file
    mtime_ns: int


def split_of(name: str) -> str | None:
    """`train`, `validation` or `test` where a word of the name says so: `captions_val2017.json` -> `validation`."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def caption_files(source: Path) -> list[Path]:
    """The file itself, or the caption files of a folder; none where the folder is laid out in another way."""
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


def read_photos(path: Path) -> list[Photo]:
    """Reads a caption file.

    Raises:
        ValueError: The file is laid out in no known way; shows the columns or top-level keys that were found. Or
            something in it is no text, no name or no caption; shows where.
    """
    try:
        photos = _read_by_suffix(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no file of captions: its json is nested too deeply.") from error
    for photo in photos:
        try:
            "".join((photo.path, photo.image_id, photo.split or "", *photo.captions)).encode()
        except UnicodeEncodeError as error:  # json may spell half of a character, which nobody can store
            raise ValueError(
                f"{path}: photo {_shown(photo.path)} has a half of a surrogate pair in its texts."
            ) from error
    return photos


def _read_by_suffix(path: Path) -> list[Photo]:
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix in (".jsonl", ".ndjson"):
        return _read_table(path, _json_lines(path))
    if path.suffix in (".csv", ".tsv"):
        return _read_table(path, _separated_lines(path))
    if path.suffix in (".txt", ".token"):
        return _in_listed_splits(path, _read_tokens(path) or _read_table(path, _separated_lines(path)))
    raise ValueError(f"{path} is no file of captions that is known. Known: {KNOWN_FILES}.")


def find_photos(
    photos: Sequence[Photo], home: Path, images: Path | None = None, outside: bool = True
) -> list[FoundPhoto]:
    """Finds the photos' files under `images`, or else in the usual places beside the caption file in folder `home`.

    Addresses stay as they are. Without `outside`, paths that lead out of these folders are looked for there by their
    last part.

    Raises:
        FileNotFoundError: Not one of them is there; names the places that were tried.
    """
    roots = [images] if images is not None else [home]
    if images is None and home.name in TEXT_FOLDERS:
        roots.append(home.parent)
    places = [place for root in roots for folder in USUAL_FOLDERS if (place := root / folder).is_dir()]
    places_of = {  # folders of another split last: names may come again in another split
        split: sorted(places, key=lambda place, split=split: split_of(place.name) not in (None, split))  # type: ignore[misc]
        for split in {photo.split for photo in photos}
    }
    names = {os.path.basename(photo.path) for photo in photos}
    bare_names_are_unique = len(names) == len({photo.path for photo in photos})
    found = []
    for photo in photos:
        if photo.path.startswith(ADDRESSES):
            found.append(FoundPhoto(photo.path, photo.captions, photo.image_id, 0, 0))
            continue
        leads_out = os.path.isabs(photo.path) or ".." in Path(photo.path).parts
        spellings = [] if leads_out and not outside else [photo.path]
        if bare_names_are_unique and os.path.dirname(photo.path):
            spellings.append(os.path.basename(photo.path))
        candidates = (place / spelling for spelling in spellings for place in places_of[photo.split])
        path = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # raises nothing
        if path:
            state = path.stat()
            found.append(FoundPhoto(str(path), photo.captions, photo.image_id, state.st_size, state.st_mtime_ns))
        else:
            missing = roots[0] / (photo.path if spellings[:1] == [photo.path] else os.path.basename(photo.path))
            found.append(FoundPhoto(str(missing), photo.captions, photo.image_id, -1, -1))
    if photos and all(photo.num_bytes < 0 for photo in found):
        tried = ", ".join(str(root) for root in roots)
        folders = ", ".join(folder for folder in USUAL_FOLDERS if folder)
        raise FileNotFoundError(
            f"None of the {len(photos)} photos is there, the first is {photos[0].path!r}. Places tried: {tried} and in "
            f"it {folders}. Say where the photos are with images=."
        )
    return found


def caption_columns(columns: Iterable[str]) -> list[str]:
    """The columns that hold captions in a known layout; none where there is no such column."""
    columns = list(columns)
    for column in ("captions", "caption", "text", "txt", "sentences"):
        if column in columns:
            return [column]
    return sorted(column for column in columns if column.startswith("caption_") and column[8:].isdigit())


def captions_of(cells: Iterable[Any]) -> list[str]:
    """The captions in the cells of a row: strings, `{"raw": string}`, or lists of these; empty ones are left out.

    Raises:
        ValueError: A caption is not text, or has more than 10,000 characters.
    """
    captions: list[str] = []
    for cell in cells:
        if cell is None:
            continue
        is_one = isinstance(cell, str | Mapping) or not isinstance(cell, Iterable)
        for caption in [cell] if is_one else cell:
            text = caption.get("raw") or caption.get("sentence") if isinstance(caption, Mapping) else caption
            if text is None:
                continue
            if not isinstance(text, str):
                raise ValueError(f"a caption is a text, found {_shown(text)}.")
            if len(text) > MAX_CAPTION:
                raise ValueError(f"a caption has {len(text):,} characters, more than {MAX_CAPTION:,}.")
            if text.strip():
                captions.append(text.strip())
    return captions


def _read_json(path: Path) -> list[Photo]:
    text = path.read_text("utf-8-sig")
    try:
        content = json.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
        raise ValueError(f"{path} is not one json value ({error}). Is it JSON lines? Then call it .jsonl.") from error
    if isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        return _read_table(path, content)
    if isinstance(content, Mapping) and "images" in content:
        images = _rows(path, content, "images")
        if "annotations" in content:
            return _read_coco(path, images, _rows(path, content, "annotations"))
        if images and "sentences" in images[0]:
            return _read_karpathy(path, images)
    keys = content if isinstance(content, Mapping) else [type(content).__name__]
    raise ValueError(f"{path} is laid out in no known way. Top-level keys found: {_names(keys)}. Known: {KNOWN_JSONS}.")


def _rows(path: Path, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = content[key]
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f'{path}: "{key}" is no list of objects, found {_shown(rows)}.')
    return rows


def _read_coco(path: Path, images: list[Mapping[str, Any]], annotations: list[Mapping[str, Any]]) -> list[Photo]:
    captions: dict[str, list[str]] = {}
    for number, annotation in enumerate(annotations, 1):
        if "caption" not in annotation:
            raise ValueError(
                f"{path} has annotations without a caption (keys: {_names(annotation)}). "
                "COCO's captions are in captions_*.json, not in instances_*.json."
            )
        place = f"{path}, annotation {number}"
        of_image = captions.setdefault(_name(place, annotation, "image_id"), [])
        of_image += _captions(place, [annotation["caption"]])
    split = split_of(path.stem)
    photos = []
    for number, image in enumerate(images, 1):
        place = f"{path}, image {number}"
        image_id = _name(place, image, "id")
        photos.append(Photo(_name(place, image, "file_name"), tuple(captions.get(image_id, ())), split, image_id))
    return photos


def _read_karpathy(path: Path, images: list[Mapping[str, Any]]) -> list[Photo]:
    photos = []
    for number, image in enumerate(images, 1):
        place = f"{path}, image {number}"
        name = _name(place, image, "filename")
        folder = _name(place, image, "filepath") if "filepath" in image else ""
        split = _name(place, image, "split") if "split" in image else None
        image_id = _name(place, image, "cocoid") if "cocoid" in image else name
        captions = _captions(place, [image.get("sentences")])
        photos.append(
            Photo(os.path.join(folder, name), captions, SPLIT_NAMES.get(split, split) if split else None, image_id)
        )
    return photos


def _is_karpathy(path: Path) -> bool:
    with path.open("rb") as file:  # the file of COCO has 140 MB
        beginning = file.read(1 << 16)
    return b'"images"' in beginning and b'"sentences"' in beginning


def _read_tokens(path: Path) -> list[Photo]:
    """Photos of a token file; none when the first line is not `name.jpg#0<tab>caption`."""
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
    return [Photo(name, tuple(captions_of(texts)), None, name) for name, texts in captions.items()]


def _in_listed_splits(path: Path, photos: list[Photo]) -> list[Photo]:
    """Photos with the splits of Flickr8k's lists, where these are there; photos of no list are left out."""
    listed: dict[str, str] = {}
    for folder in (path.parent, *(path.parent / name for name in TEXT_FOLDERS)):
        for word, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
            for names in folder.glob(f"*.{word}Images.txt"):
                try:
                    listed.update(dict.fromkeys(names.read_text("utf-8").split(), split))
                except UnicodeDecodeError as error:
                    raise ValueError(f"{names} is not a text in UTF-8 ({error}): save it as UTF-8.") from error
    if not listed:
        return photos
    return [photo._replace(split=listed[photo.path]) for photo in photos if photo.path in listed]


def _json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not json: {error}.") from error
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
                        f"{path}, line {reader.line_num}: more cells than the header's {len(row) - 1}. Put captions "
                        f"with {delimiter!r} into quotation marks."
                    )
                yield {name.strip(): cell for name, cell in row.items()}
        except csv.Error as error:  # a quotation mark without its end, for one
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from error


def _read_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[Photo]:
    photos: dict[str, Photo] = {}
    split_of_file = split_of(path.stem)
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        path_column = next((column for column in PATH_COLUMNS if column in row), None)
        captions = caption_columns(row)
        if path_column is None or not captions:
            raise ValueError(
                f"{path} has no {'captions' if path_column else 'image path'} in a known layout. "
                f"Columns found: {_names(row)}. Known: an image path ({', '.join(PATH_COLUMNS)}) and "
                f"{KNOWN_LAYOUTS}."
            )
        name = _name(place, row, path_column) if row[path_column] else ""
        split = _name(place, row, "split") if row.get("split") else None
        new = Photo(
            name,
            _captions(place, (row[column] for column in captions)),
            SPLIT_NAMES.get(split, split) if split else split_of_file,
            _name(place, row, "image_id") if row.get("image_id") else name,
        )
        known = photos.get(name)
        if known and known.split != new.split:
            raise ValueError(
                f"{path} has photo {_shown(name)} in two splits, {_names([known.split])} and {_names([new.split])}."
            )
        photos[name] = known._replace(captions=known.captions + new.captions) if known else new
    if not photos:
        raise ValueError(f"{path} has no rows.")
    return list(photos.values())


def _name(place: str, row: Mapping[str, Any], key: str) -> str:
    """A file name, an id or a split: a text, or a number."""
    value = row.get(key)
    if not isinstance(value, str | int | float):
        raise ValueError(f'{place}: "{key}" is a text or a number, found {_shown(value)}.')
    return str(value)


def _captions(place: str, cells: Iterable[Any]) -> tuple[str, ...]:
    try:
        return tuple(captions_of(cells))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _shown(value: Any) -> str:
    """A value of a file, whatever it is, as short as a message can bear it."""
    text = reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _names(names: Iterable[Any]) -> str:
    shown = [" ".join(str(name)[:MAX_SHOWN].split()) for name in itertools.islice(names, NAMES_SHOWN + 1)]
    return ", ".join(shown[:NAMES_SHOWN]) + (" and more" if len(shown) > NAMES_SHOWN else "")
