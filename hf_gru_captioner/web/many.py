"""Many photos: files and archives in, a table of captions out, for spreadsheets, programs and data sets."""

import csv
import io
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..untrusted_images import Limits, RefusedError, open_picture, read_pictures

AT_ONCE = 8  # photos that wait for captions together; their files are held meanwhile
# At the beginning of a cell, a spreadsheet would compute it; the wide forms too, in some languages of it.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Row = tuple[str, str]  # name of the photo, its caption
Caption = Callable[[bytes], tuple[Image.Image, str]]


def pictures_of(paths: Sequence[str | Path], limits: Limits) -> Iterator[tuple[str, bytes | RefusedError]]:
    """Name and content of each photo, those inside of archives too, in the order in which they came.

    Ends with a refusal when there are more of them, in all files together, than an archive may have.
    """
    for number, (name, content) in enumerate(_pictures_of(paths, limits)):
        if number == limits.archive_pictures:
            yield (
                name,
                RefusedError(f"{number} photos are captioned at once; this one and those after it are left out."),
            )
            return
        yield name, content


def _pictures_of(paths: Sequence[str | Path], limits: Limits) -> Iterator[tuple[str, bytes | RefusedError]]:
    for path in map(Path, paths):
        try:
            if path.suffix.lower() == ".zip":
                with path.open("rb") as archive:
                    yield from read_pictures(archive, limits)
            else:
                content = path.read_bytes()
                open_picture(content, limits)  # refused here, before it waits for a caption
                yield path.name, content
        except RefusedError as error:
            yield path.name, error
        except OSError:  # others took long, and uploads are deleted
            yield path.name, RefusedError("This file was deleted before its turn came. Please send it again.")


def caption_all(
    pictures: Iterator[tuple[str, bytes | RefusedError]], caption: Caption
) -> Generator[tuple[str, Image.Image | None, str], None, None]:
    """Name, photo and caption of each, in their order, as they get done; of a refused one no photo, and the reason.

    No more than a few wait at once: an archive is read as its photos are captioned. When this is closed before its
    end, those that wait are given up and nothing is waited for: Gradio closes it in the thread that serves everyone.
    """
    callers = ThreadPoolExecutor(AT_ONCE, "many")
    try:
        waiting: list = []
        for name, content in pictures:
            waiting.append((name, content if isinstance(content, RefusedError) else callers.submit(caption, content)))
            if len(waiting) == AT_ONCE:
                yield _result(*waiting.pop(0))
        for each in waiting:
            yield _result(*each)
    finally:
        callers.shutdown(wait=False, cancel_futures=True)


def _result(name: str, outcome) -> tuple[str, Image.Image | None, str]:
    try:
        if isinstance(outcome, RefusedError):
            raise outcome
        photo, text = outcome.result()
        return name, photo, text
    except RefusedError as error:
        return name, None, str(error)


def to_csv(rows: Sequence[Row]) -> str:
    """`file_name,caption`; what a spreadsheet would take for a formula is quoted with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("file_name", "caption"))
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def to_jsonl(rows: Sequence[Row]) -> str:
    """A line a photo. As `metadata.jsonl` beside the photos, `datasets.load_dataset("imagefolder")` reads it."""
    return "".join(json.dumps({"file_name": name, "caption": text}, ensure_ascii=False) + "\n" for name, text in rows)


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.lstrip(" ").startswith(FORMULA_SIGNS) else cell
