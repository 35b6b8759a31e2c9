"""Configuration of the GRU captioner: all sizes and special token ids, validated on creation.

This file is copied into each checkpoint, so it imports nothing from this package and relies on little of transformers:
a plain `__init__` and `sub_configs` are supported by every release since 5.0.
"""

import math

from transformers import __version__ as transformers_version

if int(transformers_version.split(".")[0]) < 5:
    raise ImportError(
        f"this captioner needs transformers 5.0 or newer, found {transformers_version}: "
        "pip install --upgrade transformers"
    )
from transformers import AutoConfig, PreTrainedConfig

IGNORE_INDEX = -100  # pads labels; ignored by the loss
MAX_SIZE = 2**24  # of any size in here: a larger one is a typo, or an attempt to exhaust memory
TOKEN_IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id")


class GRUCaptionerConfig(PreTrainedConfig):
    """Sizes and token ids of a [`GRUCaptionerForConditionalGeneration`].

    Args:
        encoder_config: Configuration of the vision encoder, or its `dict`: any that `AutoModel.from_config` supports
            and that turns images alone into feature maps or tokens (ResNet, ViT, DINOv2, CLIP's, ConvNeXt, Swin, `timm`
            models through `TimmWrapperConfig`). Building the model with any other raises a `ValueError`.
        freeze_encoder: Freeze the vision encoder: no gradients, and BatchNorm and dropout in evaluation mode even after
            `model.train()`.
        vocab_size: Number of tokens, including special ones.
        embedding_size: Width of word embeddings, and of the output layer that shares their weights.
        hidden_size: Width of both GRU states, the attention and the projected regions.
        attention_type: Attention over image regions. `"none"`: their mean (Show and Tell), `"additive"`: one softmax
            over a small network (Show, Attend and Tell), `"multihead"`: scaled dot products.
        num_attention_heads: Heads of `"multihead"` attention; must divide `hidden_size`. The other types have one.
        dropout: Dropout probability for word embeddings, the fusion GRU's input and the output layer's input, in
            [0, 1). Regions are never dropped.
        tie_word_embeddings: Share the weights of the word embeddings and the output layer.
        use_cache: Let `forward` return the decoder's state, so that each step of `generate()` reads one new token.
        bos_token_id: The start token. First in `decoder_input_ids`, never in labels.
        pad_token_id: The padding token. Not 0: transformers' beam search treats a pad id of 0 as missing.
        eos_token_id: The end token; a list if there are several, of which the tokenizer appends the first.
        unk_token_id: The token for words outside the vocabulary.
        decoder_start_token_id: First decoder input; by default `bos_token_id`.

    Raises:
        ValueError: A value has the wrong type, or values are inconsistent.
    """

    model_type = "gru_captioner"
    sub_configs = {"encoder_config": AutoConfig}
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    def __init__(
        self,
        *,
        encoder_config: PreTrainedConfig | dict | None = None,
        freeze_encoder: bool = True,
        vocab_size: int = 4096,
        embedding_size: int = 512,
        hidden_size: int = 512,
        attention_type: str = "multihead",
        num_attention_heads: int = 8,
        dropout: float = 0.5,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        is_encoder_decoder: bool = True,
        bos_token_id: int = 0,
        pad_token_id: int = 1,
        eos_token_id: int | list[int] = 2,
        unk_token_id: int = 3,
        decoder_start_token_id: int | None = None,
        **kwargs,
    ):
        if encoder_config is None or isinstance(encoder_config, dict):
            encoder_config = AutoConfig.for_model(**{"model_type": "resnet", **(encoder_config or {})})
        values = {
            "encoder_config": encoder_config,
            "freeze_encoder": freeze_encoder,
            "vocab_size": vocab_size,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "attention_type": attention_type,
            "num_attention_heads": num_attention_heads,
            "dropout": dropout,
            "tie_word_embeddings": tie_word_embeddings,
            "use_cache": use_cache,
            "is_encoder_decoder": is_encoder_decoder,
            "bos_token_id": bos_token_id,
            "pad_token_id": pad_token_id,
            "eos_token_id": eos_token_id,
            "unk_token_id": unk_token_id,
            "decoder_start_token_id": bos_token_id if decoder_start_token_id is None else decoder_start_token_id,
        }
        for name, value in values.items():
            setattr(self, name, value)
        self.validate()
        super().__init__(**{**values, **kwargs})
        for name, value in values.items():  # releases differ in what they set
            setattr(self, name, value)

    def validate(self):
        """Rejects an invalid configuration; called on creation and on saving.

        Raises:
            ValueError: A value has the wrong type, or values are inconsistent.
        """
        self._check_types()
        self._check_sizes()
        self._check_special_tokens()

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, but always validates; not every release does."""
        self.validate()
        super().save_pretrained(save_directory, **kwargs)

    @property
    def eos_token_ids(self) -> list[int]:
        """All end tokens."""
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else list(self.eos_token_id)

    def _check_types(self):
        expected = {
            **dict.fromkeys(("vocab_size", "embedding_size", "hidden_size", "num_attention_heads", *TOKEN_IDS), int),
            **dict.fromkeys(("freeze_encoder", "tie_word_embeddings", "use_cache", "is_encoder_decoder"), bool),
            "dropout": (int, float),
            "attention_type": str,
            "encoder_config": PreTrainedConfig,
        }
        for name, kinds in expected.items():
            value = getattr(self, name)
            is_list = name == "eos_token_id" and isinstance(value, list | tuple) and len(value) > 0
            for each in value if is_list else [value]:
                if not isinstance(each, kinds) or (isinstance(each, bool) and kinds is not bool):
                    kind = "number" if isinstance(kinds, tuple) else kinds.__name__
                    raise ValueError(f"{name}: expected {kind}, got {type(each).__name__} ({each!r:.80}).")

    def _check_sizes(self):
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
            if getattr(self, name) > MAX_SIZE:
                raise ValueError(f"{name} must be at most {MAX_SIZE:,}, found more.")
        if self.attention_type == "multihead" and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, found {self.hidden_size} and "
                f"{self.num_attention_heads}: take {self._nearest_divisor()} heads."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), found {self.dropout}.")
        if not self.is_encoder_decoder:
            raise ValueError("is_encoder_decoder must be True: the captions are decoded from encoded images.")

    def _check_special_tokens(self):
        """Rejects special token ids that generate() or the loss would misinterpret."""
        ids = {name: getattr(self, name) for name in ("bos_token_id", "pad_token_id", "unk_token_id")}
        ends = self.eos_token_ids
        ids |= {"eos_token_id": ends[0]} | {f"eos_token_id[{n}]": token for n, token in enumerate(ends[1:], 1)}
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
        if self.decoder_start_token_id in (self.pad_token_id, *ends):
            raise ValueError(
                f"decoder_start_token_id must be a token of its own (bos_token_id={self.bos_token_id}), found "
                f"{self.decoder_start_token_id}, which pads or ends captions."
            )

    def _nearest_divisor(self) -> int:
        small = [heads for heads in range(1, math.isqrt(self.hidden_size) + 1) if self.hidden_size % heads == 0]
        divisors = sorted({*small, *(self.hidden_size // heads for heads in small)})
        return min(divisors, key=lambda heads: abs(heads - self.num_attention_heads))
