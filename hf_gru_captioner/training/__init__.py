"""Training: the options, the Accelerate loop, its two objectives, checkpoints and states to go on from."""

from .averaging import MovingAverage
from .checkpoints import TrainingStates, save_whole
from .config import (
    DataConfig,
    ModelConfig,
    OptimizationConfig,
    SelfCriticalConfig,
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
