"""A GRU captioner: a vision encoder, and two GRUs with attention over image regions between them.

    regions                     r = VisionEncoder(image)                      a transformers or timm encoder
    keys, values, mean region   k, v = W [LayerNorm(r)],  m = mean(v)         once per image
    language GRU                h1_t = GRU1(embed(w_t), h1_{t-1})             h1_0, h2_0 = tanh(W m)
    attention                   c_t = Attention(h1_t, k, v)                   none | additive | multihead
    fusion GRU                  h2_t = GRU2([h1_t; c_t], h2_{t-1})
    output                      logits_t = E tanh(W [h2_t; c_t]) + b          E shared with the word embeddings

Based on Show, Attend and Tell (Xu et al. 2015, https://arxiv.org/abs/1502.03044) in the two-layer arrangement of
Bottom-Up and Top-Down Attention (Anderson et al. 2018, https://arxiv.org/abs/1707.07998), with GRUs (Cho et al. 2014,
https://arxiv.org/abs/1406.1078). The difference: the attention's query is the state of the lower GRU, which sees only
words, not the previous step's context. So only the two recurrences are sequential, and teacher forcing takes two
whole-sequence GRU calls and one attention call instead of a Python loop over words.

Letters in shape comments:
    B images    N captions (N = B x captions of an image)    P regions    T words of a caption    D region features
    H hidden    E embedding    V vocabulary    A attention heads    S words of all captions    W words of an image
"""

import copy
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput, logging

from .configuration_gru_captioner import IGNORE_INDEX, GRUCaptionerConfig

logger = logging.get_logger(__name__)

# Name of the decoder's state in this release's generate(): "cache" since transformers 5.24, "past_key_values" before.
CACHE_NAME = (
    "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
)


PER_CAPTION = ("num_beams", "num_return_sequences")  # the greater is the number of rows that generate() makes of each


def _autocast_float32_only(forward):
    """Disables autocast for half-precision weights: BatchNorm and packing can't mix dtypes."""

    @wraps(forward)
    def wrapped(self, *args, **kwargs):
        weight = next(self.parameters())
        if weight.dtype == torch.float32 or not torch.is_autocast_enabled(weight.device.type):
            return forward(self, *args, **kwargs)
        with torch.autocast(weight.device.type, enabled=False):
            return forward(self, *args, **kwargs)

    return wrapped


@dataclass
class GRUCaptionerEncoderOutput(ModelOutput):
    """Encoder outputs of `B` images.

    Args:
        last_hidden_state: Regions from the vision encoder, `(B, P, D)`.
        projected_regions: Keys `(B, P, H)`, values `(B, P, H)` and mean region `(B, H)`, used by the decoder.
            Deliberately a tuple: generate() repeats every tensor of this output for each beam, but not tuples, and in
            the decoder all beams of an image share one row.
    """

    last_hidden_state: torch.Tensor | None = None
    projected_regions: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


class GRUCaptionerVisionEncoder(nn.Module):
    """Converts the outputs of a transformers or timm encoder of images to regions `(B, P, D)`.

    The backbone has no pooling layer or classifier. While `frozen`, it gets no gradients and stays in evaluation mode,
    whatever `train()` says. BatchNorm keeps its pretrained statistics even when the backbone is trained: captioning
    batches are too small for good ones.

    Raises:
        ValueError: The backbone doesn't turn images alone into regions; the message names it.
    """

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__()
        if config.encoder_config.model_type == "vit_mae":
            config.encoder_config.mask_ratio = 0.0  # otherwise it hides most of each image, in evaluation too
        self.backbone = _make_backbone(config.encoder_config)
        self.region_size = _region_size(self.backbone)
        self.num_prefix_tokens = _num_prefix_tokens(self.backbone)
        self.set_frozen(config.freeze_encoder)

    def set_frozen(self, frozen: bool, first_layer: str | None = None) -> None:
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        if first_layer is not None:
            names = [name for name, _ in self.backbone.named_parameters()]
            first = next((index for index, name in enumerate(names) if f".{first_layer}." in f".{name}"), None)
            if first is None:
                raise ValueError(
                    f"the vision encoder has no layer {first_layer!r}; some parameters: {', '.join(names[::20])}."
                )
            for index, parameter in enumerate(self.backbone.parameters()):
                parameter.requires_grad_(not frozen and index >= first)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        dtype = next(self.backbone.parameters()).dtype
        # Channels last: the same results, and convolutions are twice as fast on a CPU.
        pixel_values = pixel_values.to(dtype, memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = _features(self.backbone, pixel_values)
        if features.ndim == 3:
            return features[:, self.num_prefix_tokens :]  # (B, P, D)
        if _is_channels_last(self.backbone):
            return features.flatten(1, 2)  # (B, P, D)
        return features.flatten(2).transpose(1, 2)  # (B, P, D)


def _make_backbone(encoder_config) -> PreTrainedModel:
    return AutoModel.from_config(encoder_config, trust_remote_code=False, **_without_pooling(encoder_config))


def _features(backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tokens `(B, tokens, D)` or feature maps `(B, D, height, width)`, of timm's Swin `(B, height, width, D)`."""
    arguments = {}
    if backbone.config.model_type == "vit_mae":  # shuffles its patches by this noise even if it hides none
        order = torch.arange(backbone.embeddings.patch_embeddings.num_patches, device=pixel_values.device)
        arguments["noise"] = order.expand(pixel_values.shape[0], -1)
    output = backbone(pixel_values, return_dict=True, **arguments)
    features = output.last_hidden_state if hasattr(output, "last_hidden_state") else output.feature_maps
    return features[-1] if isinstance(features, list | tuple) else features  # one map per stage: the last


def _without_pooling(encoder_config) -> dict[str, bool]:
    """Arguments that stop transformers' ViT, Swin and similar models from adding an unused pooling layer."""
    model_class = MODEL_MAPPING.get(type(encoder_config), None)
    takes_argument = model_class is not None and "add_pooling_layer" in signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_argument else {}


def _region_size(backbone: PreTrainedModel) -> int:
    """Width D of one region.

    Raises:
        ValueError: The backbone doesn't turn images alone into regions.
    """
    if hasattr(backbone, "timm_model"):
        if getattr(backbone, "features_only", False):
            return backbone.timm_model.feature_info.channels()[-1]
        return backbone.timm_model.num_features
    config = backbone.config
    side = getattr(config, "image_size", None) or 224
    height, width = side if isinstance(side, list | tuple) else (side, side)
    try:
        with torch.device("meta"), torch.no_grad():  # shapes only: takes no time
            image = torch.empty(1, getattr(config, "num_channels", None) or 3, height, width)
            is_on_meta = next(backbone.parameters()).is_meta
            features = _features((backbone if is_on_meta else _make_backbone(copy.deepcopy(config))).eval(), image)
        if features.ndim not in (3, 4):
            raise ValueError(f"its output for an image is {features.ndim}-dimensional")
    except Exception as error:  # each encoder raises its own
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"{config.model_type} can't be the vision encoder, it doesn't make regions of an image: {reason}."
        ) from error
    return features.shape[-1 if features.ndim == 3 else 1]


def _num_prefix_tokens(backbone: PreTrainedModel) -> int:
    """Number of class, distillation and register tokens before the patch tokens of a `(B, tokens, D)` output."""
    if hasattr(backbone, "timm_model"):
        return getattr(backbone.timm_model, "num_prefix_tokens", 0)
    if backbone.config.model_type == "dinov3_convnext":
        return 1  # the mean of the others
    names = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
    tokens = (each for name, each in backbone.named_parameters() if name.rpartition(".")[2] in names)
    return sum(token.numel() // token.shape[-1] for token in tokens)


def _is_channels_last(backbone: PreTrainedModel) -> bool:
    """Whether feature maps are `(B, height, width, D)`, as in timm's Swin, instead of `(B, D, height, width)`."""
    return str(getattr(getattr(backbone, "timm_model", None), "output_fmt", "NCHW")) == "NHWC"


def _can_checkpoint_gradients(backbone: PreTrainedModel) -> bool:
    """Whether this encoder supports activation checkpointing. For timm models, the only way to know is to try."""
    if not hasattr(backbone, "timm_model"):
        return backbone.supports_gradient_checkpointing
    try:
        backbone.timm_model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError):
        return False
    backbone.timm_model.set_grad_checkpointing(False)
    return True


class GRUCaptionerRegionProjection(nn.Module):
    """Regions `(B, P, D)` -> keys and values `(B, P, H)` and mean `(B, H)`, shared by all words of all captions."""

    def __init__(self, region_size: int, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(region_size)
        self.keys_and_values = nn.Linear(region_size, 2 * hidden_size)

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        regions = regions.to(self.norm.weight.dtype)  # cached regions may be fp16 while the weights are fp32
        keys, values = self.keys_and_values(self.norm(regions)).chunk(2, dim=-1)  # (B, P, H) each
        return keys, values, values.mean(dim=1)  # (B, H)


class GRUCaptionerEncoder(nn.Module):
    """Images, or precomputed regions, -> [`GRUCaptionerEncoderOutput`]."""

    main_input_name = "pixel_values"  # read by generate()

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__()
        self.vision = GRUCaptionerVisionEncoder(config)
        self.projection = GRUCaptionerRegionProjection(self.vision.region_size, config.hidden_size)

    @_autocast_float32_only
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        regions: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> GRUCaptionerEncoderOutput:
        """
        Args:
            pixel_values: Images, `(B, channels, height, width)`.
            regions: Instead, the vision encoder's output for these images, `(B, P, D)`, e.g. from a feature cache.
            output_attentions, output_hidden_states, return_dict: Passed by generate() to every encoder. Unused: few
                backbones can return attentions, and the output is always a `ModelOutput`.
        """
        if (pixel_values is None) == (regions is None):
            raise ValueError("pass either pixel_values or regions (the vision encoder's output for them).")
        if pixel_values is not None:
            _check_pixel_values(pixel_values)
            regions = self.vision(pixel_values)
        return GRUCaptionerEncoderOutput(last_hidden_state=regions, projected_regions=self.projection(regions))


def _check_pixel_values(pixel_values: torch.Tensor) -> None:
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values must have the shape (images, channels, height, width), found {tuple(pixel_values.shape)}; "
            "one image is pixel_values[None]."
        )
    if pixel_values.shape[0] == 0:  # not len(), with which an exporter would specialize on the number of images
        raise ValueError("pixel_values hold no image: pass at least one.")


class MeanRegion(nn.Module):
    """No attention: every word gets the mean region, as in Show and Tell (https://arxiv.org/abs/1411.4555)."""

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__()

    def forward(self, query, keys, values):
        mean = values.mean(dim=1, keepdim=True)  # (B, 1, H)
        return mean.expand_as(query), None  # (B, W, H)


class AdditiveAttention(nn.Module):
    """softmax(v . tanh(k_p + W q)) over the regions: Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473."""

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)  # the keys have the bias
        self.score = nn.Linear(config.hidden_size, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, query, keys, values):
        hidden = torch.tanh(keys[:, None] + self.query(query)[:, :, None])  # (B, W, P, H)
        weights = self.score(hidden).squeeze(-1).softmax(dim=-1)  # (B, W, P)
        return weights @ values, weights[:, None]  # (B, W, H), (B, 1, W, P)


class MultiHeadAttention(nn.Module):
    """softmax(q . k / sqrt(H / A)) over the regions, in A heads: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.

    It has no output projection: its two consumers, the fusion GRU and the output layer, begin with one.
    """

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, query, keys, values):
        query, keys, values = map(self._split_heads, (self.query(query), keys, values))  # (B, A, W or P, H / A)
        scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, A, W, P)
        weights = scores.softmax(dim=-1)  # (B, A, W, P)
        return (weights @ values).transpose(1, 2).flatten(2), weights  # (B, W, H)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


# By the configuration's `attention_type`. Each takes the configuration; forward takes queries `(B, W, H)`, keys and
# values `(B, P, H)`, and returns the attended values `(B, W, H)` and weights `(B, A, W, P)` or None.
ATTENTION: dict[str, type[nn.Module]] = {
    "none": MeanRegion,
    "additive": AdditiveAttention,
    "multihead": MultiHeadAttention,
}


def _make_attention(config: GRUCaptionerConfig) -> nn.Module:
    if config.attention_type not in ATTENTION:
        raise ValueError(f"attention_type must be one of {', '.join(ATTENTION)}, found {config.attention_type!r}.")
    return ATTENTION[config.attention_type](config)


class GRUCache(Cache):
    """The decoder's state: both GRU states, `(2, N, H)`, and the number of tokens seen.

    Memory and time per step don't depend on the length of the caption.
    """

    is_compileable = False
    is_croppable = False  # a GRU can't undo a token; the base class would return True for a cache without layers

    def __init__(self, states: torch.Tensor | None = None, seen_tokens: int = 0):
        super().__init__(layers=[])
        self.states = states
        self.seen_tokens = seen_tokens

    @property
    def is_initialized(self) -> bool:
        return self.states is not None

    @property
    def batch_size(self) -> int:
        return 0 if self.states is None else self.states.shape[1]

    def __len__(self) -> int:
        return 0 if self.states is None else self.states.shape[0]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.states is not None:
            self.states = self.states.repeat_interleave(repeats, dim=1)  # (2, N x repeats, H)

    def reset(self) -> None:
        self.states, self.seen_tokens = None, 0

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("a GRU state cannot be rolled back; decode again from the start token.")

    def _select(self, rows: torch.Tensor) -> None:
        if self.states is not None:
            self.states = self.states.index_select(
                1, rows.to(self.states.device)
            )  # a new tensor: the old may be shared


class _WordLayout:
    """Converts between words in caption order and a table with one row of words per image, for the attention.

    All captions of an image attend to the same regions, so attention is one batched product per image. Packed words
    (`PackedSequence.data`), or captions whose number varies by image, are arranged in that table.
    """

    def __init__(self, image_of_word: torch.Tensor, num_images: int):  # (S,)
        words_per_image = torch.bincount(image_of_word, minlength=num_images)  # (B,)
        order = image_of_word.argsort(stable=True)  # (S,)
        first_of_image = words_per_image.cumsum(0) - words_per_image  # (B,)
        column = torch.empty_like(order)
        column[order] = torch.arange(len(order), device=order.device) - first_of_image[image_of_word[order]]
        self.shape = (num_images, int(words_per_image.max()))  # (B, W)
        self.cell = image_of_word * self.shape[1] + column  # (S,)

    def by_image(self, words: torch.Tensor) -> torch.Tensor:  # (S, H) -> (B, W, H)
        table = words.new_zeros(self.shape[0] * self.shape[1], words.shape[-1])
        return table.index_copy(0, self.cell, words).view(*self.shape, -1)

    def by_word(self, table: torch.Tensor) -> torch.Tensor:  # (B, W, ...) -> (S, ...)
        return table.flatten(0, 1).index_select(0, self.cell)


@dataclass
class GRUCaptionerOutput(Seq2SeqLMOutput):
    """As in transformers; the field for the decoder's state depends on the release, `cache` works in all of them."""

    if CACHE_NAME != "cache":

        @property
        def cache(self) -> GRUCache | None:
            return self.get(CACHE_NAME)


@dataclass
class GRUCaptionerDecoderOutput(ModelOutput):
    """Output of the decoder; `words` below is `(S,)` for packed words, or `(N, T)` if not packed.

    Args:
        output_embeddings: Input of the output layer, `words + (E,)`.
        language_states, fusion_states: The GRUs' outputs, `words + (H,)`.
        attention_weights: `words + (A, P)`, or None for `attention_type="none"`.
        states: Final states of both GRUs, `(2, N, H)`.
        packed: The packing of the words, or None.
    """

    output_embeddings: torch.Tensor | None = None
    language_states: torch.Tensor | None = None
    fusion_states: torch.Tensor | None = None
    attention_weights: torch.Tensor | None = None
    states: torch.Tensor | None = None
    packed: PackedSequence | None = None

    def pad(self, words: torch.Tensor, total_length: int) -> torch.Tensor:
        """`words + (...)` -> `(N, T, ...)`, with zeros after the end of each caption."""
        if self.packed is None:
            return words
        is_word = _is_word(self.packed)  # (T, N)
        table = words.new_zeros(total_length, *is_word.shape[1:], *words.shape[1:])  # (T, N, ...)
        table[: len(is_word)][is_word] = words
        return table[:, self.packed.unsorted_indices].transpose(0, 1)  # (N, T, ...)


class GRUCaptionerDecoder(nn.Module):
    """Language GRU, attention, fusion GRU and output projection; see the top of this file."""

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.initial_states = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.language_gru = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)
        self.attention = _make_attention(config)
        self.fusion_gru = nn.GRU(2 * config.hidden_size, config.hidden_size, batch_first=True)
        self.output_projection = nn.Linear(2 * config.hidden_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def first_states(self, mean_region: torch.Tensor) -> torch.Tensor:
        """Mean regions `(B, H)` -> initial states of both GRUs, `(2, B, H)`."""
        return torch.tanh(self.initial_states(mean_region)).unflatten(-1, (2, -1)).transpose(0, 1)

    def forward(
        self,
        input_ids: torch.Tensor,
        projected_regions: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        states: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
    ) -> GRUCaptionerDecoderOutput:
        """
        Args:
            input_ids: `(N, T)`.
            projected_regions: Keys, values `(B, P, H)` and mean region `(B, H)`.
            states: States of both GRUs before the first of these tokens, `(2, N, H)`; None at the start of a caption.
            lengths: Words of each caption, `(N,)`. If given, captions are packed and padding is not computed.
            image_index: Image of each caption, `(N,)`; None if captions are in image order, N / B per image.
        """
        keys, values, mean_region = projected_regions
        num_images, num_captions = mean_region.shape[0], input_ids.shape[0]  # not len(), see _check_pixel_values
        embeddings = self.dropout(self.embed_tokens(input_ids))  # (N, T, E)
        if states is None:
            states = self.first_states(mean_region)  # (2, B, H)
            if image_index is None:
                states = states.repeat_interleave(num_captions // num_images, dim=1)  # (2, N, H)
            else:
                states = states.index_select(1, image_index)  # (2, N, H)
        language_state, fusion_state = states[:1].contiguous(), states[1:].contiguous()  # (1, N, H)

        if lengths is None and image_index is None:
            language, language_state = self.language_gru(embeddings, language_state)  # (N, T, H)
            query = language.reshape(num_images, -1, language.shape[-1])  # (B, W, H)
            context, weights = self.attention(query, keys, values)  # (B, W, H), (B, A, W, P)
            context = context.reshape(language.shape)  # (N, T, H)
            fusion_input = self.dropout(torch.cat((language, context), dim=-1))  # (N, T, 2 H)
            fusion, fusion_state = self.fusion_gru(fusion_input, fusion_state)  # (N, T, H)
            if weights is not None:
                weights = weights.transpose(1, 2).reshape(*input_ids.shape, *weights.shape[1::2])  # (N, T, A, P)
            packed = None
        else:
            if image_index is None:
                image_index = _image_by_image(num_captions, num_images, input_ids.device)
            if lengths is None:
                lengths = torch.full((num_captions,), input_ids.shape[1])
            packed = pack_padded_sequence(embeddings, lengths.cpu(), batch_first=True, enforce_sorted=False)
            layout = _WordLayout(_pack_like(packed, image_index[:, None].expand_as(input_ids)), num_images)

            output, language_state = self.language_gru(packed, language_state)
            language = output.data  # (S, H)
            context, weights = self.attention(layout.by_image(language), keys, values)  # (B, W, H), (B, A, W, P)
            context = layout.by_word(context)  # (S, H)
            fusion_input = self.dropout(torch.cat((language, context), dim=-1))  # (S, 2 H)
            output, fusion_state = self.fusion_gru(packed._replace(data=fusion_input), fusion_state)
            fusion = output.data  # (S, H)
            if weights is not None:
                weights = layout.by_word(weights.transpose(1, 2))  # (S, A, P)

        projected = torch.tanh(self.output_projection(torch.cat((fusion, context), dim=-1)))  # (S, E) or (N, T, E)
        return GRUCaptionerDecoderOutput(
            output_embeddings=self.dropout(projected),
            language_states=language,
            fusion_states=fusion,
            attention_weights=weights,
            states=torch.cat((language_state, fusion_state)),  # (2, N, H)
            packed=packed,
        )


def _image_by_image(num_captions: int, num_images: int, device: torch.device) -> torch.Tensor:
    return torch.arange(num_images, device=device).repeat_interleave(num_captions // num_images)  # (N,)


def _pack_like(packed: PackedSequence, rows: torch.Tensor) -> torch.Tensor:
    """Packs `(N, T)` rows in the same way as `packed`, `(S,)`."""
    return rows[packed.sorted_indices, : len(packed.batch_sizes)].T[_is_word(packed)]  # (S,)


def _is_word(packed: PackedSequence) -> torch.Tensor:
    """Mask of words in captions sorted by length, `(T, N)`; in row-major order they are the packed words."""
    num_captions = packed.batch_sizes.to(packed.data.device)  # (T,), captions of at least this length
    return torch.arange(int(packed.batch_sizes[0]), device=packed.data.device) < num_captions[:, None]


def _cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    smoothing: float,
    num_items: int | torch.Tensor | None,
) -> torch.Tensor:
    """Loss of packed logits `(S, V)`, targets and weights `(S,)`: the sum divided by `num_items`, or the mean."""
    settings: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "label_smoothing": smoothing}
    if weights is None:
        loss = F.cross_entropy(logits.float(), targets, reduction="mean" if num_items is None else "sum", **settings)
    else:
        loss = (F.cross_entropy(logits.float(), targets, reduction="none", **settings) * weights).sum()
        if num_items is None:
            loss = loss / (weights * (targets != IGNORE_INDEX)).sum()
    return loss if num_items is None else loss / num_items


class StopAtStrings(StoppingCriteria):
    """Stops a caption that contains one of these strings.

    transformers' own criterion for `stop_strings` matches them against pieces of the vocabulary, which fails for
    tokenizers that join tokens with spaces, like our word-level one. Captions are short, so this one decodes them.
    """

    def __init__(self, strings: str | list[str], tokenizer):
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:  # (N, 1 + T) -> (N,)
        captions = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        ended = [any(string in caption for string in self.strings) for caption in captions]
        return torch.tensor(ended, device=input_ids.device)


class GRUCaptionerPreTrainedModel(PreTrainedModel):
    """Weight initialization and the class attributes that transformers expects."""

    config: GRUCaptionerConfig
    config_class = GRUCaptionerConfig
    base_model_prefix = "gru_captioner"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True  # for the vision encoder; overridden per model, depending on its encoder
    _is_stateful = True  # a recurrent state can't be rolled back: assisted decoding raises a clear error
    _no_split_modules = ["GRUCaptionerDecoder"]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # generate() must not create a key-value cache: the state is a GRUCache, created by forward

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the vision encoder uses activation checkpointing, by transformers' or timm's flag."""
        names = ("gradient_checkpointing", "grad_checkpointing")
        return any(getattr(module, name, False) is True for module in self.modules() for name in names)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The name of `is_activation_checkpointing` before transformers 5.23."""
        return self.is_activation_checkpointing

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        self.encoder.vision.backbone._set_gradient_checkpointing(enable, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters(recurse=False):
                if getattr(parameter, "_is_hf_initialized", False):
                    continue  # loaded; `init` detects that only for whole parameters, not for a gate's rows
                for gate in parameter.chunk(3):  # reset, update and new gate, stacked
                    if name.startswith("weight_hh"):
                        init.orthogonal_(gate)
                    elif name.startswith("weight_ih"):
                        init.xavier_uniform_(gate)
                    else:
                        init.zeros_(gate)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        else:
            super()._init_weights(module)


class GRUCaptionerForConditionalGeneration(GRUCaptionerPreTrainedModel, GenerationMixin):
    """Captions images: `model.generate(pixel_values=...)`; train with `model(pixel_values=..., labels=...).loss`."""

    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}

    def __init__(self, config: GRUCaptionerConfig):
        super().__init__(config)
        self.encoder = GRUCaptionerEncoder(config)
        self.decoder = GRUCaptionerDecoder(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.supports_gradient_checkpointing = _can_checkpoint_gradients(self.encoder.vision.backbone)
        self.post_init()

    @classmethod
    def from_encoder_pretrained(
        cls, encoder_name_or_path: str, revision: str | None = None, token: str | bool | None = None, **config_kwargs
    ) -> "GRUCaptionerForConditionalGeneration":
        """A captioner with a pretrained vision encoder and a new decoder, ready to train.

        Args:
            encoder_name_or_path: Hub id or folder of the encoder, e.g. `"timm/tf_efficientnet_lite0.in1k"`.
            revision, token: As in `AutoModel.from_pretrained`.
            config_kwargs: Fields of [`GRUCaptionerConfig`], e.g. `vocab_size=len(tokenizer)`.

        Raises:
            TypeError: A keyword is not a field of the configuration.
            OSError: The encoder is not found.
        """
        unknown = sorted(set(config_kwargs) - set(signature(GRUCaptionerConfig).parameters))
        if unknown:
            raise TypeError(f"{', '.join(unknown)} is not a field of GRUCaptionerConfig.")
        location = {"revision": revision, "token": token, "trust_remote_code": False}
        encoder_config = AutoConfig.from_pretrained(encoder_name_or_path, **location)
        encoder = AutoModel.from_pretrained(
            encoder_name_or_path,
            dtype=torch.float32,
            use_safetensors=True,
            **location,
            **_without_pooling(encoder_config),
        )
        encoder_config.dtype = None  # otherwise the encoder of a half-precision checkpoint stays in half precision
        encoder_weights = encoder.state_dict()
        if str(getattr(encoder_config, "architecture", "")).startswith("vgg"):
            # timm's VGG ends in a classifier with 120 M weights. Show, Attend and Tell uses conv5 before pooling.
            encoder_config.model_args = {"features_only": True, "out_indices": [-2]}
            encoder_weights = {
                name.replace("timm_model.features.", "timm_model.features_"): weight
                for name, weight in encoder_weights.items()
                if "pre_logits" not in name
            }
        model = cls(GRUCaptionerConfig(encoder_config=encoder_config, **config_kwargs))
        model.encoder.vision.backbone.load_state_dict(encoder_weights)
        return model

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, which makes every weight trainable; here a frozen encoder stays frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        model.encoder.vision.set_frozen(model.config.freeze_encoder)
        return loaded

    def set_encoder_trainable(self, trainable: bool = True, first_layer: str | None = None) -> None:
        """Unfreezes the vision encoder, or freezes it again. BatchNorm keeps its statistics either way.

        Args:
            trainable: Whether the encoder gets gradients.
            first_layer: Name of the first trainable layer, e.g. `"blocks.4"`; all before it stay frozen.

        Raises:
            ValueError: No layer of that name; lists some existing ones.
        """
        self.encoder.vision.set_frozen(not trainable, first_layer)
        self.config.freeze_encoder = not trainable

    def get_encoder(self, modality: str | None = None) -> GRUCaptionerEncoder:
        return self.encoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shifts labels `(N, T)` right after the start token; ignored labels become padding."""
        input_ids = labels.roll(1, dims=-1)
        input_ids[:, 0] = self.config.decoder_start_token_id
        return input_ids.masked_fill(input_ids == IGNORE_INDEX, self.config.pad_token_id)  # (N, T)

    def labels_of_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """Outputs of generate(), `(N, 1 + T)`, -> labels `(N, T)`: no start token, -100 after the end of each caption.

        A caption ends with its first end token, or before the padding if it was stopped otherwise.
        """
        tokens = sequences[:, 1:]
        is_end = torch.isin(tokens, torch.tensor(self.config.eos_token_ids, device=tokens.device)).int()
        is_after_end = is_end.cumsum(dim=1) > is_end
        is_word = (tokens != self.config.pad_token_id).int()
        is_padding = is_word.flip(1).cumsum(dim=1).flip(1) == 0  # no word from here on
        is_padding[:, :1] = False  # a caption has at least one token
        return tokens.masked_fill(is_after_end | is_padding, IGNORE_INDEX)  # (N, T)

    @_autocast_float32_only
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: GRUCaptionerEncoderOutput | tuple | None = None,
        cache: GRUCache | None = None,
        labels: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        caption_weights: torch.Tensor | None = None,
        smoothing: float = 0.0,
        temperature: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        skip_logits: bool = False,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        past_key_values: GRUCache | None = None,
        **ignored,
    ) -> GRUCaptionerOutput | tuple:
        """
        Args:
            pixel_values: Images, `(B, channels, height, width)`.
            decoder_input_ids: Previous tokens, starting with the start token, `(N, T)`; by default made from `labels`.
            encoder_outputs: Output of `get_encoder()` for these images, or any output whose `last_hidden_state` (or
                first element) is the vision encoder's `(B, P, D)`; then `pixel_values` are not needed.
            cache: State after the tokens before `decoder_input_ids`.
            labels: Next tokens, with the end token but not the start token, padded with -100, `(N, T)`. With labels,
                captions are packed: nothing is computed, and logits are zero, after the last label of each caption.
            image_index: Image of each caption, `(N,)`, in any order and number. By default captions are in image order,
                with the same number per image.
            caption_weights: Weight of each caption in the loss, `(N,)`, which is then a weighted mean over the labels.
                If the loss is computed outside, without `labels` here (as in transformers' Trainer for its
                `label_smoothing_factor`), they weight the gradients of `logits`, not the value of that loss.
            smoothing: Label smoothing (https://arxiv.org/abs/1512.00567), in [0, 1). Not named `label_...`:
                transformers' Trainer treats every such argument as labels.
            temperature: Divisor of each caption's logits in the loss, `(N,)`; by default 1.
            num_items_in_batch: Divisor of the summed loss; by default the number of labels in this call, with
                `caption_weights` the sum of their weights. For exact gradient accumulation.
            skip_logits: Omit `logits` from the output; saves a `(N, T, V)` copy in training.
            use_cache: Return `cache`; by default as configured, but not if labels are given.
            output_attentions: Return `cross_attentions`, a tuple of one `(N, A, T, P)`; rows sum to 1 over the regions.
            output_hidden_states: Return `decoder_hidden_states`, language and fusion GRU, `(N, T, H)` each.
            return_dict: Return a `ModelOutput` (the default), or a tuple.
            past_key_values: The name of `cache` before transformers 5.24.
            ignored: Arguments that other releases of transformers pass to every model. A warning names them.

        Raises:
            ValueError: Inputs are missing, their numbers of rows are inconsistent, or `cache` is another model's.
        """
        if any(value is not None for value in ignored.values()):
            logger.warning_once(f"{type(self).__name__}.forward ignores {', '.join(sorted(ignored))}.")
        cache = past_key_values if cache is None else cache
        if cache is not None and not hasattr(cache, "states"):
            raise ValueError(f"cache must be the GRUCache of an earlier call, found {type(cache).__name__}.")
        return_dict = self.config.return_dict if return_dict is None else return_dict
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        encoder_outputs = self._encode(pixel_values, encoder_outputs)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("forward needs labels or decoder_input_ids; to write captions call generate().")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        projected_regions = encoder_outputs["projected_regions"]
        num_images = projected_regions[0].shape[0]
        self._check_rows(decoder_input_ids, labels, image_index, caption_weights, num_images=num_images)

        lengths = None
        if labels is not None:
            position = torch.arange(1, labels.shape[1] + 1, device=labels.device)
            lengths = ((labels != IGNORE_INDEX) * position).amax(dim=1).clamp(min=1)  # (N,), up to the last label
        decoded = self.decoder(
            decoder_input_ids,
            projected_regions,
            states=cache.states if cache is not None else None,
            lengths=lengths,
            image_index=image_index,
        )
        packed_logits = self.lm_head(decoded.output_embeddings)  # (S, V), or (N, T, V) if not packed

        loss = None
        if labels is not None:
            targets, weights = _pack_like(decoded.packed, labels), None  # (S,)
            if caption_weights is not None:
                weights = _pack_like(decoded.packed, caption_weights[:, None].expand_as(labels))  # (S,)
            scaled = packed_logits
            if temperature is not None:
                scaled = (
                    packed_logits / _pack_like(decoded.packed, temperature[:, None].expand_as(labels))[:, None]
                )  # (S, V)
            loss = _cross_entropy(scaled, targets, weights, smoothing, num_items_in_batch)

        total_length = decoder_input_ids.shape[1]
        logits = None if skip_logits else decoded.pad(packed_logits, total_length)  # (N, T, V)
        if logits is not None and logits.requires_grad and labels is None and caption_weights is not None:
            logits.register_hook(lambda gradient: gradient * caption_weights[:, None, None].to(gradient))
        seen_tokens = cache.seen_tokens if cache is not None else 0
        use_cache = self.config.use_cache and labels is None if use_cache is None else use_cache
        cache = GRUCache(decoded.states, seen_tokens + total_length) if use_cache else None
        attentions = hidden_states = None
        if output_attentions and decoded.attention_weights is not None:
            attentions = (decoded.pad(decoded.attention_weights, total_length).transpose(1, 2),)  # (N, A, T, P)
        if output_hidden_states:
            hidden_states = (
                decoded.pad(decoded.language_states, total_length),  # (N, T, H)
                decoded.pad(decoded.fusion_states, total_length),  # (N, T, H)
            )
        output = GRUCaptionerOutput(
            loss=loss,
            logits=logits,
            decoder_hidden_states=hidden_states,
            cross_attentions=attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            **{CACHE_NAME: cache},
        )
        return output if return_dict else output.to_tuple()

    def generate(
        self, inputs=None, *args, encoder_outputs=None, decoder_input_ids=None, labels=None, past_key_values=None,
        cache=None, **kwargs,
    ):  # fmt: skip
        """As in transformers. `encoder_outputs` are projected once, not at each step, and not modified; `labels` are
        ignored, so that the processor's whole output for an image and a caption's beginning may be passed.

        Raises:
            ValueError: There is no image, or `pixel_values` are not a batch `(B, channels, height, width)`. Beginnings
                `decoder_input_ids` `(N, T)` differ in length: a GRU would read the padding. `guidance_scale` is set.
        """
        if encoder_outputs is not None:
            encoder_outputs = copy.copy(self._encode(None, encoder_outputs))  # generate() repeats it for each beam
            kwargs["encoder_outputs"] = encoder_outputs
        else:
            pixel_values = kwargs.get("pixel_values", inputs)
            if pixel_values is None:
                raise ValueError("generate() needs an image: pass pixel_values or encoder_outputs.")
            _check_pixel_values(pixel_values)
        if decoder_input_ids is not None:
            if (decoder_input_ids == self.config.pad_token_id).any():  # on either side
                raise ValueError("captions that begin with different numbers of tokens can't be continued in one call.")
            kwargs["decoder_input_ids"] = decoder_input_ids
        cache = past_key_values if cache is None else cache
        generation_config = (args[0] if args else kwargs.get("generation_config")) or self.generation_config
        if cache is not None:
            cache = copy.copy(cache)  # generate() reorders it
            if decoder_input_ids is not None and cache.batch_size == decoder_input_ids.shape[0]:
                counts = ((kwargs.get(name) or getattr(generation_config, name, None) or 1) for name in PER_CAPTION)
                cache.batch_repeat_interleave(max(counts))
            kwargs[CACHE_NAME] = cache
        self._check_guidance(kwargs.get("guidance_scale"), generation_config)
        if kwargs.get("stop_strings") is not None and kwargs.get("tokenizer") is not None:
            stop = StopAtStrings(kwargs.pop("stop_strings"), kwargs.pop("tokenizer"))
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), stop])
        return super().generate(inputs, *args, **kwargs)

    def _check_guidance(self, scale: float | None, generation_config) -> None:
        """Rejects guidance: transformers' processor for it calls the model without an image."""
        scale = getattr(generation_config, "guidance_scale", None) if scale is None else scale
        if scale not in (None, 1):
            raise ValueError(f"captions can't be written with guidance_scale (found {scale}): leave it out.")

    def _encode(self, pixel_values, encoder_outputs) -> GRUCaptionerEncoderOutput:
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("forward needs pixel_values or encoder_outputs.")
            return self.encoder(pixel_values)
        if getattr(encoder_outputs, "projected_regions", None) is not None:
            return encoder_outputs
        return self.encoder(regions=encoder_outputs[0])

    @staticmethod
    def _check_rows(decoder_input_ids, labels, image_index, caption_weights, num_images: int) -> None:
        num_captions = decoder_input_ids.shape[0]
        if labels is not None and labels.shape != decoder_input_ids.shape:
            raise ValueError(
                f"labels and decoder_input_ids must have the same shape, found {tuple(labels.shape)} and "
                f"{tuple(decoder_input_ids.shape)}."
            )
        if image_index is not None and image_index.shape != (num_captions,):
            raise ValueError(
                f"image_index names the image of each of the {num_captions} captions, found shape "
                f"{tuple(image_index.shape)}."
            )
        if caption_weights is not None and caption_weights.shape != (num_captions,):
            raise ValueError(
                f"caption_weights has the weight of each of the {num_captions} captions, found shape "
                f"{tuple(caption_weights.shape)}."
            )
        if image_index is None and num_captions % num_images:
            raise ValueError(
                f"{num_captions} captions can't be shared out evenly among {num_images} images: pass image_index, the "
                "image of each caption."
            )

    def prepare_inputs_for_generation(
        self,
        input_ids,
        cache=None,
        past_key_values=None,
        encoder_outputs=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """The arguments of `forward` for the next step: all tokens `(N, T)`, or those that the state has not seen.

        Self-contained, since transformers' own has changed names and responsibilities between releases. `image_index`
        and `caption_weights` of a training batch are dropped: generate() writes captions in image order.
        """
        cache = past_key_values if cache is None else cache
        seen_tokens = 0 if cache is None else cache.get_seq_length()
        num_new = max(input_ids.shape[1] - seen_tokens, 1)
        return {
            "decoder_input_ids": input_ids[:, -num_new:],
            "encoder_outputs": encoder_outputs,
            "cache": cache,
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, and records the auto classes and the pipeline in the configuration."""
        reference = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
        self.config.auto_map = dict.fromkeys(classes, reference)
        pipeline = {"impl": "pipeline_gru_captioner.GRUCaptionerPipeline", "pt": [classes[1]], "type": "multimodal"}
        self.config.custom_pipelines = {"image-to-text": pipeline}
        super().save_pretrained(save_directory, **kwargs)


if TYPE_CHECKING:  # transformers copies this file's imports into each checkpoint, which needs the pipeline too
    from .pipeline_gru_captioner import GRUCaptionerPipeline  # noqa: F401


__all__ = ["GRUCache", "GRUCaptionerForConditionalGeneration", "GRUCaptionerPreTrainedModel"]
