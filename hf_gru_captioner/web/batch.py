"""Captions many images: files and archives in, a table of captions out, for spreadsheets, programs and datasets."""

import csv
import io
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..untrusted_images import Limits, RefusedError, open_image, read_images

AT_ONCE = 8  # images that wait for captions together, with their files in memory
# A spreadsheet computes a cell that begins with one of these; in some languages the wide forms too.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Row = tuple[str, str]  # name of the image, its caption
Caption = Callable[[bytes], tuple[Image.Image, str]]


def images_of(paths: Sequence[str | Path], limits: Limits) -> Iterator[tuple[str, bytes | RefusedError]]:
    """Yield name and content of each image, those inside of archives too, in their order.

    Ends with a refusal if there are more images, in all files together, than an archive may have.
    """
    for number, (name, content) in enumerate(_images_of(paths, limits)):
        if number == limits.archive_images:
            yield (
                name,
                RefusedError(f"{number} photos are captioned at once; this one and those after it are left out."),
            )
            return
        yield name, content


def _images_of(paths: Sequence[str | Path], limits: Limits) -> Iterator[tuple[str, bytes | RefusedError]]:
    for path in map(Path, paths):
        try:
            if path.suffix.lower() == ".zip":
                with path.open("rb") as archive:
                    yield from read_images(archive, limits)
            else:
                content = path.read_bytes()
                open_image(content, limits)  # refused here, before it waits for a caption
                yield path.name, content
        except RefusedError as error:
            yield path.name, error
        except OSError:  # deleted as too old, after others took long
            yield path.name, RefusedError("This file was deleted before its turn came. Please send it again.")


def caption_all(
    pictures: Iterator[tuple[str, bytes | RefusedError]], caption: Caption
) -> Generator[tuple[str, Image.Image | None, str], None, None]:
    """Yield name, image and caption of each, in their order; for a refused one, None and the reason.

    Only a few wait at once: an archive is read as its images are captioned. When this is closed before its
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
        image, text = outcome.result()
        return name, image, text
    except RefusedError as error:
        return name, None, str(error)


def to_csv(rows: Sequence[Row]) -> str:
    """`file_name,caption`; cells that a spreadsheet would compute as formulas are prefixed with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("file_name", "caption"))
    writer.writerows([_not_a_formula(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def to_jsonl(rows: Sequence[Row]) -> str:
    """One line per image. As `metadata.jsonl` beside the images, `datasets.load_dataset("imagefolder")` reads it."""
    return "".join(json.dumps({"file_name": name, "caption": text}, ensure_ascii=False) + "\n" for name, text in rows)


def _not_a_formula(cell: str) -> str:
    return f"'{cell}" if cell.lstrip(" ").startswith(FORMULA_SIGNS) else cell
