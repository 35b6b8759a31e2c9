"""A small image captioner: any vision encoder, a GRU decoder that attends to regions, transformers' generate().

Names are imported lazily, so that importing the package costs nothing. Importing any of the model's names registers it
with transformers' auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import needs_extra

__version__ = "0.1.0"

_MODULE_OF = {
    "Caption": "captioner",
    "Captioner": "captioner",
    "GRUCaptionerConfig": "model",
    "GRUCaptionerForConditionalGeneration": "model",
    "GRUCaptionerProcessor": "model",
    "TrainingConfig": "training",
    "build_tokenizer": "tokenization",
    "draw_attention": "visualization",
    "load_captions": "data",
    "train": "training",
}

__all__ = [
    "Caption",
    "Captioner",
    "GRUCaptionerConfig",
    "GRUCaptionerForConditionalGeneration",
    "GRUCaptionerProcessor",
    "TrainingConfig",
    "build_tokenizer",
    "draw_attention",
    "load_captions",
    "train",
]

if TYPE_CHECKING:
    from .captioner import Caption, Captioner
    from .data import load_captions
    from .model import GRUCaptionerConfig, GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
    from .tokenization import build_tokenizer
    from .training import TrainingConfig, train
    from .visualization import draw_attention


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_MODULE_OF[name]}", __name__)
    with needs_extra("torch"):  # for the model, which is copied into checkpoints and so doesn't know about extras
        return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
