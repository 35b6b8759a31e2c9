"""Training: the knobs, the Accelerate loop, checkpoints."""

from .checkpoints import save_whole
from .config import DataConfig, ModelConfig, OptimizationConfig, TokenizerConfig, TrainingConfig, ValidationConfig
from .trainer import CaptionTrainer, write_captions

__all__ = [
    "CaptionTrainer",
    "DataConfig",
    "ModelConfig",
    "OptimizationConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "ValidationConfig",
    "save_whole",
    "write_captions",
]
