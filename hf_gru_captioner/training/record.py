"""`training.json` beside the weights: how a checkpoint was trained, stage by stage; the source of its model card.

A run that continues from a checkpoint copies that checkpoint's stages. It contains no local paths.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from ..files import TRAINING_RECORD
from ..hub.names import ORIGINS, with_public_name
from .config import UNCLAIMED, flatten_options

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "timm")


class TrainingRecord:
    """The record of a run, saved into each checkpoint like model and processor.

    Args:
        options: The resolved configuration, nested as in its YAML file.
        images, captions: Size of the training set; None for a stream.
        processes: Number of training processes.
        teachers: Name and revision of the captioners that generated captions of the training set, if any.
        parent_revision: Hub commit of the checkpoint that the run continues from.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        images: int | None,
        captions: int | None,
        processes: int,
        parent_revision: str | None = None,
        teachers: Sequence[Mapping[str, str]] = (),
    ):
        self.parent, self.parent_revision = options["model"]["checkpoint"], parent_revision
        self.history: Sequence[Mapping[str, float]] = ()  # one record per epoch so far, of which the last is the best
        named = flatten_options(options)
        named |= {name: with_public_name(named[name]) for name in ORIGINS & named.keys() if named[name]}
        named_teachers = [{**each, "name": with_public_name(each["name"])} for each in teachers]
        self.stage = {
            "options": {name: value for name, value in named.items() if name not in UNCLAIMED},
            "images": images,
            "captions": captions,
            **({"teachers": named_teachers} if teachers else {}),
            "machine": f"{_processor()}, {processes} x {torch.get_num_threads()} threads",
            "versions": {name: version(name) for name in LIBRARIES},
        }

    def save_pretrained(self, folder: str) -> None:
        """Writes the earlier stages and this one. Runs on one process."""
        seconds = sum(epoch["train_seconds"] + epoch["validation_seconds"] for epoch in self.history)
        stage = {
            **self.stage,
            "epoch": len(self.history),
            "minutes": round(seconds / 60, 1),
            "finished": datetime.now(UTC).date().isoformat(),
        }
        if self.history and all("energy_kwh" in epoch for epoch in self.history):
            stage["energy_kwh"] = round(sum(epoch["energy_kwh"] for epoch in self.history), 4)
        content = {"stages": [*read_stages(self.parent, self.parent_revision), stage]}
        (Path(folder) / TRAINING_RECORD).write_text(json.dumps(content, indent=2) + "\n")


def read_stages(checkpoint: str | Path | None, revision: str | None = None) -> list[dict[str, Any]]:
    """The recorded stages of a checkpoint, given as a folder or Hub id; empty without a record."""
    if checkpoint is None:
        return []
    path = cached_file(str(checkpoint), TRAINING_RECORD, revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text())["stages"] if path is not None else []


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")  # only on Linux
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
