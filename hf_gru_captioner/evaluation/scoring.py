"""All scores of a system, with confidence intervals and human scores, and the comparison of two systems.

The captions are tokenized once and their n-grams counted once. Scores are stored on their original scale (0 to 1, CIDEr
0 to 10) and printed times 100, as is customary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .caption_bleu import ReferenceLength
from .caption_set import CaptionSet
from .document_frequencies import DocumentFrequencies
from .human import leave_one_out
from .metrics import SCORES, choose_metrics
from .options import ScoringOptions
from .ptb import Tokenizer, choose_tokenizer, tokenize
from .statistics import Comparison, MetricResult, ScoreStatistics, bootstrap_interval, paired_bootstrap
from .writing_systems import FOREIGN, num_foreign

_logger = logging.getLogger(__name__)

TOKENS = {  # note for tokenizers other than that of published scores
    "char": "Tokens are letters, since the references are of a script without spaces between words. ",
    "simple": "Tokens are words by simple rules, not those of published scores. ",
}
METEOR_IS_ENGLISH = (
    "METEOR's stems, synonyms and paraphrases are those of English: of these captions it compares the spelling alone. "
)


@dataclass(frozen=True)
class CaptionScores:
    """The scores of one system.

    Attributes:
        values: Corpus scores by name, such as `"bleu_4"` and `"cider"`; 0 to 1, CIDEr 0 to 10, `vocabulary` and
            `mean_length` in words. `metrics.SCORES` describes each.
        intervals: 95 % bootstrap interval of each score that is computed from sums over images. `distinct_1`,
            `distinct_2`, `vocabulary` (an image drawn twice adds no new word) and `evaluate/bleu` have none.
        per_image: The scores of each image, shape (images,) each.
        human: The mean scores of the reference captions, each scored against the others; empty unless requested.
        settings: What must match for scores to be comparable, as in `tok:ptb|refs:5.0|images:1000|reflen:closest`.
        decoding: How the system generated its captions, as in `num_beams:5|length_penalty:0.8`; empty if unknown.
        length_ratio: Words in the hypotheses divided by words in their references; None without BLEU.
        captions: The tokenized captions.
        statistics: Per-image statistics behind the scores, for further bootstraps.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_image: dict[str, np.ndarray]
    human: dict[str, float]
    settings: str
    decoding: str
    length_ratio: float | None
    captions: CaptionSet
    statistics: list[ScoreStatistics]

    @property
    def signature(self) -> str:
        """Settings, length ratio, decoding: `tok:ptb|refs:5.0|images:1000|reflen:closest|ratio:0.98|num_beams:5`."""
        ratio = "" if self.length_ratio is None else f"ratio:{self.length_ratio:.2f}"
        return "|".join(filter(None, (self.settings, ratio, self.decoding)))

    def table(self) -> str:
        """Return a table for the terminal: score, 95 % interval and human score, all times 100."""
        lines = [f"{'':<31}{'score':>8}  {'95 % interval':<18}{'human' if self.human else '':>8}".rstrip()]
        for name, score in SCORES.items():
            if name not in self.values:
                continue
            low, high = (score.scale * bound for bound in self.intervals.get(name, (np.nan, np.nan)))
            interval = f"{low:.1f} to {high:.1f}" if name in self.intervals else ""
            human = f"{self.human[name] * score.scale:.{score.digits}f}" if name in self.human else ""
            value = f"{self.values[name] * score.scale:.{score.digits}f}"
            lines.append(f"{score.title:<31}{value:>8}  {interval:<18}{human:>8}".rstrip())
        counted = TOKENS.get(self.captions.tokenizer, "")
        references = self.captions.captions[len(self.captions) :]
        if "meteor" in self.values and num_foreign(references) > FOREIGN * len(references):
            counted += METEOR_IS_ENGLISH
        return "\n".join([*lines, f"Scores times 100. {counted}{self.signature}"])


def check_scoring(
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    tokenizer: Tokenizer | Literal["auto"] = "auto",
) -> None:
    """Checks what [`score_captions`] needs besides captions, which may take long to generate.

    Raises:
        ValueError, ImportError, ChildProcessError: As in [`score_captions`].
    """
    needs_java = any(metric.needs_java for metric in choose_metrics(metrics))
    tokenize(["a photo"], "ptb" if needs_java else choose_tokenizer(references) if tokenizer == "auto" else tokenizer)


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu", "meteor", "rouge_l", "cider"),
    tokenizer: Tokenizer | Literal["auto"] = "auto",
    reference_length: ReferenceLength = "closest",
    brevity_penalty: bool = True,
    document_frequencies: DocumentFrequencies | None = None,
    training_captions: Sequence[str] | None = None,
    decoding: str = "",
    human: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
) -> CaptionScores:
    """Score one system's captions.

    Args:
        predictions: One raw caption per image.
        references: One or more raw reference captions per image.
        metrics: Names from `METRICS`. "cider_cosine" is the paper's first CIDEr; "evaluate/bleu" is
            `evaluate.load("bleu")`, which needs the network the first time and is not comparable with any other score.
        tokenizer: "auto" selects "char" if the references are in a script without spaces, otherwise "ptb", which gives
            comparable scores. "simple" needs no Java, "none" is for tokenized captions.
        reference_length, brevity_penalty: See `bleu_scores`.
        document_frequencies: For CIDEr, instead of those of `references`.
        training_captions: Raw captions; for "diversity", to compute the share of novel captions.
        decoding: How the captions were generated, for the signature.
        human: Also score the reference captions against each other, for images with at least two. With "meteor" this
            multiplies the time by about the number of references per image.
        bootstrap: Number of resamples for the intervals; 0 for none.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Captions that cannot be scored, or an unknown metric.
        ImportError: "ptb" or "meteor" without Java or pycocoevalcap.
        ChildProcessError: Java failed.
    """
    chosen = choose_metrics(metrics)
    captions = CaptionSet.from_text(
        predictions, references, choose_tokenizer(references) if tokenizer == "auto" else tokenizer
    )
    if doubt := _doubt(captions, predictions, references):
        _logger.warning("%s", doubt)
    rounds = leave_one_out(captions) if human and max(map(len, references)) > 1 else []
    options = ScoringOptions(
        predictions, references, reference_length, brevity_penalty, document_frequencies, training_captions
    )
    by_metric = [metric.load()([captions, *rounds], options) for metric in chosen]
    results, *human_results = zip(*by_metric, strict=True)  # for the system and each human round, one per metric
    statistics = [each for result in results for each in result.statistics]
    intervals: dict[str, tuple[float, float]] = {}
    per_image: dict[str, np.ndarray] = {}
    for each in statistics:
        per_image.update(zip(each.names, each.per_image.T, strict=True))
        if bootstrap:
            intervals |= bootstrap_interval(each, bootstrap, seed)
    frequencies = f"df:{document_frequencies.images} images" if document_frequencies is not None else ""
    return CaptionScores(
        values=_values(results),
        intervals=intervals,
        per_image=per_image,
        human=_mean_values(human_results),
        settings="|".join(filter(None, (captions.signature, *(each.settings for each in results), frequencies))),
        decoding=decoding,
        length_ratio=next((each.length_ratio for each in results if each.length_ratio is not None), None),
        captions=captions,
        statistics=statistics,
    )


def _doubt(captions: CaptionSet, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """Why the scores may be meaningless; empty if there is no reason for doubt."""
    if captions.tokenizer in ("ptb", "simple") and choose_tokenizer(references) == "char":
        return (
            f"the references are in a script without spaces, where tok:{captions.tokenizer} counts whole sentences as "
            'words: score them with tokenizer "char" or "auto".'
        )
    vocabulary = {word for caption in captions.hypotheses for word in caption.split()}
    if any(word in vocabulary for reference in captions.captions[len(captions) :] for word in reference.split()):
        return ""
    shown = next((caption for caption in predictions if caption.strip()), "")
    if not shown:
        return "all captions are empty, so all scores are 0."
    return (
        f"no word of the captions occurs in the references, so scores are 0: same language, same images? "
        f"A caption: {shown[:60]!r}, a reference: {references[0][0][:60]!r}."
    )


def _values(results: Sequence[MetricResult]) -> dict[str, float]:
    return {name: value for result in results for name, value in result.values.items()}


def _mean_values(rounds: Sequence[Sequence[MetricResult]]) -> dict[str, float]:
    """The mean of each score over the human rounds."""
    values = [_values(results) for results in rounds]
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]} if values else {}


def compare(
    first: CaptionScores, second: CaptionScores, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems on the same images by a paired bootstrap: for each score of both, second minus first.

    Raises:
        ValueError: The systems were scored against different references or with different settings, or have no score
            in common.
    """
    if first.settings != second.settings or first.captions.references != second.captions.references:
        raise ValueError(
            f"These scores cannot be paired: {first.settings} and {second.settings}, or the references differ. "
            "Score both systems on the same images in the same order with the same settings."
        )
    others = {each.names: each for each in second.statistics}
    pairs = [(each, others[each.names]) for each in first.statistics if each.names in others]
    if not pairs:
        raise ValueError("These scores have no metric in common. Score both systems with the same metrics.")
    return {name: each for pair in pairs for name, each in paired_bootstrap(*pair, resamples, seed).items()}


@dataclass(frozen=True)
class SystemScores:
    """The scores of several systems on the same images.

    Attributes:
        scores: By system name.
        comparisons: Each other system compared with the first; empty without a bootstrap.
    """

    scores: Mapping[str, CaptionScores]
    comparisons: Mapping[str, Mapping[str, Comparison]]

    @property
    def first(self) -> str:
        """Name of the system that the others are compared with."""
        return next(iter(self.scores))

    def table(self) -> str:
        """Return the table of each system, then the differences from the first."""
        blocks = [f"{name}\n{each.table()}\n" for name, each in self.scores.items()]
        for name, comparison in self.comparisons.items():
            lines = [f"{name} minus {self.first}, with 95 % interval and p-value"]
            lines += [
                f"  {score:<20}{gap.difference:>9.4f}  {gap.low:>8.4f} to {gap.high:.4f}  p = {gap.p_value:.3f}"
                for score, gap in comparison.items()
            ]
            blocks.append("\n".join(lines))
        return "\n".join(blocks)

    def as_json(self) -> dict[str, Any]:
        """The entry of each system in `metrics.json`."""
        return {
            name: {
                "values": each.values,
                "intervals": each.intervals,
                "human": each.human,
                "signature": each.signature,
                "minus_first": {score: asdict(gap) for score, gap in self.comparisons.get(name, {}).items()},
            }
            for name, each in self.scores.items()
        }


def score_systems(
    predictions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    decoding: Mapping[str, str] | None = None,
    bootstrap: int = 1000,
    **options: Any,
) -> SystemScores:
    """Score several systems on the same images and compare the others with the first.

    Args:
        predictions: By system name: one raw caption per image.
        references: One or more raw reference captions per image.
        decoding: By system name: how its captions were generated.
        bootstrap: Number of resamples for the intervals; with 0 the systems are not compared either.
        options: As in [`score_captions`].

    Raises:
        ValueError, ImportError: As in [`score_captions`].
    """
    scores = {
        name: score_captions(
            captions, references, decoding=(decoding or {}).get(name, ""), bootstrap=bootstrap, **options
        )
        for name, captions in predictions.items()
    }
    first, *others = scores
    comparisons = {name: compare(scores[first], scores[name]) for name in others} if bootstrap else {}
    return SystemScores(scores, comparisons)
