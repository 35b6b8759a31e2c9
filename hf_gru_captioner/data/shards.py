"""Webdataset shards: tar archives in which the files of an image are adjacent, `0001.jpg`, `0001.txt`.

https://github.com/webdataset/webdataset. Unlike there, an image's name ends at the last dot, so that `a.b.jpg` and
`a.b.txt` belong to one image `a.b`; any image suffix is accepted, in any case, and a shard may mix them; an image
without captions, or captions without an image, are rows with a problem.
"""

import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from ..errors import UsageError, brief
from .caption_files import captions_in_text
from .columns import IMAGE_SUFFIXES, find_columns, is_list_of_text, shown, texts_of
from .encodings import decode_text
from .tables import BY_NAME, ChosenColumns

TEXTS = ("captions", "caption", "txt", "text")  # suffixes of caption files, in order of preference
MAX_MEMBER = 100_000_000  # bytes


def shard_rows(shards: Iterable[str], chosen: Sequence[str | None] = BY_NAME) -> Iterator[dict[str, Any]]:
    """Rows with the undecoded `image`, raw `captions`, `image_id`, `caption_weights`, `labels` and `problem`.

    Args:
        shards: Files.
        chosen: Column names in JSON files, given by the user.

    Raises:
        ValueError: A shard is damaged, or the files of an image are not next to each other; names it.
    """
    for shard in shards:
        try:
            with tarfile.open(shard) as archive:
                yield from _rows(shard, archive, ChosenColumns(*chosen))
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{shard} is no tar archive, or it is damaged ({brief(error)[:60]})") from None


def _rows(shard: str, archive: tarfile.TarFile, chosen: ChosenColumns) -> Iterator[dict[str, Any]]:
    key: str | None = None
    files: dict[str, bytes] = {}
    seen: set[str] = set()
    for member in archive:
        stem, ending = os.path.splitext(member.name)
        if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
            continue
        if stem != key and files:
            yield _row(key or "", files, chosen)
            files = {}
        if stem != key and stem in seen:
            raise UsageError(
                f"{shard}: the files of {stem} are not next to each other, as webdataset needs them: pack the "
                "folder sorted by name, tar --sort=name -cf shard.tar FOLDER."
            )
        key = stem
        seen.add(stem)
        if member.size <= MAX_MEMBER:
            files[ending.lower()] = archive.extractfile(member).read()  # type: ignore[union-attr]
        else:
            files[ending.lower()] = b""
    if files:
        yield _row(key or "", files, chosen)


def _row(key: str, files: Mapping[str, bytes], chosen: ChosenColumns) -> dict[str, Any]:
    image = next((files[ending] for ending in files if ending in IMAGE_SUFFIXES), None)
    row: dict[str, Any] = {
        "image": None if image is None else {"bytes": image, "path": None},
        "captions": [],
        "image_id": key,
        "caption_weights": None,
        "labels": None,
        "problem": None if image is not None else f"no image beside {', '.join(key + ending for ending in files)}",
    }
    try:
        row |= _captions(key, files, chosen)
    except ValueError as error:
        row["problem"] = str(error)
    return row


def _captions(key: str, files: Mapping[str, bytes], chosen: ChosenColumns) -> dict[str, Any]:
    text = next((f".{name}" for name in TEXTS if f".{name}" in files), None)
    if text is not None and chosen.caption is None:
        return {"captions": captions_in_text(key + text, decode_text(files[text], key + text))}
    if ".json" not in files:
        return {}
    try:
        content = json.loads(decode_text(files[".json"], f"{key}.json"))
    except RecursionError as error:
        raise ValueError(f"{key}.json is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{key}.json is not JSON: {error}") from error
    if not isinstance(content, Mapping):
        return {"captions": texts_of([content])}
    columns = find_columns(tuple(content), caption_column=chosen.caption)
    fields: dict[str, Any] = {"captions": texts_of([content[column] for column in columns.captions])}
    if columns.weights is not None:
        fields["caption_weights"] = _weights(content[columns.weights])
    if columns.labels is not None and is_list_of_text(content[columns.labels]):  # others have a different meaning
        fields["labels"] = list(content[columns.labels])
    if columns.image_id is not None and content[columns.image_id] is not None:
        fields["image_id"] = str(content[columns.image_id])
    return fields


def _weights(cell: Any) -> list[float] | None:
    """Weights as a list of numbers; their count and range are checked together with the captions."""
    if cell is None:
        return None
    weights = cell if isinstance(cell, list) else [cell]
    for weight in weights:
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise ValueError(f"a caption weight must be a number, found {shown(weight)}")
    return [float(weight) for weight in weights]


def optional_columns(shards: Sequence[str], names: Sequence[str], num_rows: int = 100) -> list[str]:
    """Which of the columns `names` are used in the first rows of the shards."""
    rows = list(itertools.islice(shard_rows(shards), num_rows))
    return [name for name in names if any(row[name] is not None for row in rows)]
