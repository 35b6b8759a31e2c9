"""ROUGE-L: the longest common subsequence of a caption and its references.

Lin and Och, 2004, "Automatic Evaluation of Machine Translation Quality Using Longest Common Subsequence and Skip-Bigram
Statistics", https://aclanthology.org/P04-1077.

The scores are those of pycocoevalcap's `Rouge`: F-measure with beta 1.2, with the best precision and the best recall
over the references, which may come from different ones; the paper uses the reference with the best F. As there, an
empty caption counts as one empty word.

The length of the subsequence is found with one big integer per caption instead of a table: Hyyrö, 2004, "Bit-parallel
LCS-length computation revisited", https://www.sis.uta.fi/~hh56766/publications.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np

from .caption_set import CaptionSet
from .options import FEATURES, ScoringOptions
from .ptb import Tokenizer
from .statistics import MetricResult, ScoreStatistics
from .writing_systems import MARKS

_BETA = 1.2  # recall counts 1.44 times as much as precision


def rouge_l_scores(captions: CaptionSet) -> np.ndarray:
    """Return each image's ROUGE-L, shape (images,), 0 to 1; the corpus score is their mean."""
    return np.array([_score(hypothesis, references) for hypothesis, references in captions])


def score_rouge_l(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """ROUGE-L as a `MetricFunction`."""
    return [MetricResult((ScoreStatistics.mean("rouge_l", rouge_l_scores(each)),)) for each in sets]


def _score(hypothesis: str, references: Sequence[str]) -> float:
    words = hypothesis.split(" ")
    positions: dict[str, int] = {}  # word -> bit mask of its positions in the hypothesis
    for position, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << position
    precision = recall = 0.0
    for reference in references:
        other = reference.split(" ")
        common = longest_common_subsequence(positions, len(words), other)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(other))
    if precision == 0.0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def longest_common_subsequence(positions: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of a caption of `length` words, given by `positions`, and
    `words`.

    A bit of `row` is 0 where the row of the usual table increases by one; the addition carries to the end of each such
    step.
    """
    row = everywhere = (1 << length) - 1
    for word in words:
        matches = row & positions.get(word, 0)
        row = (row + matches) | (row - matches)
    return length - (row & everywhere).bit_count()


class RougeL(evaluate.Metric):
    """ROUGE-L as an `evaluate` metric: `RougeL().compute(predictions=[...], references=[[...], ...])`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-L of image captions, equal to pycocoevalcap's.",
            citation=(
                "Lin and Och, 2004, Automatic Evaluation of Machine Translation Quality Using LCS and "
                "Skip-Bigram Statistics"
            ),
            inputs_description=(
                "predictions: list of str, one caption per image. references: list of lists of str. "
                'tokenizer: "ptb", "simple", "char" or "none". Returns rouge_l (0 to 1) and rouge_l_signature.'
            ),
            features=FEATURES,
            reference_urls=["https://aclanthology.org/P04-1077"],
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer = "ptb"
    ) -> dict[str, Any]:
        captions = CaptionSet.from_text(predictions, references, tokenizer)
        return {"rouge_l": float(rouge_l_scores(captions).mean()), "rouge_l_signature": captions.signature}
