"""Expands the paths on a command line into images, and reports what is skipped."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError, counted
from ..model.image_loading_gru_captioner import (
    EXTRA_READERS,
    INSTALL_READERS,
    is_installed,
    readable_suffixes,
)
from ..untrusted_images import ADDRESSES

# Unsupported picture formats; files that are not pictures, such as videos, are ignored silently.
OTHER_PICTURES = (
    ".ai",
    ".bpg",
    ".cdr",
    ".eps",
    ".exr",
    ".hdr",
    ".icns",
    ".pdn",
    ".ps",
    ".svg",
    ".svgz",
    ".wmf",
    ".xcf",
)
# Folders of thumbnails and deleted files that network drives and operating systems create.
NOT_PHOTOS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
MAX_COUNTED = 10_000  # files and folders looked at to count images in subfolders that are not searched


@dataclass
class Found:
    """Images found, and what was skipped.

    Args:
        paths: Files and URLs in order, without duplicates.
        left_out: Number of unsupported pictures, by suffix.
        deeper: Number of images in subfolders that were not searched, by folder.
        too_many: Folders in which there may be more of them.
        problems: A line for each path that doesn't exist.
    """

    paths: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    deeper: Counter[str] = field(default_factory=Counter)
    too_many: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Lines about skipped images."""
        lines = [
            f"{folder}: {'at least ' if folder in self.too_many else ''}"
            f"{counted(number, 'photo lies', 'photos lie')} deeper: add --recursive"
            for folder, number in self.deeper.items()
        ]
        if self.left_out:
            kinds = ", ".join(f"{number:,} {ending[1:].upper()}" for ending, number in self.left_out.most_common())
            readers = {
                each for package, endings in EXTRA_READERS.items() if not is_installed(package) for each in endings
            }
            names = ", ".join(ending[1:].upper() for ending, _ in self.left_out.most_common() if ending in readers)
            advice = f"; {INSTALL_READERS} reads {names}" if names else ""
            lines.append(f"{self.left_out.total():,} left out: {kinds}{advice}")
        return lines


def find_images(patterns: Sequence[str], recursive: bool = False) -> Found:
    """Files, URLs, the images in folders, and matches of patterns, in order, without duplicates.

    Hidden files and folders are skipped, unless named explicitly. A folder with several links to it is read once.

    Args:
        patterns: Paths, URLs and patterns.
        recursive: Whether to search subfolders.

    Raises:
        UsageError: An empty path.
    """
    finder = _Finder(recursive)
    for pattern in patterns:
        if not pattern:
            raise UsageError("an empty path: name an image, a folder or a pattern.")
        finder.add(pattern)
    finder.found.paths = list(finder.paths)
    return finder.found


class _Finder:
    def __init__(self, recursive: bool):
        self.paths: dict[str, None] = {}
        self.found = Found()
        self._recursive = recursive
        self._readable = readable_suffixes()
        with_extras = (ending for endings in EXTRA_READERS.values() for ending in endings)
        self._picture_suffixes = {*self._readable, *OTHER_PICTURES, *with_extras}

    def add(self, pattern: str) -> None:
        path = os.path.expanduser(pattern)
        if pattern.startswith(ADDRESSES):
            self.paths[pattern] = None
        elif os.path.isdir(path):  # never raises: an invalid name fails when the image is loaded
            self._add_folder(path, pattern)
        elif not os.path.exists(path) and glob.has_magic(pattern):
            matches = sorted(glob.glob(path, recursive=True))
            files = [match for match in matches if os.path.isfile(match)]
            self.paths.update(dict.fromkeys(files))
            if not files:
                for folder in matches:
                    self._add_folder(folder, folder)
            if not matches:
                self.found.problems.append(f"{pattern}: no file matches.")
        else:
            self.paths[pattern] = None

    def _add_folder(self, folder: str, name: str) -> None:
        is_empty = True
        for path in self._pictures(folder, set()):
            ending = Path(path).suffix.lower()
            if ending in self._readable:
                self.paths[path] = None
            else:
                self.found.left_out[ending] += 1
            is_empty = False
        is_empty &= self._recursive or not self._count_deeper(folder, name)
        if is_empty:
            self.found.problems.append(f"{name}: no images in this folder.")

    def _count_deeper(self, folder: str, name: str) -> int:
        """The number of images in readable subfolders, for a hint; of a large tree, only the first are counted."""
        number = looked_at = 0
        for inside, subfolders, files in os.walk(folder):
            if looked_at > MAX_COUNTED:
                self.found.too_many.add(name)
                break
            subfolders[:] = filter(_is_shown, subfolders)
            if inside != folder:
                number += sum(Path(file).suffix.lower() in self._readable for file in filter(_is_shown, files))
                looked_at += len(files)
            looked_at += len(subfolders)
        if number:
            self.found.deeper[name] += number
        return number

    def _pictures(self, folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        """The pictures in a folder by name, then those in its subfolders if they are searched."""
        try:
            state = os.stat(folder)
            if (state.st_dev, state.st_ino) in seen:  # symlink loop
                return
            seen.add((state.st_dev, state.st_ino))
            names = sorted(filter(_is_shown, os.listdir(folder)))
        except OSError as error:
            self.found.problems.append(f"{folder} can't be read: {error.strerror}.")
            return
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in self._picture_suffixes and os.path.isfile(path):  # never raises
                yield str(path)
        for name in names if self._recursive else []:
            if os.path.isdir(inside := os.path.join(folder, name)):
                yield from self._pictures(inside, seen)


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_PHOTOS
