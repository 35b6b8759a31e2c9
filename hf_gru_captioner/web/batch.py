"""Captions many images: files and archives in, captions out, and the files in which reviewed captions are saved."""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from ..untrusted_images import Limits, RefusedError, open_image, photo_of, read_images, read_photo

AT_ONCE = 8  # images waiting for captions at the same time, with their files in memory
# Spreadsheets evaluate cells that begin with one of these; in some languages also the full-width forms.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
BYTE_ORDER_MARK = "\ufeff"  # by which spreadsheets recognize UTF-8
SAME_NAME = "Another photo has the same name. Send both with their folders, or one after the other."

Found = tuple[str, bytes | RefusedError]  # name of an image with its folders; its content, or why it was rejected
Captions = TypeVar("Captions")


class Sent(NamedTuple):
    """A file that a visitor sent.

    Args:
        name: Its name on the visitor's side, with folders if known.
        path: Where it is stored here.
    """

    name: str
    path: Path


class Reviewed(NamedTuple):
    """A row of the review.

    Args:
        name: Name of the image, with its folders.
        caption: Caption after the review.
        is_checked: Whether a person accepted or changed it.
    """

    name: str
    caption: str
    is_checked: bool


def images_of(files: Iterable[Sent], limits: Limits) -> Iterator[Found]:
    """Yields name and content of each image, including those in archives, in order; names must be unique.

    Ends with a rejection if all files together contain more images than an archive may.
    """
    num_images, names = 0, set()
    for name, content in _images_of(files, limits):
        if isinstance(content, RefusedError):
            yield name, content
            continue
        if name in names:
            yield name, RefusedError(SAME_NAME)
            continue
        if num_images == limits.archive_images:
            yield (
                name,
                RefusedError(f"{num_images} photos are captioned at once; this one and those after it are left out."),
            )
            return
        num_images += 1
        names.add(name)
        yield name, content


def _images_of(files: Iterable[Sent], limits: Limits) -> Iterator[Found]:
    for name, path in files:
        try:
            if path.suffix.lower() == ".zip":
                with path.open("rb") as archive:
                    for member, content in read_images(archive, limits):
                        yield member, _photo_of_member(content, limits, member)
            else:
                content = read_photo(path, limits)
                open_image(content, limits)  # rejected here, before it waits for a caption
                yield name, content
        except RefusedError as error:
            yield name, error
        except OSError:  # deleted as too old, because others took long
            yield name, RefusedError("This file was deleted before its turn came. Please send it again.")


def _photo_of_member(member: bytes | RefusedError, limits: Limits, name: str) -> bytes | RefusedError:
    try:
        return member if isinstance(member, RefusedError) else photo_of(member, limits, name)
    except RefusedError as error:
        return error


def caption_all(
    images: Iterator[Found], caption: Callable[[bytes], Captions]
) -> Generator[tuple[str, Captions | RefusedError], None, None]:
    """Yields name and captions of each image, in order; for rejected ones, the reason instead.

    Only a few wait at the same time, so an archive is read as its images are captioned. When the generator is closed
    early, waiting images are dropped without blocking: Gradio closes it in the thread that serves all visitors.
    """
    callers = ThreadPoolExecutor(AT_ONCE, "many")
    try:
        waiting: list = []
        for name, content in images:
            waiting.append((name, content if isinstance(content, RefusedError) else callers.submit(caption, content)))
            if len(waiting) == AT_ONCE:
                yield _result(*waiting.pop(0))
        for each in waiting:
            yield _result(*each)
    finally:
        callers.shutdown(wait=False, cancel_futures=True)


def _result(name: str, outcome) -> tuple:
    if isinstance(outcome, RefusedError):
        return name, outcome
    try:
        return name, outcome.result()
    except RefusedError as error:
        return name, error


def to_csv(rows: Sequence[Reviewed]) -> str:
    """`file_name,caption` as CSV; cells that spreadsheets would evaluate as formulas get an apostrophe in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("file_name", "caption"))
    writer.writerows([_escape_formula(row.name), _escape_formula(row.caption)] for row in rows)
    return BYTE_ORDER_MARK + buffer.getvalue()


def to_jsonl(rows: Iterable[Reviewed]) -> str:
    """One line per image, for `gru-captioner train`, and for `datasets` as `metadata.jsonl` beside the images."""
    return "".join(
        json.dumps({"file_name": row.name, "caption": row.caption}, ensure_ascii=False) + "\n" for row in rows
    )


def to_text_files(rows: Sequence[Reviewed]) -> bytes:
    """A ZIP archive of text files to put beside the photos, `folder/photo.txt` for `folder/photo.jpg`.

    Raises:
        RefusedError: Two photos would share a file.
    """
    buffer, owners = io.BytesIO(), dict[str, str]()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in rows:
            name = str(PurePosixPath(row.name).with_suffix(".txt"))
            if name in owners:
                raise RefusedError(f"{owners[name]} and {row.name} would share {name}: rename one of the photos.")
            owners[name] = row.name
            archive.writestr(name, " ".join(row.caption.split()) + "\n")
    return buffer.getvalue()


def saved(kind: str, rows: Sequence[Reviewed]) -> tuple[str, bytes]:
    """File name and content of a saved review; `kind` is `csv`, `jsonl`, `txt` or `corrections`.

    Raises:
        RefusedError: Another kind, or there is nothing to save.
    """
    if kind == "corrections":
        rows = [row for row in rows if row.is_checked and row.caption.strip()]
        if not rows:
            raise RefusedError("Accept or change some captions first: training uses only those.")
        return "corrections.jsonl", to_jsonl(rows).encode()
    if not rows:
        raise RefusedError("There are no captions to save yet.")
    if kind == "csv":
        return "captions.csv", to_csv(rows).encode()
    if kind == "jsonl":
        return "captions.jsonl", to_jsonl(rows).encode()
    if kind == "txt":
        return "captions-as-text-files.zip", to_text_files(rows)
    raise RefusedError("Captions can be saved as csv, jsonl, txt or corrections.")


def _escape_formula(cell: str) -> str:
    return f"'{cell}" if cell.lstrip(" ").startswith(FORMULA_SIGNS) else cell
