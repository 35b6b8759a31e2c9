"""Diversity of a system's captions, which n-gram scores do not measure: a captioner that writes "a man in a red shirt"
for every man can still score well.

distinct-n follows Li et al., 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models",
https://aclanthology.org/N16-1014: distinct n-grams divided by all n-grams, over all captions. It falls with the number
of captions, so compare it on the same images only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import evaluate
import numpy as np

from .caption_set import CaptionSet
from .options import ScoringOptions
from .ptb import Tokenizer, tokenize
from .statistics import MetricResult, ScoreStatistics
from .writing_systems import MARKS


@dataclass(frozen=True)
class DiversityScores:
    """Diversity of a system's captions.

    Attributes:
        distinct_1, distinct_2: Number of distinct unigrams (bigrams) divided by the number of all, 0 to 1.
        vocabulary: Number of distinct words in the captions.
        length: Words in each caption, shape (captions,).
        repeats_word: Whether the caption has a word twice in a row, shape (captions,).
        novel: Whether the tokenized caption is not in the training set, shape (captions,); None without a training
            set.
    """

    distinct_1: float
    distinct_2: float
    vocabulary: int
    length: np.ndarray
    repeats_word: np.ndarray
    novel: np.ndarray | None


def diversity_scores(captions: Sequence[str], training_captions: Collection[str] | None = None) -> DiversityScores:
    """Measure tokenized captions; `training_captions` must be tokenized the same way."""
    words = [caption.split() for caption in captions]
    unigrams = [word for caption in words for word in caption]
    bigrams = [pair for caption in words for pair in pairwise(caption)]
    known = None if training_captions is None else frozenset(training_captions)
    return DiversityScores(
        distinct_1=len(set(unigrams)) / max(len(unigrams), 1),
        distinct_2=len(set(bigrams)) / max(len(bigrams), 1),
        vocabulary=len(set(unigrams)),
        length=np.array([len(caption) for caption in words]),
        repeats_word=np.array([any(word == following for word, following in pairwise(caption)) for caption in words]),
        novel=None if known is None else np.array([caption not in known for caption in captions]),
    )


def score_diversity(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """Diversity as a `MetricFunction`."""
    known = None
    if options.training_captions is not None:
        known = frozenset(tokenize(options.training_captions, sets[0].tokenizer))
    return [_result(diversity_scores(each.hypotheses, known)) for each in sets]


def _result(scores: DiversityScores) -> MetricResult:
    statistics = [
        ScoreStatistics.mean("mean_length", scores.length),
        ScoreStatistics.mean("repeated_word_share", scores.repeats_word),
    ]
    if scores.novel is not None:
        statistics.append(ScoreStatistics.mean("novel_share", scores.novel))
    corpus = {
        "distinct_1": scores.distinct_1,
        "distinct_2": scores.distinct_2,
        "vocabulary": float(scores.vocabulary),
    }
    return MetricResult(tuple(statistics), corpus)


class Diversity(evaluate.Metric):
    """Diversity as an `evaluate` metric: `Diversity().compute(predictions=[...])`; it takes no references."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(
                "Diversity of captions: distinct-1, distinct-2, vocabulary, length, repeated words, "
                "captions not in the training set."
            ),
            citation="Li et al., 2016, A Diversity-Promoting Objective Function for Neural Conversation Models",
            inputs_description=(
                'predictions: list of str. tokenizer: "ptb", "simple", "char" or "none". training_captions: list of '
                "str, "
                "optional. Returns distinct_1, "
                "distinct_2, vocabulary, mean_length, repeated_word_share, novel_share (with training_captions) and "
                "diversity_signature."
            ),
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://aclanthology.org/N16-1014"],
        )

    def _compute(
        self, predictions: Sequence[str], tokenizer: Tokenizer = "ptb", training_captions: Sequence[str] | None = None
    ) -> dict[str, Any]:
        if not predictions:
            raise ValueError("There are no captions to describe. Pass at least one prediction.")
        known = None if training_captions is None else tokenize(training_captions, tokenizer)
        scores = diversity_scores(tokenize(predictions, tokenizer), known)
        return {**_result(scores).values, "diversity_signature": f"tok:{tokenizer}|images:{len(predictions)}"}
