"""Finds files in a folder or ZIP archive by names that may be spelled slightly differently.

Tables often come from other machines: backslashes, drive letters, the author's folders, case that Windows and macOS
ignore, accents in another Unicode form. A file is matched to such a name only if it is unambiguous.
"""

import itertools
import os
import re
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from ..errors import UsageError, reason_of
from .columns import IMAGE_SUFFIXES

MAX_LISTED = 3_000_000  # files of a folder
MAX_MEMBER = 100_000_000  # bytes of an image in an archive, unpacked
MAX_TABLE = 1_000_000_000  # bytes of another file in an archive, unpacked
HIDDEN = (".", "__MACOSX")  # prefixes of hidden and system files
MAX_TAILS = 4  # trailing path components to match


class File(NamedTuple):
    """A file that was found."""

    path: str  # for `Origin.read`
    num_bytes: int
    mtime_ns: int  # for an archive member, its checksum
    is_exact: bool = True  # whether its name matches exactly


class Folder(Protocol):
    """A folder, or an archive."""

    path: Path

    @property
    def names(self) -> list[str]:
        """Relative paths of all files except hidden ones, with slashes, sorted."""

    def read(self, name: str) -> bytes:
        """The bytes of a file."""

    def find(self, name: str, *, exactly: bool = True) -> File | None:
        """The file with this name; unless `exactly`, it may differ in case or Unicode form, or have an additional image
        suffix."""


class DiskFolder:
    """A folder on this machine."""

    def __init__(self, path: Path):
        self.path = path
        self._listings: dict[str, dict[str, str | None]] = {}

    @cached_property
    def names(self) -> list[str]:
        names: list[str] = []
        for folder, subfolders, files in os.walk(self.path):
            subfolders[:] = sorted(each for each in subfolders if not each.startswith(HIDDEN))
            inside = os.path.relpath(folder, self.path)
            names += [
                (each if inside == "." else f"{inside}/{each}").replace(os.sep, "/")
                for each in files
                if not each.startswith(HIDDEN)
            ]
            if len(names) > MAX_LISTED:
                raise UsageError(f"{self.path} has more than {MAX_LISTED:,} files: name a folder of captioned images.")
        return sorted(names)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def find(self, name: str, *, exactly: bool = True) -> File | None:
        path = os.path.join(self.path, name)
        if not exactly:
            actual = self._actual_name(name)
            if actual is None:
                return None
            path = os.path.join(self.path, actual)
        if not os.path.isfile(path):  # never raises
            return None
        state = os.stat(path)
        return File(path, state.st_size, state.st_mtime_ns, is_exact=exactly)

    def _actual_name(self, name: str) -> str | None:
        """The name as spelled on disk."""
        folder = ""
        *parents, last = [part for part in name.split("/") if part not in ("", ".")] or [""]
        for part in parents:
            found = self._listing(folder).get(plain_file_name(part))
            if found is None:
                return None
            folder = os.path.join(folder, found)
        listing = self._listing(folder)
        found = listing.get(plain_file_name(last)) or listing.get(_without_ending(last))
        return None if found is None else os.path.join(folder, found)

    def _listing(self, folder: str) -> dict[str, str | None]:
        if folder not in self._listings:
            try:
                names = os.listdir(self.path / folder)
            except (OSError, ValueError):
                names = []
            self._listings[folder] = _index(names)
        return self._listings[folder]


class Archive:
    """A ZIP archive, read in place.

    Raises:
        UsageError: It is damaged or encrypted.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {
                    info.filename: info
                    for info in archive.infolist()
                    if not info.is_dir()
                    and not any(part.startswith(HIDDEN) for part in PurePosixPath(info.filename).parts)
                }
        except Exception as error:  # zipfile raises errors of any kind
            raise UsageError(f"{path} can't be read as a ZIP archive ({reason_of(error)}).") from error
        if any(info.flag_bits & 1 for info in self._members.values()):
            raise UsageError(f"{path} is encrypted: unpack it, and name the folder.")
        # if everything is inside a single folder, possibly nested, that folder is the root
        folders = [name.split("/")[:-1] for name in self._members]
        common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
        self._top = "".join(f"{part}/" for part, *_ in common)
        self._members = {name.removeprefix(self._top): info for name, info in self._members.items()}
        self._by_plain_name = _index(self._members)

    @property
    def names(self) -> list[str]:
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        return read_member(str(self.path), self._top + name, MAX_TABLE)

    def find(self, name: str, *, exactly: bool = True) -> File | None:
        name = str(PurePosixPath(name))
        if not exactly:
            found = self._by_plain_name.get(plain_file_name(name)) or self._by_plain_name.get(_without_ending(name))
            name = name if found is None else found
        info = self._members.get(name)
        if info is None:
            return None
        return File(f"zip://{info.filename}::{self.path.absolute()}", info.file_size, info.CRC, is_exact=exactly)


_opened: dict[str, tuple[tuple[int, int, int], zipfile.ZipFile]] = {}


def read_member(archive: str, name: str, max_bytes: int = MAX_MEMBER) -> bytes:
    """The bytes of a file in an archive, which stays open for the next call.

    Raises:
        OSError, ValueError: It can't be read, or is too large.
    """
    state = os.stat(archive)
    key = (os.getpid(), state.st_size, state.st_mtime_ns)  # a forked process must not share the file position
    if archive not in _opened or _opened[archive][0] != key:
        _opened.clear()
        _opened[archive] = (key, zipfile.ZipFile(archive))
    try:
        with _opened[archive][1].open(name) as file:
            content = file.read(max_bytes + 1)  # the size in the archive may be false
    except (KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"can't be unpacked ({reason_of(error)})") from error
    if len(content) > max_bytes:
        raise ValueError(f"larger than {max_bytes / 1e6:.0f} MB when unpacked")
    return content


def open_folder(path: Path) -> DiskFolder | Archive:
    """Opens a folder, or a file as an archive."""
    return Archive(path) if path.is_file() else DiskFolder(path)


def plain_file_name(name: str) -> str:
    """A normalized file name for comparison."""
    return unicodedata.normalize("NFC", name).casefold()


def _without_ending(name: str) -> str:
    """The key in [`_index`] for names without a suffix."""
    return plain_file_name(name) + "\0"


def _index(names: Iterable[str]) -> dict[str, str | None]:
    """Names by normalized name, for images also without suffix; None if ambiguous."""
    index: dict[str, str | None] = {}
    for name in names:
        keys = [plain_file_name(name)]
        stem, ending = os.path.splitext(name)
        if ending.lower() in IMAGE_SUFFIXES:
            keys.append(_without_ending(stem))
        for key in keys:
            index[key] = name if index.get(key, name) == name else None
    return index


def with_slashes(path: str) -> str:
    """A path with forward slashes, and without `file://`."""
    path = path.strip().removeprefix("file://")
    if "\\" in path:
        path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _parts(path: str) -> list[str]:
    return [part for part in re.sub(r"^[A-Za-z]:", "", path).split("/") if part not in ("", ".", "..")]


class ImageFinder:
    """Finds image files in folders.

    Args:
        paths: All paths to be found: the end of a path identifies a file only if no other path has the same end.
        folders: Folders with the names of subfolders to search, in this order; "" is the folder itself.
        outside: Whether paths may lead out of these folders.
        from_working_directory: Whether paths may also be relative to it, like those of `gru-captioner caption`.
    """

    def __init__(
        self,
        paths: Iterable[str],
        folders: Sequence[tuple[Folder, Sequence[str]]],
        *,
        outside: bool,
        from_working_directory: bool = False,
    ):
        self._from_working_directory = from_working_directory
        self._folders = folders
        self._outside = outside
        self._paths = {with_slashes(path) for path in paths}

    @cached_property
    def _ends(self) -> Counter[str]:
        """Number of paths with each end."""
        ends: Counter[str] = Counter()
        for path in self._paths:
            parts = _parts(path)
            ends.update("/".join(parts[-number:]) for number in range(1, min(len(parts), MAX_TAILS) + 1))
        return ends

    def find(self, path: str, prefers=lambda subfolder: True) -> File | None:
        """The file for a path, or None.

        Args:
            path: Path in the table.
            prefers: Subfolder -> whether to search it first.
        """
        plain = with_slashes(path)
        leads_out = os.path.isabs(plain) or ".." in plain.split("/") or re.match(r"[A-Za-z]:/", plain) is not None
        spellings = [] if leads_out and not self._outside else list(dict.fromkeys((path.strip(), plain)))
        places = [
            (folder, subfolder)
            for preferred in (True, False)
            for folder, subfolders in self._folders
            for subfolder in subfolders
            if prefers(subfolder) == preferred
        ]
        if found := self._first(spellings, places, exactly=True):
            return found
        if self._from_working_directory and not leads_out and plain and os.path.isfile(plain):
            state = os.stat(plain)
            return File(os.path.abspath(plain), state.st_size, state.st_mtime_ns)
        unquoted = unquote(plain)  # %20 for a space, as in URLs
        if unquoted != plain and (found := self._first([unquoted], places, exactly=True)):
            return found._replace(is_exact=False)
        parts = _parts(plain)
        whole = "/".join(parts)
        tails = ["/".join(parts[-number:]) for number in range(min(len(parts), MAX_TAILS), 0, -1)]
        unique = [tail for tail in tails if tail != whole or leads_out]
        unique = [tail for tail in unique if self._ends[tail] == 1]
        if found := self._first(unique, places, exactly=True):
            return found
        inside = [] if leads_out else [whole]
        return self._first([*inside, *unique], places, exactly=False)

    def _first(self, spellings: Sequence[str], places: Sequence[tuple[Folder, str]], *, exactly: bool) -> File | None:
        for spelling in spellings:
            if not spelling:
                continue
            for folder, subfolder in places:
                name = f"{subfolder}/{spelling}" if subfolder and not os.path.isabs(spelling) else spelling
                if found := folder.find(name, exactly=exactly):
                    return found
        return None
