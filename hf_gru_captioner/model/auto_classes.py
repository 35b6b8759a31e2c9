"""Registers the model with transformers' auto classes; not copied into checkpoints."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .configuration_gru_captioner import GRUCaptionerConfig
from .modeling_gru_captioner import GRUCache, GRUCaptionerForConditionalGeneration, GRUCaptionerPreTrainedModel
from .processing_gru_captioner import GRUCaptionerProcessor

AutoConfig.register("gru_captioner", GRUCaptionerConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(GRUCaptionerConfig, GRUCaptionerForConditionalGeneration, exist_ok=True)
AutoProcessor.register(GRUCaptionerConfig, GRUCaptionerProcessor, exist_ok=True)

# Copies the code into every checkpoint, so that it loads where this package is not installed.
GRUCaptionerConfig.register_for_auto_class()
GRUCaptionerForConditionalGeneration.register_for_auto_class("AutoModel")
GRUCaptionerProcessor.register_for_auto_class()

__all__ = [
    "GRUCache",
    "GRUCaptionerConfig",
    "GRUCaptionerForConditionalGeneration",
    "GRUCaptionerPreTrainedModel",
    "GRUCaptionerProcessor",
]
