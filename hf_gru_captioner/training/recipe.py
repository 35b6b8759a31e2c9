"""The options that `gru-captioner train SOURCE` chooses by looking at the data; `benchmarks/few_shot.py` measured them.

Training goes on from the shipped checkpoint, extended by the new words, with its encoder frozen (in a language that is
not written like English with a new decoder): a few hundred images are too few to learn an encoder from, and their
regions are computed only once.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from accelerate import PartialState

from ..checkpoint import SHIPPED_CHECKPOINT
from ..data import load_captions
from ..tokenization import suitable_kind
from .config import MAX_REPEAT, TrainingConfig, flatten_options

_logger = logging.getLogger(__name__)

SMALL = 1000  # images: below it an epoch is several passes, rare words are kept, and a step has fewer images
STEPS = 450  # of small data, at least: fewer leave words unlearned
PASSES = 12  # over the images, at least
EPOCHS = 12  # with a validation after each
PATIENCE = 4  # epochs
OF_THE_MODEL = {"model.encoder", "model.embedding_size", "model.hidden_size"}  # of a new one
LONGEST = 0.99  # quantile of the captions' lengths that generated captions may reach


def recommend(config: TrainingConfig, given: Collection[str]) -> TrainingConfig:
    """Chooses the options that were not given, by number and length of the captions. Runs on every process.

    Args:
        config: A single `data.source`, and the options that were given.
        given: Their full names; these stay as they are.

    Raises:
        FileNotFoundError, ValueError: As in `data.load_captions`.
    """
    data = config.data
    (source,) = data.sources
    with PartialState().local_main_process_first():
        rows = load_captions(source.path, data.train_split, **data.reading(source))
    captions = [caption for of_image in rows["captions"] for caption in of_image]
    number = len(rows) if data.max_images is None else min(len(rows), data.max_images)
    options = flatten_options(asdict(config)) | {"data.source": data.source}
    options |= {name: value for name, value in _chosen(number, captions).items() if name not in given}
    kind, reason = suitable_kind(captions)
    is_english = kind == "word"
    if not is_english:
        options["validation.max_new_tokens"] = config.validation.max_new_tokens  # by the pieces of the captions
        _logger.info("language        not that of the shipped checkpoint, so that a new decoder is trained: %s", reason)
    if OF_THE_MODEL.isdisjoint(given) and is_english:
        start = {"model.checkpoint": str(SHIPPED_CHECKPOINT), "model.extend_vocabulary": True}
        options |= {name: value for name, value in start.items() if name not in given}
    if isinstance(data.source, str):
        passes = _passes(number, options["optimization.images_per_step"], options["optimization.epochs"])
        columns = {"image_column": source.image_column, "caption_column": source.caption_column}
        options["data.source"] = [{"path": source.path, "images": source.images, **columns, "repeat": passes}]
        options |= dict.fromkeys(("data.images", "data.image_column", "data.caption_column"))
    return TrainingConfig.from_options(options)


def _chosen(num_images: int, captions: list[str]) -> dict[str, Any]:
    is_small = num_images < SMALL
    return {
        "tokenizer.min_count": 1 if is_small else 2 if num_images < 10 * SMALL else 5,
        "optimization.images_per_step": 16 if is_small else 32,
        "optimization.epochs": EPOCHS,
        "optimization.patience": PATIENCE,
        "validation.num_beams": 3,
        "validation.max_new_tokens": max(24, _long(captions) + 4),
    }


def _passes(num_images: int, images_per_step: int, epochs: int) -> float:
    """Passes over the images in an epoch, so that all epochs together have enough steps; more epochs are more steps."""
    passes = max(STEPS * images_per_step / num_images, PASSES if num_images < 10 * SMALL else PASSES / 2)
    return float(min(max(1, math.ceil(passes / min(epochs, EPOCHS))), MAX_REPEAT))


def _long(captions: list[str]) -> int:
    """The number of words that nearly all captions stay below."""
    lengths = sorted(Counter(len(caption.split()) for caption in captions).elements())
    return lengths[int(LONGEST * (len(lengths) - 1))] if lengths else 0
