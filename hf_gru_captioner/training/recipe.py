"""The options that `gru-captioner train SOURCE` and `TrainingConfig.recommended` choose by looking at the data;
`benchmarks/few_shot.py` measured them.

Training goes on from the shipped checkpoint, extended by the new words, with its encoder frozen: a few hundred images
are too few to learn an encoder from, and their regions are computed only once. In a language that is not written like
English a new decoder takes the place of the checkpoint's.
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

SMALL = 1000  # images: below it an epoch is several passes, rare words are kept, and a step has fewer images
STEPS = 450  # of small data, at least: fewer leave words unlearned
PASSES = 12  # over the images, at least
EPOCHS = 12  # with a validation after each
PATIENCE = 4  # epochs
ENOUGH = 100  # images, beside which 17 validate: with fewer, chance would end the run before its words are learned
OF_THE_MODEL = {"model.encoder", "model.embedding_size", "model.hidden_size"}  # of a new one
# Options of a single source, by the names that they have in a list of sources.
OF_THE_SOURCE = {
    "data.source": "path",
    "data.images": "images",
    "data.image_column": "image_column",
    "data.caption_column": "caption_column",
}
# Words for left and right, in the languages that most captions are written in.
SIDES = re.compile(
    r"\b(?:left|right|link[es]\w*|recht[es]\w*|gauches?|droite?s?|izquierd\w+|derech\w+|sinistr\w|destr[aoei]|esquerd\w+|"
    r"direit\w+|лев\w+|прав\w+)\b|左|右|왼|오른|يسار|يمين|बा[एईय]|दा[एईय]|ซ้าย|ขวา",
    re.IGNORECASE,
)
SIDED = 0.05  # of the captions, from which on mirrored images would teach the wrong side
LONGEST = 0.99  # quantile of the captions' lengths that generated captions may reach


def recommend(config: TrainingConfig, given: Collection[str]) -> TrainingConfig:
    """Chooses the options that were not given: as in the run that `output_dir` holds, otherwise by number and length of
    the captions. Runs on every process.

    Args:
        config: A single `data.source`, and the options that were given.
        given: Their full names; these stay as they are.

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
    number = len(rows) if data.max_images is None else min(len(rows), data.max_images)
    options = flatten_options(asdict(config)) | {"data.source": data.source}
    options |= {name: value for name, value in _chosen(number, captions).items() if name not in given}
    if options["data.mirror"] is False and "data.mirror" not in given:
        _logger.info("mirrored        no images are, since captions say left and right; --data.mirror to do so")
    kind, reason = suitable_kind(captions)
    is_english = kind == "word"
    if not is_english:
        options["validation.max_new_tokens"] = config.validation.max_new_tokens  # by the pieces of the captions
        _logger.info("language        not that of the shipped checkpoint, so that a new decoder is trained: %s", reason)
        if not {"model.encoder", "model.checkpoint"} & set(given):
            options["model.encoder"] = str(SHIPPED_CHECKPOINT)
            _logger.info(
                "encoder         that of the shipped checkpoint, whose licence stays with it; another by model.encoder"
            )
    if OF_THE_MODEL.isdisjoint(given) and is_english:
        start = {"model.checkpoint": str(SHIPPED_CHECKPOINT), "model.extend_vocabulary": True}
        options |= {name: value for name, value in start.items() if name not in given}
    if isinstance(data.source, str):
        passes = _passes(number, options["optimization.images_per_step"], options["optimization.epochs"])
        columns = {"image_column": source.image_column, "caption_column": source.caption_column}
        options["data.source"] = [{"path": source.path, "images": source.images, **columns, "repeat": passes}]
        options |= dict.fromkeys(("data.images", "data.image_column", "data.caption_column"))
    return TrainingConfig.from_options(options)


def _continued(config: TrainingConfig, given: Collection[str], run: TrainingConfig) -> TrainingConfig:
    """The options of an existing run, with those given in their place.

    Raises:
        UsageError: It is a run on another source.
    """
    (source,), of_run = config.data.sources, run.data.sources
    if len(of_run) > 1 or not _is_same_source(source.path, of_run[0].path):
        paths = ", ".join(each.path for each in of_run)
        raise UsageError(f"{config.output_dir} contains a run on {paths}: name another output_dir.")
    options = flatten_options(asdict(config))
    replaced = {name: options[name] for name in given if name not in OF_THE_SOURCE}
    of_source = {
        each: getattr(source, each) for name, each in OF_THE_SOURCE.items() if name in given and each != "path"
    }
    sources: Any = run.data.source if isinstance(run.data.source, str) else [asdict(replace(of_run[0], **of_source))]
    if isinstance(sources, str):
        replaced |= {f"data.{each}": value for each, value in of_source.items()}
    return TrainingConfig.from_options(flatten_options(asdict(run)) | replaced | {"data.source": sources})


def _is_same_source(one: str, other: str) -> bool:
    """Whether two names of sources are equal, or paths of the same file or folder."""
    return one == other or (
        _exists(one) and _exists(other) and os.path.samefile(*map(os.path.expanduser, (one, other)))
    )


def _exists(source: str) -> bool:
    return os.path.exists(os.path.expanduser(source))


def _chosen(num_images: int, captions: list[str]) -> dict[str, Any]:
    is_small = num_images < SMALL
    return {
        "data.mirror": sum(map(bool, map(SIDES.search, captions))) < SIDED * len(captions),
        "tokenizer.min_count": 1 if is_small else 2 if num_images < 10 * SMALL else 5,
        "optimization.images_per_step": 16 if is_small else 32,
        "optimization.epochs": EPOCHS,
        "optimization.patience": PATIENCE if num_images >= ENOUGH else None,
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
