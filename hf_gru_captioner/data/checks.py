"""Checks the rows of a source: decodes images once, normalizes captions, and counts what is skipped."""

import hashlib
import io
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, IterableDataset, List, Value
from PIL import ExifTags, ImageOps
from PIL import Image as PILImage

from ..errors import counted, listed
from ..model.image_loading_gru_captioner import (
    MAX_PIXELS,
    MAX_PIXELS_IN_PYTHON,
    MAX_PIXELS_OF,
    MAX_SCANS,
    REFUSED_FORMATS,
    count_scans,
)
from .columns import SPLIT_NAMES, WORDLESS, caption_weights_of, has_words, is_list_of_text, texts_of
from .origins import Origin
from .reading import ReadingOptions
from .recognition import VALIDATION_SHARE, draw

_logger = logging.getLogger(__name__)

NO_CAPTION = "no caption"
WEIGHTS, LABELS = "caption_weights", "labels"  # columns that rows may have
WHERE, PROBLEM = "where", "problem"  # columns of rows we read ourselves: the row in the table, and what is wrong
ROWS_TO_JUDGE = 100  # of a stream, before `max_skipped` is enforced
NAMED_ROWS = 5  # skipped rows listed in the warning
CHECKED = Features(
    {
        "captions": List(Value("string")),
        "image_id": Value("string"),
        "image_digest": Value("string"),
        "key": Value("string"),
        "problem": Value("string"),
        "empty": Value("int32"),
        "wordless": Value("int32"),
    }
)
INTERNAL = ("key", "problem", "empty", "wordless")  # of these, dropped from the result


def check_row(
    row: Mapping[str, Any],
    index: int | None = None,
    *,
    layout: Mapping[str, Any],
    origin: Origin,
    with_image: bool = False,
    files: str = "",
) -> dict[str, Any]:
    """Converts a row with an undecoded image to the columns `CHECKED`; `problem` is the reason if it can't be used.

    `files` is not used: a digest of the images' files, which enters the key of `datasets`' cache.
    """
    if isinstance(row.get("json"), Mapping):
        row = {**row["json"], **row}
    image = row[layout["image"]] or {}
    if isinstance(image, bytes):  # in a Parquet file
        image = {"bytes": image}
    if isinstance(image, str):  # in a stream without column types
        image = {"path": image}
    path = full_path(image.get("path"), layout)
    problem = row.get(PROBLEM) if layout["is_ours"] else None
    encoded = b""
    if problem is None:
        encoded, problem = read_image(path, image.get("bytes"), origin)
    digest = hashlib.sha256(encoded).hexdigest()
    texts: list[str] = []
    weights: list[float] = []
    try:
        cells = [row[column] for column in layout["captions"]]
        texts = texts_of(cells)
        if layout["weights"]:
            weights = caption_weights_of(row.get(layout["weights"]), cells)
    except ValueError as error:
        texts, problem = [], problem or str(error)
    captions = list(filter(has_words, texts))
    if not captions and problem is None:
        problem = NO_CAPTION
        if wordless := next(filter(None, texts), None):
            problem = f"{NO_CAPTION} with a word: {wordless[:40]!r}"
    name = None
    if layout["image_id"] and row[layout["image_id"]] is not None:
        name = str(row[layout["image_id"]])
    elif layout["root"] and path and Path(path).is_relative_to(layout["root"]):
        name = Path(path).relative_to(layout["root"]).as_posix()
    key = name or digest[:16]  # determines the split; not the row number, which is unknown in a stream
    if problem is not None and layout["is_ours"] and row.get(WHERE):
        problem = f"{row[WHERE]}: {problem}"
    checked: dict[str, Any] = {
        "captions": captions,
        "image_id": name or (key if index is None else str(index)),
        "image_digest": digest,
        "key": key,
        "problem": problem,
        "empty": texts.count("") if captions else 0,
        "wordless": len(texts) - texts.count("") - len(captions) if captions else 0,
    }
    if layout["weights"]:
        checked[WEIGHTS] = weights
    if layout["labels"]:
        labels = row.get(layout["labels"])
        checked[LABELS] = list(labels) if is_list_of_text(labels) else None
    return checked | {"image": {"bytes": encoded, "path": None}} if with_image else checked


def full_path(path: str | None, layout: Mapping[str, Any]) -> str | None:
    """The path of an image, given as the source has it."""
    if path and layout["is_relative"] and "://" not in path:
        return os.path.join(layout["root"], path)
    return path


def merge_rows(rows: Mapping[str, list[Any]]) -> list[int]:
    """Merges rows of the same image with the same image_id, such as one per caption, into the first of them.

    Args:
        rows: Columns of checked rows, which are changed. Rows with a problem other than that of no caption stay apart.

    Returns:
        The indices of the first rows.
    """
    firsts: dict[Any, int] = {}
    for index, problem in enumerate(rows["problem"]):
        is_without_caption = problem is not None and problem.startswith(NO_CAPTION)
        apart = problem is not None and not is_without_caption
        first = firsts.setdefault(index if apart else (rows["image_id"][index], rows["image_digest"][index]), index)
        if is_without_caption:  # its caption is one of those that the image lacks, if it has others
            rows["empty" if problem == NO_CAPTION else "wordless"][index] = 1
            if WEIGHTS in rows:
                rows[WEIGHTS][index] = []
        if first == index:
            continue
        for name in ("captions", "empty", "wordless", WEIGHTS):
            if name in rows:
                rows[name][first] = rows[name][first] + rows[name][index]
        if LABELS in rows and rows[LABELS][first] is None:
            rows[LABELS][first] = rows[LABELS][index]
        if problem is None:
            rows["problem"][first] = None
    return list(firsts.values())


def read_image(path: str | None, encoded: bytes | None, origin: Origin) -> tuple[bytes, str | None]:
    """The encoded image, and the reason if it can't be decoded.

    Args:
        path, encoded: Fields of an undecoded image in `datasets`.
        origin: Where `path` may be read from.
    """
    if encoded is None:
        encoded, problem = origin.read(path) if path else (b"", "no image")
        if problem:
            return b"", problem
    try:
        with PILImage.open(io.BytesIO(encoded)) as decoded:
            if decoded.info.get("progressive") and count_scans(decoded) > MAX_SCANS:
                return encoded, f"more than {MAX_SCANS} scans"
            return encoded, _decode(decoded)
    except PILImage.UnidentifiedImageError:
        return encoded, "not an image that Pillow knows"
    except Exception as error:  # Pillow raises nearly anything for a broken file
        return encoded, f"{type(error).__name__}: {error}"


def _decode(image: PILImage.Image) -> str | None:
    """Decodes an opened image like `datasets` and load_image; returns the reason if they can't."""
    if image.format in REFUSED_FORMATS:
        return f"{image.format}, a format that is refused"
    stored, max_pixels = image.size, MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if any(tile.codec_name in PILImage.DECODERS for tile in getattr(image, "tile", ())):  # decoded in Python
        max_pixels = MAX_PIXELS_IN_PYTHON
    if math.prod(stored) <= max_pixels:
        image.draft(None, (1, 1))  # decodes a JPEG at reduced size, which is fast, but to its last byte
        image.load()
        stored = max(stored, image.size, key=math.prod)  # an icon's image may differ in size from its header
    if math.prod(stored) > max_pixels:
        return f"{stored[0]} x {stored[1]} pixels, more than {max_pixels:,}"
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        ImageOps.exif_transpose(image)
    if image.mode == "F" and not ((levels := np.asarray(image)).min() >= 0 and levels.max() <= 1):  # also refuses nan
        return f"a float image with values from {levels.min():g} to {levels.max():g}, not in [0, 1]"
    return None


class Tally:
    """Counts rows and decides which to keep: those without a problem and, if `wanted` is given, in that split.

    Args:
        name: Name of the source.
        options: The fraction of rows that may have a problem, and the option's name.
        wanted: Split to keep, if train and validation are split here.
    """

    def __init__(self, name: str, options: ReadingOptions, wanted: str | None = None):
        self.name = name
        self.options = options
        self.wanted = wanted and SPLIT_NAMES[wanted]
        self.restart()

    def restart(self) -> None:
        """Sets all counts to zero."""
        self.num_rows = self.num_without_caption = self.num_unreadable = 0
        self.named: list[str] = []
        self.left_out: dict[str, Counter[str]] = {"empty": Counter(), "wordless": Counter()}
        self.repeated: Counter[str] = Counter()

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether to keep this row of a stream."""
        if self.wanted and (draw(row["key"]) <= VALIDATION_SHARE) != (self.wanted == "validation"):
            return False
        keeps = self.keeps(row["image_id"], row["problem"])
        if keeps:
            self.count(row["image_id"], row["captions"], row["empty"], row["wordless"])
        if self.num_rows >= ROWS_TO_JUDGE:
            self._judge()
        return keeps

    def keeps(self, image_id: str, problem: str | None) -> bool:
        self.num_rows += 1
        if problem is None:
            return True
        if problem.startswith(NO_CAPTION) or f": {NO_CAPTION}" in problem:
            self.num_without_caption += 1
        else:
            self.num_unreadable += 1
        if len(self.named) < NAMED_ROWS:
            self.named.append(f"{image_id} ({problem})")
        return False

    def count(self, image_id: str, captions: Sequence[str], empty: int, wordless: int) -> None:
        """Counts a kept row's dropped and duplicate captions."""
        for kind, number in (("empty", empty), ("wordless", wordless)):
            if number:
                self.left_out[kind][image_id] += number
        if len(set(captions)) < len(captions):
            self.repeated[image_id] += len(captions) - len(set(captions))

    def close(self, notices: Sequence[str] = ()) -> None:
        """Enforces `max_skipped`, and issues warnings about skipped rows, attributed to the caller's caller.

        Args:
            notices: Further warnings.
        """
        self._judge()
        warned = list(notices)
        if self.named:
            warned.append(f"{self} and are skipped: {self._names()}.")
        for kind, what in (("empty", "empty"), ("wordless", WORDLESS)):
            if counts := self.left_out[kind]:
                number = counted(counts.total(), "caption")
                warned.append(f"{number} of {self.name} {what}, left out: {listed(counts, NAMED_ROWS)}.")
        for warning in warned:
            warnings.warn(warning, stacklevel=3)
        if self.repeated:
            _logger.info(
                "%s: %s repeated for the same image, and kept: %s",
                *(self.name, counted(self.repeated.total(), "caption"), listed(self.repeated, NAMED_ROWS)),
            )

    def _judge(self) -> None:
        num_skipped = self.num_without_caption + self.num_unreadable
        if num_skipped > self.options.max_skipped * self.num_rows:
            setting = self.options.setting("max_skipped", f"{self.options.max_skipped:g}")
            raise ValueError(
                f"{self}: {self._names()}. This exceeds {setting}: repair the source, or raise "
                f"{self.options.called('max_skipped')} to {num_skipped / self.num_rows:.2g} or more to skip them."
            )

    def _names(self) -> str:
        others = self.num_without_caption + self.num_unreadable - len(self.named)
        return ", ".join(self.named) + (f" and {others:,} more" if others else "")

    def __str__(self) -> str:
        counts = ((self.num_without_caption, "have no caption"), (self.num_unreadable, "can't be read"))
        problems = [f"{count} of {self.num_rows} images of {self.name} {problem}" for count, problem in counts if count]
        return " and ".join(problems)


def copies(image_ids: Sequence[str], digests: Sequence[str]) -> list[str]:
    """Images with the same bytes as an earlier one, each as `b.jpg = a.jpg`."""
    first: dict[str, str] = {}
    duplicates = []
    for image_id, digest in zip(image_ids, digests, strict=True):
        if first.setdefault(digest, image_id) != image_id:
            duplicates.append(f"{image_id} = {first[digest]}")
    return duplicates


class CheckedStream(IterableDataset):
    """A stream that enforces `max_skipped` and warns about skipped rows at its end."""

    def __init__(self, rows: IterableDataset, tally: Tally, notices: Sequence[str] = ()):
        self.__dict__.update(rows.__dict__)
        self._tally = tally
        self._notices = notices

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._tally.restart()
        yield from super().__iter__()
        self._tally.close(self._notices)
