"""Finds the image and caption columns of a table, and parses captions in cells: the same rules for every source.

Names are compared ignoring case, spaces, dashes and underscores: "Image Path" and "ImagePath" are `image_path`.
"""

import itertools
import json
import re
import reprlib
import unicodedata
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeGuard

from ..untrusted_images import ADDRESSES, MAX_CAPTION, SUFFIXES

# In order of preference, if a table has several.
IMAGE_NAMES = (
    *("file_name", "image", "images", "image_path", "image_file", "image_file_name", "image_name", "img", "img_path"),
    *("img_name", "file_path", "file", "path", "photo", "photo_path", "picture"),
    *("image_url", "img_url", "url"),
)
CAPTION_NAMES = (
    *("captions", "caption", "text", "texts", "txt", "sentences", "sentence", "description", "descriptions"),
    *("alt", "alt_text", "comments", "comment", "title"),
)
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
WORDLESS = "without a word, such as punctuation or emoji"  # a caption that `has_words` refuses, in messages
CAPTION_STEMS = (
    "caption",
    "captions",
    "text",
    "sentence",
    "description",
    "alt",
    "comment",
    "title",
)  # of numbered ones
ID_NAMES = ("image_id",)
SPLIT_COLUMNS = ("subset", "partition", "set")  # beside `split`; only where their cells are names of splits
KNOWN_LAYOUTS = (
    "captions (a list of strings), caption, text or txt (a string or a list), caption_0 ... caption_4 (strings), "
    "sentences (a list of strings or of {'raw': string}), sentence, description, alt, comment, title"
)
MAX_WEIGHT = 1000.0  # of a caption
MAX_SHOWN = 60  # characters of a value shown in a message
NAMES_SHOWN = 20  # columns or keys shown in a message
IMAGE_SUFFIXES = (*SUFFIXES, ".jfif", ".jpe", ".jp2", ".heic", ".ppm")  # not all may be readable

_NUMBERED = re.compile(rf"(?P<stem>{'|'.join(CAPTION_STEMS)})_?(?P<number>\d{{1,6}})")
_LIST = re.compile(r"""\[\s*(?:["'{]|(?:None|null|\]).*(?<=\])$)""", re.DOTALL)  # a cell with a list of captions
_OBJECT = re.compile(r"""\{\s*["']""")  # the beginning of an object, or of a set of captions
_TUPLE = re.compile(r"""\(\s*["'].*["']\s*(?:,\s*["'].*["']\s*|,\s*)\)""", re.DOTALL)
_EMOJI = re.compile("[0-9]\ufe0f?\u20e3|\u2139\ufe0f")  # keycaps and the information sign contain digits and letters
_TEXT_KEYS = ("raw", "sentence", "caption", "text")  # of a caption given as an object
_ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|None\b)(\s*,\s*|\s+|(?=\]))""", re.DOTALL)


class Columns(NamedTuple):
    """The columns of a table by their content."""

    image: str | None
    captions: tuple[str, ...]  # numbered ones in numerical order
    split: str | None = None
    image_id: str | None = None
    weights: str | None = None
    labels: str | None = None
    maybe_split: str | None = None  # one of `SPLIT_COLUMNS`


def plain_name(name: Any) -> str:
    """A normalized column name for comparison: `" Image-Path"` -> `imagepath`."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", str(name)).casefold())


@lru_cache(maxsize=1024)
def find_columns(names: tuple[str, ...], image_column: str | None = None, caption_column: str | None = None) -> Columns:
    """The columns of a table by content.

    Args:
        names: All column names.
        image_column, caption_column: Names given by the user, exact or equal by [`plain_name`]; several caption columns
            are separated by commas.

    Raises:
        ValueError: A column given by the user doesn't exist.
    """
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(plain_name(name), name)

    def given(name: str) -> str:
        column = name if name in names else by_plain.get(plain_name(name))
        if column is None:
            raise ValueError(f"no column {name!r}. Columns found: {shown_names(names)}.")
        return column

    def first(wanted: Iterable[str]) -> str | None:
        return next((by_plain[plain] for plain in map(plain_name, wanted) if plain in by_plain), None)

    if caption_column is None:
        captions = caption_columns(names)
    elif caption_column in names:
        captions = [caption_column]
    else:
        captions = [given(name.strip()) for name in caption_column.split(",")]
    image = first(IMAGE_NAMES) if image_column is None else given(image_column)
    return Columns(
        image,
        tuple(captions),
        first(("split",)),
        first(ID_NAMES),
        first(("caption_weights",)),
        first(("labels",)),
        first(SPLIT_COLUMNS),
    )


def caption_columns(names: Iterable[str]) -> list[str]:
    """The columns with captions in a known layout; empty if there are none."""
    names = list(names)
    by_plain: dict[str, str] = {}
    numbered: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        plain = plain_name(name)
        if match := _NUMBERED.fullmatch(plain):
            numbered.setdefault(match["stem"].removesuffix("s"), []).append((int(match["number"]), name))
        else:
            by_plain.setdefault(plain, name)
    for wanted in CAPTION_NAMES:
        wanted = plain_name(wanted)
        stem = wanted.removesuffix("s")
        alone = [by_plain[name] for name in (wanted, stem, f"{stem}s") if name in by_plain][:1]
        if columns := [*alone, *(name for _, name in sorted(numbered.get(stem, ())))]:
            return columns
    return []


def looks_like_image(cell: Any) -> bool:
    """Whether a cell looks like an image file name or a URL."""
    if not isinstance(cell, str) or len(cell) > 4096:
        return False
    text = cell.strip()
    if text.startswith(ADDRESSES):
        return " " not in text
    return PurePosixPath(text.replace("\\", "/")).suffix.lower() in IMAGE_SUFFIXES


def has_words(caption: str) -> bool:
    """Whether a caption has a letter or a digit: nothing can be learned from punctuation and emoji alone."""
    return any(letter.isalnum() for letter in (caption if caption.isascii() else _EMOJI.sub("", caption)))


def captions_of(cells: Iterable[Any]) -> list[str]:
    """The captions in the cells of a row: strings, `{"raw": string}`, lists of these, or such a list as text. Captions
    that are empty or have no words are dropped.

    Raises:
        ValueError: A caption is not text, or has more than 10,000 characters, or a list in a cell can't be parsed.
    """
    return [text for text in texts_of(cells) if has_words(text)]


def caption_weights_of(cell: Any, cells: Iterable[Any]) -> list[float]:
    """The weight of each caption returned by `captions_of(cells)`.

    Args:
        cell: The weights, one per caption, empty captions included; null for 1 each; a number for a single caption.
        cells: The captions.

    Raises:
        ValueError: The number of weights is wrong, or a weight is not above 0 and at most 1000.
    """
    texts = texts_of(cells)
    weights = [1.0] * len(texts) if cell is None else cell if isinstance(cell, list | tuple) else [cell]
    if len(weights) != len(texts):
        raise ValueError(f"caption_weights must have a number for each caption, found {len(weights)} for {len(texts)}.")
    for weight in weights:
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight <= MAX_WEIGHT:
            raise ValueError(f"a caption weight must be above 0 and at most {MAX_WEIGHT:g}, found {shown(weight)}.")
    return [float(weight) for weight, text in zip(weights, texts, strict=True) if has_words(text)]


def is_list_of_text(value: Any) -> TypeGuard[Sequence[str]]:
    """Whether a value may be an image's labels."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def texts_of(cells: Iterable[Any]) -> list[str]:
    """Like [`captions_of`], but keeps captions without words, and empty ones as empty strings."""
    captions: list[str] = []
    for cell in cells:
        if cell is None:
            continue
        if isinstance(cell, str):
            cell = _listed(cell.strip())
        is_one = isinstance(cell, str | Mapping) or not isinstance(cell, Iterable)
        for text in itertools.chain.from_iterable(map(_texts_in, [cell] if is_one else cell)):
            if text is None:
                text = ""
            if not isinstance(text, str):
                raise ValueError(f"a caption must be text, found {shown(text)}.")
            if len(text) > MAX_CAPTION:
                raise ValueError(f"a caption has {len(text):,} characters, more than {MAX_CAPTION:,}.")
            captions.append(text.strip())
    return captions


def _texts_in(caption: Any) -> Iterable[Any]:
    """The texts of a caption, which may be an object like `{"raw": "a dog"}` or `{"text": ["a dog", "two dogs"]}`."""
    if not isinstance(caption, Mapping):
        return [caption]
    value = next((caption[key] for key in _TEXT_KEYS if caption.get(key)), None)
    if value is None and any(each for key, each in caption.items() if key not in _TEXT_KEYS):
        raise ValueError(
            f"a caption is an object without a text under {', '.join(_TEXT_KEYS)}, found {shown(dict(caption))}."
        )
    return value if isinstance(value, list | tuple) else [value]


def _listed(cell: str) -> Any:
    """Parses a cell's text: a list of captions, an object, or the text itself."""
    if _LIST.match(cell):
        return _list_in(cell)
    if _TUPLE.fullmatch(cell):
        return _printed_list(f"[{cell[1:-1]}]") or cell  # may be a caption in parentheses
    if _OBJECT.match(cell):
        return _object_in(cell)
    return cell


def _object_in(cell: str) -> Any:
    """Parses an object stored as text, as exported by annotation tools, or a set of captions."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        listed = _printed_list(f"[{cell[1:-1]}]") if cell.endswith("}") else None
    if listed is None:
        raise ValueError(
            f"a cell begins like an object, but can't be read as one: {shown(cell)}. Write the caption alone, or "
            'a list like ["a dog", "two dogs"].'
        )
    return listed


def _list_in(cell: str) -> list[Any]:
    """Parses a list of captions stored as text: as JSON, as printed by Python, or by NumPy, without commas."""
    try:
        parsed = json.loads(cell)
    except (ValueError, RecursionError):
        parsed = _printed_list(cell)
    if not isinstance(parsed, list):
        raise ValueError(
            f"a cell begins like a list of captions, but can't be read as one: {shown(cell)}. Write it as "
            '["a dog", "two dogs"], or remove the brackets.'
        )
    return parsed


def _printed_list(cell: str) -> list[Any] | None:
    items, position = [], 1
    while match := _ITEM.match(cell, position):
        try:
            items.append(literal_eval(match[1]))
        except (ValueError, SyntaxError):  # an invalid escape
            return None
        position = match.end()
    return items if cell[position:] == "]" else None


def shown(value: Any) -> str:
    """Any value from a file, shortened for a message."""
    text = reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def shown_names(names: Iterable[Any]) -> str:
    """Names of columns or keys, truncated for a message."""
    some = [" ".join(str(name)[:MAX_SHOWN].split()) for name in itertools.islice(names, NAMES_SHOWN + 1)]
    return ", ".join(some[:NAMES_SHOWN]) + (" and more" if len(some) > NAMES_SHOWN else "")
