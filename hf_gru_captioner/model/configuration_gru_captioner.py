"""Configuration of the GRU captioner: every size, every special token id, checked once when it is made.

This file travels to the Hub with each checkpoint, so it imports nothing of ours. It must not use
`from __future__ import annotations`: string annotations silently switch off the type checks of `@strict`.
"""

import math

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

IGNORE_INDEX = -100  # fills the labels of short captions; labels of this value take no part in the loss
ATTENTION_TYPES = ("none", "additive", "multihead")
MAX_SIZE = 2**24  # of anything: more is a slip of the keyboard, or meant to take all memory


@strict
class GRUCaptionerConfig(PreTrainedConfig):
    """Sizes and token ids of a [`GRUCaptionerForConditionalGeneration`].

    Args:
        encoder_config: Configuration of the vision encoder, any that `AutoModel.from_config` makes a model of
            (ResNet, ViT, DINOv2, ConvNeXt, Swin, every `timm` model through `TimmWrapperConfig`), or its `dict`.
        freeze_encoder: Keep the vision encoder as it is: no gradients, and BatchNorm and dropout as in evaluation
            even after `model.train()`.
        vocab_size: Number of tokens, the special ones included.
        embedding_size: Width of a word embedding, and of the output layer that shares its weights.
        hidden_size: Width of the two GRU states, of the attention and of the projected regions.
        attention_type: How a word looks at the image regions. `"none"`: it sees their mean (Show and Tell),
            `"additive"`: one softmax over a small network (Show, Attend and Tell), `"multihead"`: scaled dot products.
        num_attention_heads: Heads of `"multihead"` attention; must divide `hidden_size`. The other types have one.
        dropout: Probability of zeroing a unit of the word embeddings, of the fusion GRU's input and of the output
            layer's input, in [0, 1). Regions are never dropped.
        tie_word_embeddings: Share the weights of the word embeddings and the output layer.
        bos_token_id: The start token. It opens `decoder_input_ids`; labels never contain it.
        pad_token_id: Fills short rows. Not 0: transformers' beam search takes a pad id of 0 for "none given".
        eos_token_id: Ends every caption.
        unk_token_id: Stands for words outside the vocabulary.
        decoder_start_token_id: First decoder input; `bos_token_id` when not given.

    Raises:
        ValueError: (inside huggingface_hub's `StrictDataclassClassValidationError`) when values don't fit together.
    """

    model_type = "gru_captioner"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}
    keys_to_ignore_at_inference = ["past_key_values"]

    encoder_config: PreTrainedConfig | dict | None = None
    freeze_encoder: bool = True
    vocab_size: int = 4096
    embedding_size: int = 512
    hidden_size: int = 512
    attention_type: str = "multihead"
    num_attention_heads: int = 8
    dropout: float | int = 0.5
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    unk_token_id: int = 3
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Refuses sizes that no model can be made of. Called by `@strict`."""
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
            if getattr(self, name) > MAX_SIZE:
                raise ValueError(f"{name} must be at most {MAX_SIZE:,}, found more.")
        if self.attention_type not in ATTENTION_TYPES:
            raise ValueError(f"attention_type must be one of {ATTENTION_TYPES}, found {self.attention_type!r}.")
        if self.attention_type == "multihead" and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, found {self.hidden_size} and "
                f"{self.num_attention_heads}: take {self._nearest_divisor()} heads."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), found {self.dropout}.")
        if not self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder must be True: the captions are decoded from encoded images.")

    def validate_special_tokens(self):
        """Refuses special token ids that generate() or the loss would misread. Called by `@strict`."""
        names = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id")
        ids = {name: getattr(self, name) for name in names}
        outside = {name: token for name, token in ids.items() if not 0 <= token < self.vocab_size}
        if outside:
            raise ValueError(f"special token ids must be in [0, vocab_size={self.vocab_size}), found {outside}.")
        if self.pad_token_id == 0:
            raise ValueError(
                "pad_token_id must not be 0, because transformers' beam search takes 0 for no pad token and fills "
                "finished captions with the end token; build the tokenizer with its pad token at another id."
            )
        if len(set(ids.values())) < len(ids):
            raise ValueError(f"special token ids must differ from each other, found {ids}.")
        if self.decoder_start_token_id in (self.pad_token_id, self.eos_token_id):
            raise ValueError(
                f"decoder_start_token_id must be a token of its own (bos_token_id={self.bos_token_id}), found "
                f"{self.decoder_start_token_id}, which pads or ends captions."
            )

    def _nearest_divisor(self) -> int:
        small = [heads for heads in range(1, math.isqrt(self.hidden_size) + 1) if self.hidden_size % heads == 0]
        divisors = sorted({*small, *(self.hidden_size // heads for heads in small)})
        return min(divisors, key=lambda heads: abs(heads - self.num_attention_heads))
