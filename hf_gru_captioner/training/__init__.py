"""Training: options, the Accelerate loop, its two objectives, checkpoints and states to resume from.

Names are imported lazily: the command line reads the options without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import needs_extra

_MODULE_OF = {
    "CaptionTrainer": "trainer",
    "CrossEntropy": "cross_entropy",
    "DataConfig": "config",
    "EnergyMeter": "energy",
    "ModelConfig": "config",
    "MovingAverage": "averaging",
    "OptimizationConfig": "config",
    "SelfCritical": "scst",
    "SelfCriticalConfig": "config",
    "SourceConfig": "config",
    "TokenizerConfig": "config",
    "TrainingConfig": "config",
    "TrainingRecord": "record",
    "TrainingResult": "run",
    "TrainingStates": "checkpoints",
    "ValidationConfig": "config",
    "count_ngrams": "scst",
    "dry_run": "run",
    "fastest_precision": "precision",
    "read_stages": "record",
    "save_whole": "checkpoints",
    "train": "run",
    "write_captions": "trainer",
}

__all__ = [
    "CaptionTrainer",
    "CrossEntropy",
    "DataConfig",
    "EnergyMeter",
    "ModelConfig",
    "MovingAverage",
    "OptimizationConfig",
    "SelfCritical",
    "SelfCriticalConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "TrainingRecord",
    "TrainingResult",
    "TrainingStates",
    "ValidationConfig",
    "count_ngrams",
    "dry_run",
    "fastest_precision",
    "read_stages",
    "save_whole",
    "train",
    "write_captions",
]

if TYPE_CHECKING:
    from .averaging import MovingAverage
    from .checkpoints import TrainingStates, save_whole
    from .config import (
        DataConfig,
        ModelConfig,
        OptimizationConfig,
        SelfCriticalConfig,
        SourceConfig,
        TokenizerConfig,
        TrainingConfig,
        ValidationConfig,
    )
    from .cross_entropy import CrossEntropy
    from .energy import EnergyMeter
    from .precision import fastest_precision
    from .record import TrainingRecord, read_stages
    from .run import TrainingResult, dry_run, train
    from .scst import SelfCritical, count_ngrams
    from .trainer import CaptionTrainer, write_captions


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_extra("train"):
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
