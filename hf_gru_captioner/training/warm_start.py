"""What a run changes in the checkpoint that it starts from: new words, an encoder that is partly reset, larger images.

Interpolating between fine-tuned and pretrained weights: Wortsman et al. 2022, https://arxiv.org/abs/2109.01903. The
decoder still reads the regions of the interpolated encoder, and what the pretrained one knew comes back.
"""

from collections.abc import Iterable
from typing import Any

import torch

from ..checkpoint import check_work
from ..errors import UsageError
from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from ..tokenization import SPECIAL_TOKENS, extend_tokenizer
from .encoder import PretrainedEncoder, set_image_size

SPREAD = 0.3  # of new embeddings around the mean, in standard deviations of the known ones
RARE = 0.02  # quantile of the output biases that new words get


@torch.no_grad()
def extend_vocabulary(
    model: GRUCaptionerForConditionalGeneration,
    processor: GRUCaptionerProcessor,
    captions: Iterable[str],
    min_count: int,
) -> list[str]:
    """Adds the words of captions that a word tokenizer does not know; known words keep their rows.

    New embeddings are drawn around the mean of the known ones, always the same; their output biases are those of rare
    words. A byte-pair tokenizer can spell any word and stays as it is.

    Args:
        model, processor: Changed in place.
        captions: The training captions.
        min_count: Words that are rarer are left out.

    Returns:
        The new words, the most frequent first.
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
    """Moves the encoder's weights by a share of the way to pretrained ones; 1 replaces them.

    Args:
        model: Changed in place.
        encoder: The pretrained one, of the same architecture.
        share: From 0 to 1.

    Raises:
        UsageError: The encoder is another one.
    """
    around: dict[str, Any] = {
        "vocab_size": len(SPECIAL_TOKENS) + 1,
        "embedding_size": 8,
        "hidden_size": 8,
        "num_attention_heads": 1,
    }
    pretrained = encoder.model(**around).encoder.vision.state_dict()
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
    """Shows the encoder images of another size from now on; a CNN then has more or fewer regions.

    Args:
        model: Unchanged.
        processor: Changed in place.
        side: Height and width in pixels.

    Raises:
        UsageError: The processor crops images, the encoder takes images of one size only, or it would take too much
            time or memory.
    """
    set_image_size(processor, side)
    try:
        check_work(model, processor)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(f"model.image_size = {side} is not for the checkpoint's encoder: {error}.") from error
