"""`training.json` beside the weights: how a checkpoint was trained, stage by stage; its model card is written from it.

A run that goes on from a checkpoint takes over the stages of that one. Nothing in it names a folder of the machine.
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

from ..hub.names import ORIGINS, public_name
from .config import UNCLAIMED, flatten_options

RECORD = "training.json"
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "timm")


class TrainingRecord:
    """Saved into each checkpoint as if it were a part of the model.

    Args:
        options: The resolved configuration, nested as in its YAML file.
        images, captions: How many the run trains on; None for a stream.
        processes: How many processes train.
        parent_revision: Commit of the checkpoint on the Hub that the run goes on from.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        images: int | None,
        captions: int | None,
        processes: int,
        parent_revision: str | None = None,
    ):
        self.parent, self.parent_revision = options["model"]["checkpoint"], parent_revision
        self.history: Sequence[Mapping[str, float]] = ()  # a record an epoch so far, the last one being the best
        named = flatten_options(options)
        named |= {name: public_name(named[name]) for name in ORIGINS & named.keys() if named[name]}
        self.stage = {
            "options": {name: value for name, value in named.items() if name not in UNCLAIMED},
            "images": images,
            "captions": captions,
            "machine": f"{_processor()}, {processes} x {torch.get_num_threads()} threads",
            "versions": {name: version(name) for name in LIBRARIES},
        }

    def save_pretrained(self, folder: str) -> None:
        """Writes the stages so far and this one. Runs on one process."""
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
        (Path(folder) / RECORD).write_text(json.dumps(content, indent=2) + "\n")


def read_stages(checkpoint: str | Path | None, revision: str | None = None) -> list[dict[str, Any]]:
    """The stages that a checkpoint, a folder or a Hub id, records; none for one that was trained by other means."""
    if checkpoint is None:
        return []
    path = cached_file(str(checkpoint), RECORD, revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text())["stages"] if path is not None else []


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
