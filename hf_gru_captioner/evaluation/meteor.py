"""METEOR 1.5: words, stems, synonyms and paraphrases shared with the references, and how scattered they are.

Denkowski and Lavie, 2014, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language",
https://aclanthology.org/W14-3348.

Words are aligned by the authors' Java program, the jar inside pycocoevalcap; it returns the counts for each image's
best reference, and this module turns counts into scores. So the corpus score is computed from summed counts, as in
pycocoevalcap's `Meteor`, and a bootstrap can resum them. pycocoevalcap starts a JVM per `Meteor` object and never stops
it; here one runs for the duration of a call.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np

from .caption_set import CaptionSet
from .options import FEATURES, ScoringOptions
from .ptb import WITHOUT_JAVA, Tokenizer, java_command, last_words
from .statistics import MetricResult, ScoreStatistics
from .writing_systems import MARKS

# The jar's parameters for English (task "rank"): weight of recall, exponent and weight of the fragmentation penalty,
# weight of content words.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase


def meteor_statistics(captions: CaptionSet) -> np.ndarray:
    """Return the jar's counts for each image and its best reference, shape (images, 23); their sums can be scored too.

    In pairs, hypothesis and reference: words, function words, then matched content words and function words for each
    of the four matchers; finally the number of chunks of adjacent matches and the pair of all matched words. Each call
    starts a JVM, which takes seconds; thread-safe.

    Raises:
        ImportError: There is no Java, or no pycocoevalcap.
        ChildProcessError: The JVM exited early or returned too few results; the message quotes the end of its output.
    """
    command = [*java_command("meteor/meteor-1.5.jar", "-Xmx2G"), "Meteor", "-", "-", "-stdio", "-l", "en", "-norm"]
    requests = []
    for hypothesis, references in captions:
        fields = [" ".join(caption.replace("|||", "").split()) for caption in (*references, hypothesis)]
        requests.append(" ||| ".join(["SCORE", *fields]) + "\n")
    # All requests are sent at once while responses are read, so neither side can deadlock.
    finished = subprocess.run(command, input="".join(requests), capture_output=True, encoding="utf-8")
    responses = finished.stdout.splitlines()
    if finished.returncode or len(responses) != len(requests):
        raise ChildProcessError(
            f"METEOR answered {len(responses)} of {len(requests)} requests and ended with exit code "
            f"{finished.returncode}: {last_words(finished)} {WITHOUT_JAVA}"
        )
    statistics = np.array([response.split() for response in responses], dtype=np.float64)
    matched = statistics[:, 4:20].reshape(-1, 8, 2).sum(axis=1)  # (images, 2)
    # A caption identical to its reference is a single chunk, which the jar does not count as fragmentation.
    statistics[(matched == statistics[:, :2]).all(axis=1) & (statistics[:, 20] == 1), 20] = 0
    return statistics


def meteor_from_statistics(statistics: np.ndarray) -> np.ndarray:
    """Return METEOR, shape (...), 0 to 1, from statistics or sums of statistics, shape (..., 23)."""
    words, function_words = statistics[..., 0:2], statistics[..., 2:4]
    content, function = np.split(statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2), 2, axis=-2)
    weighted = (_DELTA * content + (1 - _DELTA) * function)[..., 0, :] * _MATCHER_WEIGHTS[:, None]  # (..., 4, 2)
    matches = weighted.sum(axis=-2)  # (..., 2)
    lengths = _DELTA * (words - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN for an empty caption or no match; scored 0
        precision, recall = np.moveaxis(matches / lengths, -1, 0)
        f_mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = statistics[..., 20] / (statistics[..., 21:23].sum(axis=-1) / 2)
        scores: np.ndarray = np.maximum(np.nan_to_num(f_mean * (1 - _GAMMA * fragmentation**_BETA)), 0.0)
    return scores


def score_meteor(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """METEOR as a `MetricFunction`; all sets share one JVM, since it takes seconds to start.

    Raises:
        ImportError, ChildProcessError: As in [`meteor_statistics`].
    """
    together = CaptionSet(
        [hypothesis for each in sets for hypothesis in each.hypotheses],
        [references for each in sets for references in each.references],
        sets[0].tokenizer,
    )
    by_set = np.split(meteor_statistics(together), np.cumsum([len(each) for each in sets])[:-1])
    return [MetricResult((ScoreStatistics(("meteor",), each, _as_column),)) for each in by_set]


def _as_column(statistics: np.ndarray) -> np.ndarray:
    return meteor_from_statistics(statistics)[..., None]


class Meteor(evaluate.Metric):
    """METEOR as an `evaluate` metric: `Meteor().compute(predictions=[...], references=[[...], ...])`. Needs Java."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="METEOR 1.5 of image captions, equal to pycocoevalcap's.",
            citation=(
                "Denkowski and Lavie, 2014, Meteor Universal: Language Specific Translation Evaluation for "
                "Any Target Language"
            ),
            inputs_description=(
                "predictions: list of str, one caption per image. references: list of lists of str. "
                'tokenizer: "ptb", "simple", "char" or "none". Returns meteor (0 to 1) and meteor_signature.'
            ),
            features=FEATURES,
            reference_urls=["https://aclanthology.org/W14-3348"],
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer = "ptb"
    ) -> dict[str, Any]:
        captions = CaptionSet.from_text(predictions, references, tokenizer)
        statistics = meteor_statistics(captions).sum(axis=0)
        return {"meteor": float(meteor_from_statistics(statistics)), "meteor_signature": captions.signature}
