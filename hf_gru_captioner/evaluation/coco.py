"""Captions in COCO's file formats, which most captioners read and write: https://cocodataset.org/#format-data.

Results are `[{"image_id": 42, "caption": "a dog runs"}, ...]`, one row per image; annotations are
`{"images": [{"id": 42}, ...], "annotations": [{"image_id": 42, "caption": "A dog runs."}, ...]}`, one row per
reference. Image ids are numbers in COCO; here they are strings, because other datasets use file names as ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..coco import caption_rows, parse_annotations
from ..errors import counted, listed
from ..files import write_atomically

_SHOWN = 5  # ids listed in an error


def read_coco_results(path: str | Path) -> dict[str, str]:
    """Return the caption of each image id, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, not JSON or not in the results format, or an image has two captions.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise ValueError(f'{path} is not a list of results, [{{"image_id": ..., "caption": ...}}, ...].')
    results: dict[str, str] = {}
    for image_id, caption in caption_rows(path, content):
        if image_id in results:
            raise ValueError(
                f"{path} has more than one caption of image {_short(image_id)}. Keep one caption per image."
            )
        results[image_id] = str(caption)  # never None here
    return results


def read_coco_annotations(path: str | Path) -> dict[str, list[str]]:
    """Return the references of each image id, in the order in which the ids first appear: in "images", if present,
    then in "annotations".

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, not JSON or not in the annotations format, or an image has no caption.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(
            f'{path} has no annotations, {{"images": [...], "annotations": [{{"image_id": ..., "caption": ...}}]}}.'
        )
    references = parse_annotations(path, content).captions
    without = [image_id for image_id, captions in references.items() if not captions]
    if without:
        raise ValueError(
            f'{path} has no caption for {_some(without)}. Add captions, or take the images out of "images".'
        )
    return references


def has_annotations(path: str | Path) -> bool:
    """Whether a JSON file is in the annotations format, judging by its keys.

    Raises:
        FileNotFoundError, ValueError: As in [`read_coco_annotations`].
    """
    content = _read_json(path)
    return isinstance(content, dict) and "annotations" in content


def write_results(path: str | Path, image_ids: Sequence[str], captions: Sequence[str]) -> None:
    """Write captions in the results format, atomically. Ids that are whole numbers become numbers, as COCO's
    own tools expect. Runs on one process."""
    rows = [
        {"image_id": int(image_id) if re.fullmatch("0|[1-9][0-9]*", image_id) else image_id, "caption": caption}
        for image_id, caption in zip(image_ids, captions, strict=True)
    ]
    write_atomically(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def match(
    results: Mapping[str, str], references: Mapping[str, list[str]]
) -> tuple[list[str], list[str], list[list[str]]]:
    """Return image ids, predictions and references, all in the order of the references.

    Raises:
        ValueError: Results and references are for different images.
    """
    unknown = [image_id for image_id in results if image_id not in references]
    missing = [image_id for image_id in references if image_id not in results]
    if unknown or missing:
        found = [f"results without annotations for {_some(unknown)}"] if unknown else []
        found += [f"no result for {_some(missing)}"] if missing else []
        raise ValueError(f"Found {' and '.join(found)}. Pass results and annotations of the same images.")
    return list(references), [results[image_id] for image_id in references], list(references.values())


def _read_json(path: str | Path) -> Any:
    text = Path(path).read_bytes()
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} has no captions: its JSON is nested too deeply.") from error


def _some(image_ids: list[str]) -> str:
    return f"{counted(len(image_ids), 'image')} ({listed([_short(each) for each in image_ids], _SHOWN)})"


def _short(image_id: str) -> str:
    return " ".join(image_id[:80].split())
