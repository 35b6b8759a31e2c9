"""Changes to the checkpoint that a run starts from: new words, a partly reset encoder, larger images.

Interpolating between fine-tuned and pretrained weights: Wortsman et al. 2022, https://arxiv.org/abs/2109.01903. The
decoder still understands the regions of the interpolated encoder, which recovers some of what fine-tuning forgot.
"""

from collections.abc import Iterable
from typing import Any

import torch

from ..checkpoint import check_work
from ..errors import UsageError
from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from ..tokenization import SPECIAL_TOKENS, extend_tokenizer
from .encoder import PretrainedEncoder, set_image_size

SPREAD = 0.3  # of new embeddings around the mean, in standard deviations of the existing ones
RARE = 0.02  # quantile of the existing output biases, used for new words


@torch.no_grad()
def extend_vocabulary(
    model: GRUCaptionerForConditionalGeneration,
    processor: GRUCaptionerProcessor,
    captions: Iterable[str],
    min_count: int,
) -> list[str]:
    """Adds words that a word tokenizer doesn't know; existing words keep their embeddings.

    New embeddings are sampled around the mean of the existing ones, with a fixed seed; their output biases are those of
    rare words. A byte-pair tokenizer can spell any word and is not changed.

    Args:
        model, processor: Changed in place.
        captions: The training captions.
        min_count: Minimum number of occurrences of a new word.

    Returns:
        The new words, most frequent first.
    """
    tokenizer, words = extend_tokenizer(processor.tokenizer, captions, min_count)
    if not words:
        return []
    known = model.get_input_embeddings().weight
    first, num_known = len(SPECIAL_TOKENS), len(known)
    mean, deviation = known[first:].mean(dim=0), known[first:].std(dim=0)  # (E,)
    noise = torch.randn(len(words), known.shape[1], generator=torch.Generator().manual_seed(0))  # (W, E)
    bias = model.lm_head.bias[first:].quantile(RARE)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_input_embeddings().weight[num_known:] = mean + SPREAD * deviation * noise
    model.lm_head.bias[num_known:] = bias
    processor.tokenizer = tokenizer
    return words


@torch.no_grad()
def reset_encoder(model: GRUCaptionerForConditionalGeneration, encoder: PretrainedEncoder, share: float) -> None:
    """Interpolates the encoder's weights towards pretrained ones.

    Args:
        model: Changed in place.
        encoder: The pretrained one, of the same architecture.
        share: From 0, which changes nothing, to 1, which replaces them.

    Raises:
        UsageError: The architectures differ.
    """
    tiny_decoder: dict[str, Any] = {
        "vocab_size": len(SPECIAL_TOKENS) + 1,
        "embedding_size": 8,
        "hidden_size": 8,
        "num_attention_heads": 1,
    }
    pretrained = encoder.model(**tiny_decoder).encoder.vision.state_dict()
    own = model.encoder.vision.state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in pretrained.items()}:
        raise UsageError(
            "model.encoder_reset needs the pretrained weights of the checkpoint's own encoder, but model.encoder is "
            f"{encoder.name}."
        )
    for name, value in own.items():
        if value.is_floating_point():
            value.lerp_(pretrained[name].to(value), share)


def resize_images(model: GRUCaptionerForConditionalGeneration, processor: GRUCaptionerProcessor, side: int) -> None:
    """Changes the size of the encoder's input images; a CNN then has more or fewer regions.

    Args:
        model: Unchanged.
        processor: Changed in place.
        side: Height and width in pixels.

    Raises:
        UsageError: The processor crops images, the encoder accepts only one size, or encoding would take too much time
            or memory.
    """
    set_image_size(processor, side)
    try:
        check_work(model, processor)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(f"model.image_size = {side} doesn't suit the checkpoint's encoder: {error}.") from error
