"""What visitors send, on the disk: in a folder of this process alone, bounded, and deleted after ten minutes.

Gradio writes uploads below one folder of the machine, which all of its pages share, and reads whatever path a visitor
names: it checks those that come with the mark of an upload (`meta`), and takes pictures without it. Here a path counts
only when it leads to a regular file inside of the folder.
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

from ..untrusted_images import LIMITS, Limits, RefusedError, is_public
from . import heap

PREFIX = "gru-captioner-"
NO_SUCH_PHOTO = "This photo is not here; what is sent is deleted after {minutes:.0f} minutes. Please send it again."


@dataclass
class Sent:
    """What came with one request.

    Attributes:
        began: When, in seconds of the monotonic clock.
        num_bytes: So far.
        num_files: So far.
        is_complete: Whether it came to its end.
    """

    began: float
    num_bytes: int = 0
    num_files: int = 0
    is_complete: bool = False


class Uploads:
    """The folder of uploads, and who has sent how much into it.

    Args:
        folder: Where it is; everything in it may be deleted but what [`keep_present`] found.
        limits: Of each visitor and of all together.
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
            RefusedError: Not a file of this folder, or too large; said alike whether there is one elsewhere or not.
        """
        real, found = Path(path), None
        with suppress(OSError, RuntimeError, ValueError):  # no file, links in a circle, or a null byte in its name
            if Path(os.path.abspath(path)).is_relative_to(self.folder):  # of other paths, the disk is asked nothing
                real = real.resolve(strict=True)
                found = real.lstat() if real.is_relative_to(self.folder) else None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size > self.limits.picture_bytes:
            raise self._gone()
        return real

    def read(self, path: str) -> bytes:
        """The content of the file that a visitor's path leads to.

        Raises:
            RefusedError: As in [`check`].
        """
        try:
            return self.check(path).read_bytes()
        except OSError:  # its ten minutes ended just now
            raise self._gone() from None

    def _gone(self) -> RefusedError:
        return RefusedError(NO_SUCH_PHOTO.format(minutes=self.limits.kept_seconds / 60))

    def check_all(self, sent: Any) -> None:
        """Checks every path in what a visitor sent as JSON, however deep; a file's name alone is no path.

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
        """Room for what a visitor begins to send; it is counted by [`count`] as it comes.

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
            RefusedError: More than one visitor, or all together, may send in ten minutes.
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

    def keep_present(self) -> None:
        """What is in the folder before the first visitor comes is the page's own: its examples."""
        self._kept |= {file.path for file in _files(self.folder)}

    def sweep(self) -> None:
        """Deletes what has been here for ten minutes."""
        oldest = time.time() - self.limits.kept_seconds
        for file in _files(self.folder):
            with suppress(OSError):  # another may have been quicker
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
    """Those of this process. Gradio reads where they are to be from the environment, whenever it looks."""
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    _delete_orphans(parent)
    found = Uploads(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)))
    os.environ["GRADIO_TEMP_DIR"] = str(found.folder)
    atexit.register(shutil.rmtree, found.folder, ignore_errors=True)
    threading.Thread(target=_sweep_for_ever, args=[found], name="sweep", daemon=True).start()
    return found


def visitor_of(scope: Mapping[str, Any]) -> str:
    """Who asks: the address that the request came from, of IPv6 the network of its household.

    A proxy on the own machine or network says for whom it asks; of what it says, the last public address is believed,
    since those before it may be made up.
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
    """Every file below a folder; what disappears meanwhile is left out."""
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
    """Deletes the folders of processes that were killed before they could."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        try:
            os.kill(int(folder.name.removeprefix(PREFIX).partition("-")[0]), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):  # not ours, or of another user
            continue
