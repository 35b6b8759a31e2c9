"""Confidence intervals of scores: bootstrap intervals over images, and the paired bootstrap between two systems.

Koehn, 2004, "Statistical Significance Tests for Machine Translation Evaluation", https://aclanthology.org/W04-3250. The
p-value is the two-sided one of Riezler and Maxwell, 2005, https://aclanthology.org/W05-0908, also used by sacrebleu:
how often differences, shifted to mean 0 as under the null hypothesis, are at least as large as the observed one.

Images are drawn with replacement. Only the choice of images varies; the training run, the references and CIDEr's
document frequencies are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

_LEVEL = 0.95


@dataclass(frozen=True)
class ScoreStatistics:
    """Sufficient statistics of one or more scores: sums over images, from which a bootstrap recomputes them.

    Attributes:
        names: Names of the scores, such as `("bleu_1", "bleu_2", "bleu_3", "bleu_4")`.
        statistics: The contribution of each image to the sums, shape (images, columns).
        score: Maps sums, shape (..., columns), to scores, shape (..., scores).
    """

    names: tuple[str, ...]
    statistics: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def mean(cls, name: str, per_image: np.ndarray) -> ScoreStatistics:
        """Statistics of a score that is the mean over images of `per_image`, shape (images,)."""
        return cls((name,), np.stack([per_image, np.ones(len(per_image))], axis=1), _mean)

    @property
    def corpus(self) -> np.ndarray:
        """The scores of all images together, shape (scores,)."""
        return self.score(self.statistics.sum(axis=0))

    @property
    def per_image(self) -> np.ndarray:
        """The scores of each image, shape (images, scores)."""
        return self.score(self.statistics)

    def resampled(self, resamples: int, seed: int) -> np.ndarray:
        """Return the scores of resampled corpora, shape (resamples, scores); deterministic for a given seed.

        Raises:
            ValueError: `resamples` is less than 1.
        """
        if resamples < 1:
            raise ValueError(f"Found {resamples} bootstrap resamples. Pass at least 1; 1,000 is usual.")
        generator = np.random.default_rng(seed)
        images = len(self.statistics)
        sums = np.empty((resamples, self.statistics.shape[1]))
        for resample in range(resamples):
            drawn = np.bincount(generator.integers(images, size=images), minlength=images)
            sums[resample] = drawn @ self.statistics
        return self.score(sums)


def _mean(sums: np.ndarray) -> np.ndarray:
    means: np.ndarray = sums[..., :1] / sums[..., 1:]
    return means


@dataclass(frozen=True)
class MetricResult:
    """The result of a metric for one caption set; see `metrics.MetricFunction`.

    Attributes:
        statistics: Statistics of the scores that are computed from sums over images.
        corpus: Corpus-level scores by name, without intervals or per-image values.
        settings: What must match for scores to be comparable, besides tokens, references and images; as in
            `reflen:closest`.
        length_ratio: Words in the hypotheses divided by words in their references; None if not counted.
    """

    statistics: tuple[ScoreStatistics, ...] = ()
    corpus: Mapping[str, float] = field(default_factory=dict)
    settings: str = ""
    length_ratio: float | None = None

    @property
    def values(self) -> dict[str, float]:
        """All scores by name."""
        values = dict(self.corpus)
        for each in self.statistics:
            values.update(zip(each.names, each.corpus.tolist(), strict=True))
        return values


@dataclass(frozen=True)
class Comparison:
    """One score of two systems on the same images.

    Attributes:
        difference: Second system minus first.
        low, high: 95 % interval of the difference.
        p_value: Probability of a difference at least as large between equal systems, two-sided; at least
            1 / (resamples + 1).
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    statistics: ScoreStatistics, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of each score."""
    low, high = _interval(statistics.resampled(resamples, seed))
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(statistics.names)}


def paired_bootstrap(
    first: ScoreStatistics, second: ScoreStatistics, resamples: int = 1000, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems' scores over the same resampled images.

    Raises:
        ValueError: The systems were scored on different numbers of images or by different metrics.
    """
    if first.names != second.names or len(first.statistics) != len(second.statistics):
        raise ValueError(
            f"Cannot pair {first.names} on {len(first.statistics)} images with {second.names} on "
            f"{len(second.statistics)}. "
            "Score both systems on the same images with the same metrics."
        )
    observed = second.corpus - first.corpus
    differences = second.resampled(resamples, seed) - first.resampled(resamples, seed)  # (resamples, scores)
    low, high = _interval(differences)
    as_large = (np.abs(differences - differences.mean(axis=0)) >= np.abs(observed)).sum(axis=0)
    p_value = (as_large + 1) / (resamples + 1)
    return {
        name: Comparison(float(observed[i]), float(low[i]), float(high[i]), float(p_value[i]))
        for i, name in enumerate(first.names)
    }


def _interval(resampled: np.ndarray) -> np.ndarray:
    bounds: np.ndarray = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return bounds
