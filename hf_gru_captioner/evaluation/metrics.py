"""The registry of metrics: their names, the names of their scores in tables and on the Hub, and their functions.

`score_captions`, the printed tables, the HTML report, model cards and their `model-index` all use this list. To add a
metric, write a module with a `MetricFunction` and add an entry here. This module has no heavy imports and needs no
extra: the Hub modules use it without the `evaluate` library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import counted

if TYPE_CHECKING:
    from .caption_set import CaptionSet
    from .options import ScoringOptions
    from .statistics import MetricResult

# Scores the caption sets of a system and of its human rounds in one call, so that a metric starts Java only once.
# Returns one result per caption set, in order.
MetricFunction = Callable[["Sequence[CaptionSet]", "ScoringOptions"], "list[MetricResult]"]


@dataclass(frozen=True)
class Score:
    """One value of a metric: a row of the tables.

    Attributes:
        name: Its key in `CaptionScores.values` and in JSON files.
        title: Its name in tables.
        scale: Factor that tables multiply it by.
        maximum: Its largest possible value; None for a count. The smallest is 0.
        digits: Decimal places in tables.
        hub_type: The metric's id on the Hub, for the `model-index` of cards; None excludes it from cards.
        is_per_image: Whether it can be summed over images. Only such scores have bootstrap intervals, comparisons and
            per-image values.
    """

    name: str
    title: str
    scale: float = 100.0
    maximum: float | None = 1.0
    digits: int = 1
    hub_type: str | None = None
    is_per_image: bool = True


@dataclass(frozen=True)
class Metric:
    """A metric that `score_captions` can be asked for.

    Attributes:
        name: The name that selects it.
        function: Module of this package and function, as in `"cider:score_cider"`; see [`MetricFunction`].
        scores: The scores that it returns, in the order of table rows.
        needs_java: Whether it runs a Java program, whatever the tokenizer.
    """

    name: str
    function: str
    scores: tuple[Score, ...]
    needs_java: bool = False

    def load(self) -> MetricFunction:
        """Import the function.

        Raises:
            ImportError: The extra `score` is not installed.
        """
        module, _, name = self.function.partition(":")
        function: MetricFunction = getattr(import_module(f".{module}", __package__), name)
        return function


_ALL = (
    Metric("cider", "cider:score_cider", (Score("cider", "CIDEr", maximum=10.0, hub_type="cider"),)),
    Metric("meteor", "meteor:score_meteor", (Score("meteor", "METEOR", hub_type="meteor"),), needs_java=True),
    Metric(
        "bleu",
        "caption_bleu:score_bleu",
        tuple(Score(f"bleu_{order}", f"BLEU-{order}", hub_type="bleu") for order in (4, 3, 2, 1)),
    ),
    Metric("rouge_l", "rouge_l:score_rouge_l", (Score("rouge_l", "ROUGE-L", hub_type="rouge"),)),
    Metric("cider_cosine", "cider:score_cider_cosine", (Score("cider_cosine", "CIDEr, plain cosine", maximum=10.0),)),
    Metric(
        "diversity",
        "diversity:score_diversity",
        (
            Score("distinct_1", "distinct-1", is_per_image=False),
            Score("distinct_2", "distinct-2", is_per_image=False),
            Score("vocabulary", "distinct words", scale=1.0, maximum=None, digits=0, is_per_image=False),
            Score("mean_length", "words per caption", scale=1.0, maximum=None),
            Score("repeated_word_share", "captions repeating a word, %"),
            Score("novel_share", "novel captions, %"),
        ),
    ),
    Metric(
        "evaluate/bleu",
        "evaluate_bleu:score_evaluate_bleu",
        (Score("evaluate/bleu", "evaluate/bleu (not comparable)", is_per_image=False),),
    ),
)

FEW_IMAGES, VERY_FEW_IMAGES = 100, 10  # below 100, scores say little; below 10, even intervals are unreliable


def few_images_note(images: int) -> str:
    """A caveat for scores on few images; empty if there are enough."""
    if images >= FEW_IMAGES:
        return ""
    only = f"Only {counted(images, 'image')}"
    if images >= VERY_FEW_IMAGES:
        return f"{only}: the scores say little, and the intervals how little."
    return f"{only}: neither the scores nor their intervals say anything reliable. Look at the captions."


def choose_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics with these names, in the order of the registry.

    Raises:
        ValueError: An unknown name, or none.
    """
    if set(names) - METRICS.keys() or not names:
        raise ValueError(f"Found metrics {list(names)}. Choose one or more of {', '.join(METRICS)}.")
    return [metric for name, metric in METRICS.items() if name in names]


METRICS = {metric.name: metric for metric in _ALL}
SCORES = {score.name: score for metric in _ALL for score in metric.scores}  # in the order of table rows
HUB_SCORES = {name: score for name, score in SCORES.items() if score.hub_type is not None}
