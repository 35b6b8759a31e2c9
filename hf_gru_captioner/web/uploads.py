"""Uploads on disk: in a folder private to this process, limited in size, and deleted after ten minutes.

Gradio writes uploads to one folder per machine, shared by all its pages, and reads any path that a visitor names: it
checks only those marked as uploads (`meta`), and accepts images without the mark. Here a path is accepted only if it
leads to a regular file in the folder.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..untrusted_images import LIMITS, Limits, RefusedError, is_public, read_photo
from . import heap

PREFIX = "gru-captioner-"
# Of visitors on this machine, whom nobody has to be protected from: two reviews of the most photos at their largest.
LOCAL_LIMITS = replace(LIMITS, visitor_files=100_000, visitor_bytes=20_000_000_000, uploads_bytes=20_000_000_000)
NO_SUCH_PHOTO = "This photo is not here; photos are deleted after {minutes:.0f} minutes. Please send it again."


@dataclass
class UploadRequest:
    """An upload request.

    Attributes:
        began: Start time, in seconds of the monotonic clock.
        num_bytes: Bytes received so far.
        num_files: Files received so far.
        is_complete: Whether it has ended.
    """

    began: float
    num_bytes: int = 0
    num_files: int = 0
    is_complete: bool = False


class Uploads:
    """The folder of uploads, and how much each visitor has sent.

    Args:
        folder: Its path; everything in it is deleted after a while, except for what [`keep_present`] found.
        limits: Per visitor and in total.

    Attributes:
        local_limits: What visitors on this machine may send instead; None for the same.
    """

    local_limits: Limits | None = None

    def __init__(self, folder: Path, limits: Limits = LIMITS):
        self.folder = folder.resolve()
        self.limits = limits
        self._kept: set[str] = set()
        self._sent: dict[str, list[UploadRequest]] = {}
        self._lock = threading.Lock()

    def check(self, path: str) -> Path:
        """The file that a visitor's path leads to.

        Raises:
            RefusedError: Not a file in this folder, or too large; the message is the same whether it exists or not.
        """
        real, found = Path(path), None
        with suppress(OSError, RuntimeError, ValueError):  # no file, circular links, or a null byte in the name
            if Path(os.path.abspath(path)).is_relative_to(self.folder):  # other paths are not looked up on disk
                real = real.resolve(strict=True)
                found = real.lstat() if real.is_relative_to(self.folder) else None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size > self.limits.file_bytes:
            raise self._not_here()
        return real

    def read(self, path: str) -> bytes:
        """The photo in the file that a visitor's path leads to, see [`read_photo`].

        Raises:
            RefusedError: As in [`check`] and [`read_photo`].
        """
        try:
            return read_photo(self.check(path), self.limits)
        except OSError:  # deleted just now
            raise self._not_here() from None

    def _not_here(self) -> RefusedError:
        return RefusedError(NO_SUCH_PHOTO.format(minutes=self.limits.kept_seconds / 60))

    def check_all(self, sent: Any) -> None:
        """Checks every path in a visitor's JSON, at any depth; the name of a file alone is not a path.

        Raises:
            RefusedError: As in [`check`].
        """
        pending = [sent]
        while pending:
            each = pending.pop()
            if isinstance(each, Mapping):
                if "path" in each or "meta" in each:
                    self.check(str(each.get("path")))
                pending += each.values()
            elif isinstance(each, list | tuple):
                pending += each

    def begin(self, visitor: str) -> UploadRequest:
        """Starts an upload of a visitor, which [`count`] then counts as it arrives.

        Raises:
            RefusedError: As in [`count`].
        """
        with self._lock:
            self._forget_old()
            sent = UploadRequest(time.monotonic())
        self.count(visitor, sent, 0, 0)
        with self._lock:
            self._sent.setdefault(visitor, []).append(sent)
        return sent

    def count(self, visitor: str, sent: UploadRequest, num_bytes: int, num_files: int) -> None:
        """Counts bytes and files of an upload as they arrive.

        Raises:
            RefusedError: A limit per visitor, or for all together, is exceeded.
        """
        limits = self.local_limits if self.local_limits and is_loopback(visitor) else self.limits
        minutes = self.limits.kept_seconds / 60
        with self._lock:
            sent.num_bytes += num_bytes
            sent.num_files += num_files
            own = self._sent.get(visitor, [])
            if sum(each.num_bytes for each in own) > limits.visitor_bytes:
                raise RefusedError(
                    f"More than {_size(limits.visitor_bytes)} were sent from here in {minutes:.0f} minutes. "
                    "Please try again later."
                )
            if sum(each.num_files for each in own) > limits.visitor_files:
                raise RefusedError(
                    f"More than {limits.visitor_files:,} files were sent from here in {minutes:.0f} minutes. "
                    "Please try again later."
                )
            if sum(each.num_bytes for one in self._sent.values() for each in one) > limits.uploads_bytes:
                raise RefusedError("Too many people are sending photos right now. Please try again later.")

    @property
    def visitors(self) -> set[str]:
        """The visitors whose uploads are counted."""
        with self._lock:
            return set(self._sent)

    def reset_counts(self) -> None:
        """Forgets how much each visitor has sent."""
        with self._lock:
            self._sent = {}

    def keep_present(self) -> None:
        """Exempts the files now in the folder, the page's examples, from deletion."""
        self._kept |= {file.path for file in _files(self.folder)}

    def sweep(self) -> None:
        """Deletes files older than ten minutes."""
        oldest = time.time() - self.limits.kept_seconds
        for file in _files(self.folder):
            with suppress(OSError):  # deleted by another thread
                if file.path not in self._kept and file.stat(follow_symlinks=False).st_ctime < oldest:
                    os.unlink(file.path)
                    os.rmdir(os.path.dirname(file.path))  # if it was the last one in its folder

    def _forget_old(self) -> None:
        oldest = time.monotonic() - self.limits.kept_seconds
        for visitor, own in list(self._sent.items()):
            self._sent[visitor] = [each for each in own if each.began > oldest or not each.is_complete]
            if not self._sent[visitor]:
                del self._sent[visitor]


@functools.cache
def uploads() -> Uploads:
    """The uploads of this process. Gradio reads the folder from the environment on each access."""
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    _delete_orphans(parent)
    found = Uploads(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)))
    os.environ["GRADIO_TEMP_DIR"] = str(found.folder)
    atexit.register(shutil.rmtree, found.folder, ignore_errors=True)
    threading.Thread(target=_sweep_forever, args=[found], name="sweep", daemon=True).start()
    return found


def visitor_of(scope: Mapping[str, Any]) -> str:
    """The visitor of a request: its IP address, or its /64 network for IPv6.

    A proxy on this machine or network names the client in a header, of which the last public address counts, since
    earlier ones may be forged.
    """
    address = (scope.get("client") or ("unknown",))[0]
    try:
        if not is_public(address):
            headers = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
            addresses = b",".join(headers).decode("latin-1").split(",")
            address = next((each for each in map(str.strip, reversed(addresses)) if _is_public(each)), address)
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return address
    return str(ip) if ip.version == 4 or ip.is_loopback else str(ipaddress.ip_network((ip, 64), strict=False))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host, a name or an IP address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:g} GB"


def _is_public(address: str) -> bool:
    try:
        return is_public(address)
    except ValueError:
        return False


def _files(folder: str | Path) -> Iterator[os.DirEntry]:
    """Yields every file below a folder; those that disappear meanwhile are skipped."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        else:
            yield entry


def _sweep_forever(found: Uploads) -> None:
    while True:
        time.sleep(min(15.0, found.limits.kept_seconds))
        found.sweep()
        heap.trim()


def _delete_orphans(parent: Path) -> None:
    """Deletes the folders of killed processes."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        try:
            os.kill(int(folder.name.removeprefix(PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):  # not ours, or another user's
            continue
