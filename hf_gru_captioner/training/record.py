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

from .config import PLACES, flatten_knobs

RECORD = "training.json"
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "timm")
FOLDERS = ("data.source", "data.images", "model.encoder", "model.checkpoint")  # knobs that may be folders


class TrainingRecord:
    """Saved into each checkpoint as if it were a part of the model.

    Args:
        knobs: The resolved configuration, nested as in its YAML file.
        photos, captions: How many the run learns from; None for a stream.
        processes: How many processes train.
    """

    def __init__(self, knobs: Mapping[str, Any], *, photos: int | None, captions: int | None, processes: int):
        self.parent = knobs["model"]["checkpoint"]
        self.history: Sequence[Mapping[str, float]] = ()  # a record an epoch so far, the last one being the best
        named = flatten_knobs(knobs)
        named |= {name: Path(named[name]).name for name in FOLDERS if named[name] and Path(named[name]).exists()}
        self.stage = {
            "knobs": {name: value for name, value in named.items() if name not in PLACES},
            "photos": photos,
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
        content = {"stages": [*read_stages(self.parent), stage]}
        (Path(folder) / RECORD).write_text(json.dumps(content, indent=2) + "\n")


def read_stages(checkpoint: str | Path | None) -> list[dict[str, Any]]:
    """The stages that a checkpoint, a folder or a Hub id, records; none for one that was trained by other means."""
    if checkpoint is None:
        return []
    path = cached_file(str(checkpoint), RECORD, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text())["stages"] if path is not None else []


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
