"""Ensures one run per output folder: locks it during a run, and records the options of the run.

The operating system releases the lock when the process ends, however it ends.
"""

import hashlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..data.features import CARRIED
from ..errors import UsageError
from ..files import write_atomically
from .checkpoints import STATES
from .config import UNCLAIMED, TrainingConfig, flatten_options

OPTIONS = "config.yaml"
RUN = "run.sha256"  # id of the run, from its options and training data
EPOCHS = "optimization.epochs"  # may be increased to continue a finished run
LOCK = "run.lock"
HOLDER = "run.lock.holder"  # which process holds it; the lock itself is an empty file
PATIENCE = 10.0  # seconds that prefetching processes may outlive a killed run


class FolderHeldError(OSError):
    """Another run holds the folder; the message says which."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Locks a folder for this process. Runs on one process.

    Raises:
        FolderHeldError: Another process holds it.
        OSError: The folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise FolderHeldError(
            f"{folder} is held by another run, {_holder(folder)}: wait until it ends, or name another output_dir."
        ) from error
    try:
        since = datetime.now(UTC).isoformat(" ", "seconds")
        write_atomically(folder / HOLDER, f"process {os.getpid()} on {socket.gethostname()} since {since}")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text()[:200]
    except (OSError, ValueError):
        return "an unknown process"


def claim(config: TrainingConfig, accelerator: Any, training_sets: Sequence[Any] = ()) -> str:
    """Saves the options in `output_dir`; rejects a folder that holds a run on other images or captions, or with other
    options. A run with fewer epochs is continued.

    Runs on every process; the first one writes.

    Returns:
        An id of this run: a digest of the options that affect the weights, except for the number of epochs, and of the
        rows of each source's training set.

    Raises:
        UsageError: The folder holds another run, or a checkpoint without options.
    """
    text = yaml.safe_dump(asdict(config), sort_keys=False)
    options = _claimed(flatten_options(yaml.safe_load(text)))
    output_dir = Path(config.output_dir)
    path = output_dir / OPTIONS
    saved = saved_options(output_dir)
    if saved is not None:
        previous = _claimed(saved)
        changed = [
            f"{name} was {previous.get(name)}, is {options.get(name)}"
            for name in sorted(previous.keys() | options.keys())
            if previous.get(name) != options.get(name)
        ]
        has_more_epochs = isinstance(previous.get(EPOCHS), int) and options[EPOCHS] > previous[EPOCHS]
        if changed and not (has_more_epochs and len(changed) == 1):
            raise UsageError(
                f"{output_dir} holds a run with other options ({'; '.join(changed[:5])}): name another output_dir, or "
                "remove that one."
            )
    elif (output_dir / "checkpoint").exists():
        raise UsageError(f"{output_dir} has a checkpoint but no {OPTIONS}: name another output_dir.")
    # Without what is None, so that a later release may have more options.
    identifying = {name: value for name, value in options.items() if name != EPOCHS and value is not None}
    digest = hashlib.sha256(repr(identifying).encode())
    for rows in training_sets:
        columns = ["image_digest", "captions", *(name for name in CARRIED if name in rows.column_names)]
        digest.update(repr([rows[name][:] for name in columns]).encode())
    run = digest.hexdigest()
    learned = (output_dir / "checkpoint").exists() or any((output_dir / STATES).glob("step-*"))
    if learned and (output_dir / RUN).exists() and (output_dir / RUN).read_text() != run:
        raise UsageError(
            f"the training images or captions have changed since the run in {output_dir}: name another output_dir, "
            f"with model.checkpoint {output_dir / 'checkpoint'} to start from what it has learned, or remove that one."
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
        write_atomically(output_dir / RUN, run)
    return run


def saved_options(output_dir: Path) -> dict[str, Any] | None:
    """The options of the run in the output folder, by full names; None if there is no run.

    Raises:
        UsageError: The file is damaged.
    """
    path = output_dir / OPTIONS
    if not path.exists():
        return None
    try:
        return flatten_options(yaml.safe_load(path.read_text()))
    except (ValueError, yaml.YAMLError, AttributeError, RecursionError) as error:  # not text, YAML, or a mapping
        raise UsageError(f"{path} doesn't contain the options of a run: name another output_dir.") from error


def initial_precision(output_dir: Path) -> str | None:
    """The precision of the run in the output folder; None if there is no run."""
    try:
        precision = yaml.safe_load((output_dir / OPTIONS).read_text())["optimization"]["mixed_precision"]
    except (OSError, ValueError, yaml.YAMLError, RecursionError, LookupError, TypeError):
        return None  # claim() rejects a damaged file
    return precision if precision in ("no", "bf16", "fp16") else None


def _claimed(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in UNCLAIMED}
