"""COCO's annotation format, for training data and references alike: https://cocodataset.org/#format-data.

`{"images": [{"id": 42, "file_name": "a.jpg"}, ...], "annotations": [{"image_id": 42, "caption": "A dog runs."}, ...]}`,
one row per image and one per caption. Ids are numbers in COCO; here they are strings, because other datasets use file
names as ids.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .untrusted_images import MAX_CAPTION

MAX_SHOWN = 80  # characters of a row shown in a message


class Annotations(NamedTuple):
    """The content of an annotations file, in the order of the file."""

    images: dict[str, Mapping[str, Any]]  # rows of "images" by id; empty if the file has none
    captions: dict[str, list[str]]  # by image id, first those in "images", then those only in "annotations"


def parse_annotations(path: str | Path, content: Mapping[str, Any]) -> Annotations:
    """Checks an annotations file, and groups its captions by image. Null captions are dropped.

    Args:
        path: The file's path, for messages.
        content: Its JSON, with a list "annotations".

    Raises:
        ValueError: The format is violated; shows where.
    """
    rows = content.get("images") or []
    if not isinstance(rows, list):
        raise ValueError(f'{path}: "images" is not a list, found {shortened(rows)}.')
    images: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        match row:
            case {"id": int() | str() as image_id}:
                images[checked_text(path, str(image_id))] = row
            case _:
                raise ValueError(f'{path}: image {number} needs an "id", found {shortened(row)}.')
    captions: dict[str, list[str]] = {image_id: [] for image_id in images}
    for image_id, caption in caption_rows(path, content["annotations"], allow_null=True):
        image_captions = captions.setdefault(image_id, [])
        if caption is not None:
            image_captions.append(caption)
    return Annotations(images, captions)


def caption_rows(path: str | Path, rows: Any, *, allow_null: bool = False) -> Iterator[tuple[str, str | None]]:
    """Yields image id and caption of each row in "annotations", or in a results file.

    Args:
        path: The file's path, for messages.
        rows: Objects with "image_id" and "caption".
        allow_null: Yield None for a null caption instead of rejecting it.

    Raises:
        ValueError: A row is malformed, a caption has more than 10,000 characters, or there are no rows.
    """
    if not isinstance(rows, list):
        raise ValueError(f'{path}: "annotations" is not a list, found {shortened(rows)}.')
    if not rows:
        raise ValueError(f"{path} has no captions.")
    for number, row in enumerate(rows, start=1):
        match row:
            case {"image_id": int() | str() as image_id, "caption": str() as caption}:
                if len(caption) > MAX_CAPTION:
                    raise ValueError(
                        f"{path}: row {number} has a caption of {len(caption):,} characters, more than {MAX_CAPTION:,}."
                    )
                yield checked_text(path, str(image_id)), checked_text(path, caption)
            case {"image_id": int() | str() as image_id, "caption": None} if allow_null:
                yield checked_text(path, str(image_id)), None
            case {"bbox": _} | {"segmentation": _}:
                raise ValueError(
                    f"{path} has annotations of objects. COCO's captions are in captions_*.json, not in "
                    "instances_*.json."
                )
            case _:
                raise ValueError(
                    f'{path}: row {number} needs an "image_id" (number or text) and a "caption" (text), '
                    f"found {shortened(row)}."
                )


def checked_text(path: str | Path, text: str) -> str:
    """The text itself.

    Raises:
        ValueError: It contains half of a surrogate pair, which is possible in JSON but can't be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {ascii(text)[:MAX_SHOWN]} contains half of a surrogate pair.") from error
    return text


def shortened(row: Any) -> str:
    """A value as JSON, shortened for a message."""
    text = json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
