"""Configuration, model and processor, which are copied to the Hub, registered with transformers' auto classes.

Importing any of the model's names from here makes `AutoConfig`, `AutoModel`, `AutoModelForImageTextToText`,
`AutoModelForMultimodalLM` and `AutoProcessor` use these classes for checkpoints of type `gru_captioner`, whether or not
they contain their own code. `load_image` alone needs neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from .image_loading_gru_captioner import load_image

if TYPE_CHECKING:
    from .auto_classes import (
        GRUCache,
        GRUCaptionerConfig,
        GRUCaptionerForConditionalGeneration,
        GRUCaptionerPreTrainedModel,
        GRUCaptionerProcessor,
    )

__all__ = [
    "GRUCache",
    "GRUCaptionerConfig",
    "GRUCaptionerForConditionalGeneration",
    "GRUCaptionerPreTrainedModel",
    "GRUCaptionerProcessor",
    "load_image",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import auto_classes

    return getattr(auto_classes, name)
