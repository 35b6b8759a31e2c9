"""A small image captioner: any vision encoder, a GRU decoder that attends to regions, transformers' generate().

Names load when they are used, so that importing the package costs nothing. Each of the model's names makes
transformers' auto classes know the model.
"""

from contextlib import nullcontext
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
_EXTRA_OF = {"data": "train", "model": "torch", "training": "train"}

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
    room = _MODULE_OF[name]
    with needs_extra(_EXTRA_OF[room]) if room in _EXTRA_OF else nullcontext():
        return getattr(import_module(f".{room}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
