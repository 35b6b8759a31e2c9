"""A text file beside each photo, `photo.txt` for `photo.jpg`, as read by image generator trainers and webdataset."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ..files import write_atomically
from ..untrusted_images import ADDRESSES
from .changes import Change

Existing = Literal["skip", "overwrite", "append"]


class TextSidecars:
    """
    Args:
        photos: All photos of the run: two that differ only in their suffix would share a file.
        existing: Whether an existing file is kept, replaced, or gets missing captions appended as further lines.
    """

    def __init__(self, photos: Iterable[str], existing: Existing = "skip"):
        self._existing = existing
        self._shared = _shared_files(photos)

    def is_taken(self, photo: str) -> bool:
        return self._existing == "skip" and not photo.startswith(ADDRESSES) and _file_of(photo).exists()

    def keep(self, photo: str, captions: Sequence[str], dry_run: bool = False) -> list[Change]:
        if photo.startswith(ADDRESSES):
            raise ValueError(f"{photo} is a URL: there is no folder to write its caption to.")
        file = _file_of(photo)
        owner = self._shared.get(file, photo)
        if owner != photo:
            raise ValueError(f"{photo}: {file} belongs to {owner}. Rename one of the two photos.")
        before = _read(file)
        lines = [" ".join(caption.split()) for caption in captions]
        if before is None or self._existing == "overwrite":
            after = "\n".join(lines) + "\n"
        elif self._existing == "append":
            known = before.splitlines()
            after = "".join(f"{line}\n" for line in [*known, *(line for line in lines if line not in known)])
        else:
            return []
        if after == before:
            return []
        if not dry_run:
            write_atomically(file, after)
        return [Change(file, "text", before or "", after)]


def _file_of(photo: str) -> Path:
    return Path(photo).expanduser().with_suffix(".txt")


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text; it is unchanged.") from error


def _shared_files(photos: Iterable[str]) -> dict[Path, str]:
    """Files that several photos would share, with the first of these photos."""
    first: dict[str, str] = {}  # strings take less memory than paths
    shared: dict[Path, str] = {}
    for photo in photos:
        if not photo.startswith(ADDRESSES):
            stem = photo[: len(photo) - len(Path(photo).suffix)]
            owner = first.setdefault(stem, photo)
            if owner != photo:
                shared[_file_of(photo)] = owner
    return shared
