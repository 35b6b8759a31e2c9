"""Atomic writes, and the names of a checkpoint's files.

Everything is written to a temporary sibling first, flushed to disk, and renamed: a killed process, a full disk or a
power cut leaves the old content or the new, never a partial file.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"  # of sharded weights
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PROCESSOR_CONFIG = "processor_config.json"
TOKENIZER = "tokenizer.json"
GRAPHS_FOLDER = "onnx"  # a checkpoint's graphs, which use the weights in its own file
GRAPHS_SETTINGS = "graphs.json"  # marks a folder of graphs
SCORES = "scores.json"
TRAINING_RECORD = "training.json"
# Entries of a configuration that record its origin and don't affect computation.
PROVENANCE = {"_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version"}
PARTIAL = ".partial"  # suffix of files being written
MAX_NAME = 200  # bytes of a file's name kept in its temporary sibling's: file systems allow 255


@contextmanager
def atomic_path(path: str | os.PathLike[str], writer: str = "") -> Iterator[Path]:
    """A temporary sibling to write to, which replaces `path` when the block succeeds.

    Args:
        path: The file.
        writer: Distinguishes processes that may write the same file concurrently; the last one wins.

    Raises:
        OSError: Writing failed; an existing file is unchanged.
    """
    path = Path(path)
    name = os.fsdecode(os.fsencode(path.name)[:MAX_NAME])
    temporary = path.with_name(".".join(filter(None, (name, writer))) + PARTIAL)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: str | bytes, writer: str = "") -> None:
    """Writes a file atomically, text as UTF-8; `writer` as in [`atomic_path`].

    Raises:
        OSError: As in [`atomic_path`].
    """
    with atomic_path(path, writer) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty temporary folder to write to, which replaces `folder` when the block succeeds.

    Leftovers of a killed process are cleaned up first. Runs on one process.

    Raises:
        OSError: Writing failed; an existing folder is unchanged.
    """
    folder = Path(folder)
    temporary, old = folder.with_name(f"{folder.name}{PARTIAL}"), folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():  # killed between the two renames below
        old.rename(folder)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        flush(temporary)
        if folder.exists():  # a folder can't be renamed onto a non-empty one
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Flushes a file, or a folder and everything in it, to disk."""
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def distinct_names(names: Iterable[str]) -> list[str]:
    """Names of files to write, in order: repeated ones are numbered (`a`, `a.2`), long ones are shortened."""
    distinct: dict[str, None] = {}
    num_repeated: Counter[str] = Counter()
    for name in names:
        numbered = shortened = os.fsdecode(os.fsencode(name)[:MAX_NAME])
        while numbered in distinct:
            num_repeated[shortened] += 1
            numbered = f"{shortened}.{num_repeated[shortened] + 1}"
        distinct[numbered] = None
    return [*distinct]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
