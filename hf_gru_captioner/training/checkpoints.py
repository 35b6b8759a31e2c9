"""Checkpoints that are whole or not there."""

import shutil
from pathlib import Path
from typing import Protocol


class Savable(Protocol):
    """A model or a processor."""

    def save_pretrained(self, save_directory: str) -> object: ...


def save_whole(folder: str | Path, *parts: Savable) -> None:
    """Saves a model and its processor into one folder, in the place of what was there. Runs on one process.

    Everything is written beside the folder and renamed at the end, so a run that is killed leaves the old checkpoint or
    the new one, never half of one.
    """
    folder = Path(folder)
    aside, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():  # a run was killed between the two renames below
        old.rename(folder)
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    for part in parts:
        part.save_pretrained(str(aside))
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
