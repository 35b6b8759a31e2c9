"""Files that are whole or not there, and the names of those that a checkpoint consists of.

Whatever is written goes to a temporary sibling first, is flushed to the disk, and takes its place by a rename: a killed
process, a full disk or a power cut leaves the old content or the new, never a part.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PROCESSOR_CONFIG = "processor_config.json"
TOKENIZER = "tokenizer.json"
GRAPHS_FOLDER = "onnx"  # of a checkpoint: its graphs, which read their weights from its own file
GRAPHS_SETTINGS = "graphs.json"  # which makes a folder one of graphs
SCORES = "scores.json"
TRAINING_RECORD = "training.json"
# Entries of a configuration that say where it comes from and change nothing that is computed.
PROVENANCE = {"_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version"}
PARTIAL = ".partial"  # the ending of what is being written
MAX_NAME = 200  # bytes of a file's name that its temporary sibling's keeps: 255 are all that file systems take


@contextmanager
def atomic_path(path: str | os.PathLike[str], writer: str = "") -> Iterator[Path]:
    """A temporary sibling to write to, which takes the place of `path` when the block ends well.

    Args:
        path: The file.
        writer: What tells processes apart that may write the same file at the same time; the last one wins.

    Raises:
        OSError: It can't be written; what was there is as it was.
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
    """Writes a file, text as UTF-8, whole or not at all; `writer` as in [`atomic_path`].

    Raises:
        OSError: As in [`atomic_path`].
    """
    with atomic_path(path, writer) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty temporary folder to write to, which takes the place of `folder` when the block ends well.

    What a killed process has left behind is put right first. Runs on one process.

    Raises:
        OSError: It can't be written; what was there is as it was.
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
        if folder.exists():  # a folder can't be renamed onto one with files
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
    """Has the disk write down what the system may still hold in memory of a file, or of a folder and all in it."""
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
