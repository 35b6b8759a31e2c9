"""Chooses the options of `gru-captioner train SOURCE` and `TrainingConfig.recommended` from the data; measured by
`benchmarks/few_shot.py`.

Training continues from the shipped checkpoint, extended by new words, with its encoder frozen: a few hundred images are
too few to train an encoder, and their regions are computed only once. For a language that is not written like English,
a new decoder is trained.
"""

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..checkpoint import SHIPPED_CHECKPOINT
from ..data import load_captions
from ..errors import UsageError
from ..tokenization import suitable_kind
from .config import MAX_REPEAT, TrainingConfig, flatten_options
from .run_folder import saved_options

_logger = logging.getLogger(__name__)

SMALL = 1000  # images; below this an epoch is several passes, rare words are kept, and a step has fewer images
STEPS = 450  # at least, for small datasets: with fewer, words remain unlearned
PASSES = 12  # over the images, at least
EPOCHS = 12  # each followed by a validation
PATIENCE = 4  # epochs
ENOUGH = 100  # images, besides 17 for validation; with fewer, scores are too noisy for early stopping
OF_THE_MODEL = {"model.encoder", "model.embedding_size", "model.hidden_size"}  # options of a new model
# Options of a single source, by their names in a list of sources.
OF_THE_SOURCE = {
    "data.images": "images",
    "data.image_column": "image_column",
    "data.caption_column": "caption_column",
}
# Words for left and right, in the most common languages of captions.
SIDES = re.compile(
    r"\b(?:left|right|link[es]\w*|recht[es]\w*|gauches?|droite?s?|izquierd\w+|derech\w+|sinistr\w|destr[aoei]|esquerd\w+|"
    r"direit\w+|лев\w+|прав\w+)\b|左|右|왼|오른|يسار|يمين|बा[एईय]|दा[एईय]|ซ้าย|ขวา",
    re.IGNORECASE,
)
SIDED = 0.05  # fraction of the captions from which on mirrored images would teach the wrong side
LONGEST = 0.99  # quantile of the caption lengths that generated captions may reach


def recommend(config: TrainingConfig, given: Collection[str]) -> TrainingConfig:
    """Chooses the options that were not given: those of the run in `output_dir`, if there is one, else what suits the
    images and captions. Runs on every process.

    Args:
        config: A single `data.source`, and the options that were given.
        given: Their full names; they are left unchanged.

    Raises:
        UsageError: `output_dir` holds a run on another source, or there are several sources.
        FileNotFoundError, ValueError: As in `data.load_captions`.
    """
    data = config.data
    if len(data.sources) > 1:
        raise UsageError("options are recommended for a single data.source: for several, set the options yourself.")
    (source,) = data.sources
    saved = saved_options(Path(config.output_dir))
    if saved is not None:
        return _continued(config, given, TrainingConfig.from_options(saved))
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
    starts_anew = "model.checkpoint" in given and config.model.checkpoint is None
    if OF_THE_MODEL.isdisjoint(given) and is_english and not starts_anew:
        continued = {"model.checkpoint": str(SHIPPED_CHECKPOINT), "model.extend_vocabulary": True}
        options |= {name: value for name, value in continued.items() if name not in given}
    if isinstance(data.source, str):
        passes = _passes_per_epoch(num_images, options["optimization.images_per_step"], options["optimization.epochs"])
        columns = {"image_column": source.image_column, "caption_column": source.caption_column}
        options["data.source"] = [{"path": source.path, "images": source.images, **columns, "repeat": passes}]
        options |= dict.fromkeys(("data.images", "data.image_column", "data.caption_column"))
    return TrainingConfig.from_options(options)


def _continued(config: TrainingConfig, given: Collection[str], run: TrainingConfig) -> TrainingConfig:
    """The options of an existing run, except for those given.

    Raises:
        UsageError: It is a run on another source.
    """
    (source,), of_run = config.data.sources, run.data.sources
    if len(of_run) > 1 or not _is_same_source(source.path, of_run[0].path):
        paths = ", ".join(each.path for each in of_run)
        raise UsageError(f"{config.output_dir} contains a run on {paths}: name another output_dir.")
    options = flatten_options(asdict(config))
    continued = flatten_options(asdict(run)) | {name: options[name] for name in given if name not in OF_THE_SOURCE}
    of_source = {each: getattr(source, each) for name, each in OF_THE_SOURCE.items() if name in given}
    if not isinstance(config.data.source, str):  # given as a whole
        continued["data.source"] = [asdict(replace(source, path=of_run[0].path))]
    elif not isinstance(run.data.source, str):
        continued["data.source"] = [asdict(replace(of_run[0], **of_source))]
    else:
        continued |= {"data.source": run.data.source, **{f"data.{each}": value for each, value in of_source.items()}}
    return TrainingConfig.from_options(continued)


def _is_same_source(one: str, other: str) -> bool:
    """Whether two names of sources are equal, or paths of the same file or folder."""
    one, other = os.path.expanduser(one), os.path.expanduser(other)
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


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
