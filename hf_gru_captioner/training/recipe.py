"""Chooses the options of `gru-captioner train SOURCE` from the data; measured by `benchmarks/few_shot.py`.

Training continues from the shipped checkpoint, extended by new words, with its encoder frozen: a few hundred images are
too few to train an encoder, and their regions are computed only once. For a language that is not written like English,
a new decoder is trained.
"""

import logging
import math
import re
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

SMALL = 1000  # images; below this an epoch is several passes, rare words are kept, and a step has fewer images
STEPS = 450  # at least, for small datasets: with fewer, words remain unlearned
PASSES = 12  # over the images, at least
EPOCHS = 12  # each followed by a validation
PATIENCE = 4  # epochs
ENOUGH = 100  # images, besides 17 for validation; with fewer, scores are too noisy for early stopping
OF_THE_MODEL = {"model.encoder", "model.embedding_size", "model.hidden_size"}  # options of a new model
# Words for left and right, in the most common languages of captions.
SIDES = re.compile(
    r"\b(?:left|right|link[es]\w*|recht[es]\w*|gauches?|droite?s?|izquierd\w+|derech\w+|sinistr\w|destr[aoei]|esquerd\w+|"
    r"direit\w+|лев\w+|прав\w+)\b|左|右|왼|오른|يسار|يمين|बा[एईय]|दा[एईय]|ซ้าย|ขวา",
    re.IGNORECASE,
)
SIDED = 0.05  # fraction of the captions from which on mirrored images would teach the wrong side
LONGEST = 0.99  # quantile of the caption lengths that generated captions may reach


def recommend(config: TrainingConfig, given: Collection[str]) -> TrainingConfig:
    """Chooses the options that were not given, by the images and captions. Runs on every process.

    Args:
        config: A single `data.source`, and the options that were given.
        given: Their full names; they are left unchanged.

    Raises:
        FileNotFoundError, ValueError: As in `data.load_captions`.
    """
    data = config.data
    (source,) = data.sources
    with PartialState().local_main_process_first():
        rows = load_captions(source.path, data.train_split, **data.reading(source))
    captions = [caption for of_image in rows["captions"] for caption in of_image]
    num_images = len(rows) if data.max_images is None else min(len(rows), data.max_images)
    options = flatten_options(asdict(config)) | {"data.source": data.source}
    options |= {name: value for name, value in _choose(num_images, captions).items() if name not in given}
    if options["data.mirror"] is False and "data.mirror" not in given:
        _logger.info("mirroring       off, since captions mention left or right; --data.mirror turns it on")
    kind, reason = suitable_kind(captions)
    is_english = kind == "word"
    if not is_english:
        options["validation.max_new_tokens"] = config.validation.max_new_tokens  # not in words
        _logger.info("language        not the shipped checkpoint's, so a new decoder is trained: %s", reason)
        if not {"model.encoder", "model.checkpoint"} & set(given):
            options["model.encoder"] = str(SHIPPED_CHECKPOINT)
            _logger.info(
                "encoder         the shipped checkpoint's, whose license applies; model.encoder chooses another"
            )
    if OF_THE_MODEL.isdisjoint(given) and is_english:
        continued = {"model.checkpoint": str(SHIPPED_CHECKPOINT), "model.extend_vocabulary": True}
        options |= {name: value for name, value in continued.items() if name not in given}
    if isinstance(data.source, str):
        passes = _passes_per_epoch(num_images, options["optimization.images_per_step"], options["optimization.epochs"])
        columns = {"image_column": source.image_column, "caption_column": source.caption_column}
        options["data.source"] = [{"path": source.path, "images": source.images, **columns, "repeat": passes}]
        options |= dict.fromkeys(("data.images", "data.image_column", "data.caption_column"))
    return TrainingConfig.from_options(options)


def _choose(num_images: int, captions: list[str]) -> dict[str, Any]:
    is_small = num_images < SMALL
    return {
        "data.mirror": sum(map(bool, map(SIDES.search, captions))) < SIDED * len(captions),
        "tokenizer.min_count": 1 if is_small else 2 if num_images < 10 * SMALL else 5,
        "optimization.images_per_step": 16 if is_small else 32,
        "optimization.epochs": EPOCHS,
        "optimization.patience": PATIENCE if num_images >= ENOUGH else None,
        "validation.num_beams": 3,
        "validation.max_new_tokens": max(24, _length_quantile(captions) + 4),
    }


def _passes_per_epoch(num_images: int, images_per_step: int, epochs: int) -> float:
    """Passes over the images per epoch, so that `EPOCHS` or fewer have enough steps together; more epochs add steps."""
    passes = max(STEPS * images_per_step / num_images, PASSES if num_images < 10 * SMALL else PASSES / 2)
    return float(min(max(1, math.ceil(passes / min(epochs, EPOCHS))), MAX_REPEAT))


def _length_quantile(captions: list[str]) -> int:
    """Length in words that nearly all captions don't exceed."""
    lengths = sorted(Counter(len(caption.split()) for caption in captions).elements())
    return lengths[int(LONGEST * (len(lengths) - 1))] if lengths else 0
