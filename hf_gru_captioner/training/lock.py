"""One run in one output folder: a lock that the system lets go of when its process ends, however it ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "run.lock"
HOLDER = "run.lock.holder"  # who has it; the lock itself is an empty file
PATIENCE = 10.0  # seconds: the processes that read photos ahead may outlive a killed run so long


class FolderHeldError(OSError):
    """Another run works in the folder; its text says which."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process. Runs on one process.

    Raises:
        FolderHeldError: Another process has it.
        OSError: Nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise FolderHeldError(
            f"{folder} is held by another run, {_holder(folder)}: wait for its end, or name another output_dir."
        ) from error
    try:
        since = datetime.now(UTC).isoformat(" ", "seconds")
        partial = folder / f"{HOLDER}.partial"
        partial.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        partial.replace(folder / HOLDER)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text()[:200]
    except (OSError, ValueError):
        return "which has not said its number"
