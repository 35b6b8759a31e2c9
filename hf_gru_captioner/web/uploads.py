"""Uploads on the disk: in a folder of this process alone, limited, and deleted after ten minutes.

Gradio writes uploads to one folder of the machine, shared by all of its pages, and reads any path that a visitor names:
it checks those marked as uploads (`meta`), and accepts images without it. Here a path is accepted only if it leads to a
regular file inside of the folder.
"""

import atexit
import functools
import ipaddress
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted_images import LIMITS, Limits, RefusedError, is_public, read_photo
from . import heap

PREFIX = "gru-captioner-"
NO_SUCH_PHOTO = "This photo is not here; what is sent is deleted after {minutes:.0f} minutes. Please send it again."


@dataclass
class Sent:
    """An upload request.

    Attributes:
        began: Start, in seconds of the monotonic clock.
        num_bytes: Received so far.
        num_files: Received so far.
        is_complete: Whether it has ended.
    """

    began: float
    num_bytes: int = 0
    num_files: int = 0
    is_complete: bool = False


class Uploads:
    """The folder of uploads, and how much each visitor has sent.

    Args:
        folder: Its path; everything in it is deleted in time except for what [`keep_present`] found.
        limits: Per visitor and in total.
    """

    def __init__(self, folder: Path, limits: Limits = LIMITS):
        self.folder = folder.resolve()
        self.limits = limits
        self._kept: set[str] = set()
        self._sent: dict[str, list[Sent]] = {}
        self._lock = threading.Lock()

    def check(self, path: str) -> Path:
        """The file that a visitor's path leads to.

        Raises:
            RefusedError: Not a file of this folder, or too large; the same message whether the file exists or not.
        """
        real, found = Path(path), None
        with suppress(OSError, RuntimeError, ValueError):  # no file, circular links, or a null byte in its name
            if Path(os.path.abspath(path)).is_relative_to(self.folder):  # other paths are not looked up on the disk
                real = real.resolve(strict=True)
                found = real.lstat() if real.is_relative_to(self.folder) else None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size > self.limits.file_bytes:
            raise self._gone()
        return real

    def read(self, path: str) -> bytes:
        """The photo in the file that a visitor's path leads to, see [`read_photo`].

        Raises:
            RefusedError: As in [`check`] and [`read_photo`].
        """
        try:
            return read_photo(self.check(path), self.limits)
        except OSError:  # deleted just now
            raise self._gone() from None

    def _gone(self) -> RefusedError:
        return RefusedError(NO_SUCH_PHOTO.format(minutes=self.limits.kept_seconds / 60))

    def check_all(self, sent: Any) -> None:
        """Check every path in a visitor's JSON, at any depth; a file's name alone is not a path.

        Raises:
            RefusedError: As in [`check`].
        """
        waiting = [sent]
        while waiting:
            each = waiting.pop()
            if isinstance(each, Mapping):
                if "path" in each or "meta" in each:
                    self.check(str(each.get("path")))
                waiting += each.values()
            elif isinstance(each, list | tuple):
                waiting += each

    def begin(self, visitor: str) -> Sent:
        """Start an upload of a visitor; [`count`] counts it as it arrives.

        Raises:
            RefusedError: As in [`count`].
        """
        with self._lock:
            self._forget()
            sent = Sent(time.monotonic())
        self.count(visitor, sent, 0, 0)
        with self._lock:
            self._sent.setdefault(visitor, []).append(sent)
        return sent

    def count(self, visitor: str, sent: Sent, num_bytes: int, num_files: int) -> None:
        """
        Raises:
            RefusedError: A limit per visitor, or of all together, is exceeded.
        """
        limits, minutes = self.limits, self.limits.kept_seconds / 60
        with self._lock:
            sent.num_bytes += num_bytes
            sent.num_files += num_files
            own = self._sent.get(visitor, [])
            if sum(each.num_bytes for each in own) > limits.visitor_bytes:
                raise RefusedError(
                    f"More than {limits.visitor_bytes / 1e6:.0f} MB were sent from here in {minutes:.0f} minutes. "
                    "Please try again later."
                )
            if sum(each.num_files for each in own) > limits.visitor_files:
                raise RefusedError(
                    f"More than {limits.visitor_files} files were sent from here in {minutes:.0f} minutes. "
                    "Please try again later."
                )
            if sum(each.num_bytes for one in self._sent.values() for each in one) > limits.uploads_bytes:
                raise RefusedError("Too many people are sending photos right now. Please try again later.")

    @property
    def visitors(self) -> set[str]:
        """Whose uploads are counted."""
        with self._lock:
            return set(self._sent)

    def reset_counts(self) -> None:
        """Forget how much each visitor has sent."""
        with self._lock:
            self._sent = {}

    def keep_present(self) -> None:
        """Keep what is in the folder before the first visitor: the page's examples."""
        self._kept |= {file.path for file in _files(self.folder)}

    def sweep(self) -> None:
        """Delete what is older than ten minutes."""
        oldest = time.time() - self.limits.kept_seconds
        for file in _files(self.folder):
            with suppress(OSError):  # deleted by another thread
                if file.path not in self._kept and file.stat(follow_symlinks=False).st_ctime < oldest:
                    os.unlink(file.path)
                    os.rmdir(os.path.dirname(file.path))  # if it was the last of its folder

    def _forget(self) -> None:
        oldest = time.monotonic() - self.limits.kept_seconds
        for visitor, own in list(self._sent.items()):
            self._sent[visitor] = [each for each in own if each.began > oldest or not each.is_complete]
            if not self._sent[visitor]:
                del self._sent[visitor]


@functools.cache
def uploads() -> Uploads:
    """The uploads of this process. Gradio reads their folder from the environment on each access."""
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    _delete_orphans(parent)
    found = Uploads(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)))
    os.environ["GRADIO_TEMP_DIR"] = str(found.folder)
    atexit.register(shutil.rmtree, found.folder, ignore_errors=True)
    threading.Thread(target=_sweep_for_ever, args=[found], name="sweep", daemon=True).start()
    return found


def visitor_of(scope: Mapping[str, Any]) -> str:
    """The visitor of a request: its address, of IPv6 the /64 network.

    A proxy on this machine or network names the client; the last public address in its header counts, since earlier
    ones may be forged.
    """
    address = (scope.get("client") or ("unknown",))[0]
    try:
        if not is_public(address):
            said = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for").decode("latin-1")
            address = next((each for each in map(str.strip, reversed(said.split(","))) if _is_public(each)), address)
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return address
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def _is_public(address: str) -> bool:
    try:
        return is_public(address)
    except ValueError:
        return False


def _files(folder: str | Path) -> Iterator[os.DirEntry]:
    """Every file below a folder; files that disappear meanwhile are skipped."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry


def _sweep_for_ever(found: Uploads) -> None:
    while True:
        time.sleep(min(15.0, found.limits.kept_seconds))
        found.sweep()
        heap.trim()


def _delete_orphans(parent: Path) -> None:
    """Delete the folders of killed processes."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        try:
            os.kill(int(folder.name.removeprefix(PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):  # not ours, or another user's
            continue
