"""BLEU-1 to BLEU-4 of captions, as an `evaluate` metric and as functions.

Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation",
https://aclanthology.org/P02-1040.

The scores are those of pycocoevalcap's `Bleu`, which differs from the paper in two guards: 1e-15 is added to every
count of matches and 1e-9 to every count of n-grams, so nothing divides by zero. They are invisible on a test set, but a
single short caption without a 4-gram match scores 0.02 where the paper says 0. Not comparable with these:
`evaluate.load("bleu")`, which keeps punctuation and case and uses the shortest reference for the brevity penalty, and
most papers before 2015, which omit the brevity penalty (`brevity_penalty=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import evaluate
import numpy as np

from .caption_set import MAX_ORDER, CaptionSet
from .options import FEATURES, ScoringOptions
from .ptb import Tokenizer
from .statistics import MetricResult, ScoreStatistics
from .writing_systems import MARKS

ReferenceLength = Literal["closest", "shortest", "average"]

_MATCH_GUARD = 1e-15
_COUNT_GUARD = 1e-9


@dataclass(frozen=True)
class BleuScores:
    """BLEU-1 to BLEU-4, each 0 to 1.

    Attributes:
        corpus: Shape (4,). N-gram counts are summed over images before division, so this is not the mean of
            `per_image`.
        per_image: Shape (images, 4). Each image as its own corpus; not meaningful for a single short caption.
        statistics: Shape (images, 10), as returned by `bleu_statistics`: the rows that a bootstrap sums.
        length_ratio: Words in the hypotheses divided by words in their references; below 1 the brevity penalty
            applies.
        settings: Length rule and brevity penalty, which must match for scores to be comparable, besides the captions'
            signature.
    """

    corpus: np.ndarray
    per_image: np.ndarray
    statistics: np.ndarray
    length_ratio: float
    settings: str


def bleu_scores(
    captions: CaptionSet, reference_length: ReferenceLength = "closest", brevity_penalty: bool = True
) -> BleuScores:
    """Score captions by BLEU.

    Args:
        captions: Tokenized hypotheses and references.
        reference_length: Reference length for the brevity penalty: that of the reference closest to the hypothesis
            (the shorter one if tied), of the shortest, or the average. Published captioning scores use "closest".
        brevity_penalty: False gives the scores of early captioning papers, which reward short captions.
    """
    statistics = bleu_statistics(captions, reference_length)
    total = statistics.sum(axis=0)
    ratio = total[0] / max(total[1], 1)
    penalty = "" if brevity_penalty else "|brevity:off"
    return BleuScores(
        corpus=bleu_from_statistics(total, brevity_penalty),
        per_image=bleu_from_statistics(statistics, brevity_penalty),
        statistics=statistics,
        length_ratio=float(ratio),
        settings=f"reflen:{reference_length}{penalty}",
    )


def bleu_statistics(captions: CaptionSet, reference_length: ReferenceLength = "closest") -> np.ndarray:
    """Return the sufficient statistics of BLEU for each image, shape (images, 10), float64.

    The columns are the hypothesis length, the reference length according to `reference_length`, the number of
    hypothesis n-grams of order 1 to 4, and the number of matches for each order. Matches of an n-gram are clipped to
    its maximum count in any one reference.
    """
    images = len(captions)
    length = captions.length[:images]
    matches = []
    for table in captions.ngrams:
        hypothesis_row, reference_row = captions.common_rows(table)
        most = np.zeros_like(table.count)
        np.maximum.at(most, hypothesis_row, table.count[reference_row])
        row = np.flatnonzero(most)
        matches.append(np.bincount(table.caption[row], np.minimum(most, table.count)[row], minlength=images))
    ngrams = [np.maximum(length - order, 0) for order in range(MAX_ORDER)]
    columns = [length, _reference_length(captions, reference_length), *ngrams, *matches]
    return np.stack(columns, axis=1).astype(np.float64)


def _reference_length(captions: CaptionSet, rule: ReferenceLength) -> np.ndarray:
    """Return the reference length in words for each hypothesis, shape (images,)."""
    images = len(captions)
    image, length = captions.image[images:], captions.length[images:]
    first = np.searchsorted(image, np.arange(images))  # each image's first reference
    if rule == "shortest":
        return np.minimum.reduceat(length, first)
    if rule == "average":
        return np.add.reduceat(length, first) / np.bincount(image)
    if rule == "closest":
        distance = np.abs(length - captions.length[image])
        return length[np.lexsort((length, distance, image))][first]
    raise ValueError(f'reference_length={rule!r} is unknown. Choose "closest", "shortest" or "average".')


def bleu_from_statistics(statistics: np.ndarray, brevity_penalty: bool = True) -> np.ndarray:
    """Return BLEU-1 to BLEU-4, shape (..., 4), from statistics or sums of statistics, shape (..., 10)."""
    length, target = statistics[..., :1], statistics[..., 1:2]
    ngrams, matches = statistics[..., 2 : 2 + MAX_ORDER], statistics[..., 2 + MAX_ORDER :]
    precisions = (matches + _MATCH_GUARD) / (ngrams + _COUNT_GUARD)
    scores = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, MAX_ORDER + 1))
    if not brevity_penalty:
        return scores
    ratio = (length + _MATCH_GUARD) / (target + _COUNT_GUARD)
    return scores * np.exp(np.minimum(0.0, 1 - 1 / ratio))


def score_bleu(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """BLEU-1 to BLEU-4 as a `MetricFunction`."""
    names = tuple(f"bleu_{order}" for order in range(1, MAX_ORDER + 1))
    score = partial(bleu_from_statistics, brevity_penalty=options.brevity_penalty)
    results = []
    for each in sets:
        bleu = bleu_scores(each, options.reference_length, options.brevity_penalty)
        statistics = ScoreStatistics(names, bleu.statistics, score)
        results.append(MetricResult((statistics,), settings=bleu.settings, length_ratio=bleu.length_ratio))
    return results


class CaptionBleu(evaluate.Metric):
    """BLEU as an `evaluate` metric: `CaptionBleu().compute(predictions=[...], references=[[...], ...])`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(
                "BLEU-1 to BLEU-4 of image captions, equal to pycocoevalcap's; published captioning scores use this."
            ),
            citation="Papineni et al., 2002, BLEU: a Method for Automatic Evaluation of Machine Translation",
            inputs_description=(
                "predictions: list of str, one caption per image. references: list of lists of str. "
                'tokenizer: "ptb", "simple", "char" or "none". reference_length: "closest", "shortest" or "average". '
                "brevity_penalty: False to score as early papers did. Returns bleu_1 to bleu_4 (0 to 1), length_ratio, "
                "bleu_signature."
            ),
            features=FEATURES,
            reference_urls=["https://aclanthology.org/P02-1040"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        tokenizer: Tokenizer = "ptb",
        reference_length: ReferenceLength = "closest",
        brevity_penalty: bool = True,
    ) -> dict[str, Any]:
        captions = CaptionSet.from_text(predictions, references, tokenizer)
        scores = bleu_scores(captions, reference_length, brevity_penalty)
        by_order = {f"bleu_{order}": float(score) for order, score in enumerate(scores.corpus, start=1)}
        return {
            **by_order,
            "length_ratio": scores.length_ratio,
            "bleu_signature": f"{captions.signature}|{scores.settings}|ratio:{scores.length_ratio:.2f}",
        }
