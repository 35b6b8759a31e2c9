"""How sure a score is: bootstrap intervals over images, and the paired bootstrap between two systems.

Koehn, 2004, "Statistical Significance Tests for Machine Translation Evaluation", https://aclanthology.org/W04-3250. The
p-value is the two-sided one of Riezler and Maxwell, 2005, https://aclanthology.org/W05-0908, which sacrebleu uses too:
how often differences, shifted to have the mean 0 that equal systems would have, are at least as large as the one
observed.

Images are drawn with replacement. What varies is the choice of photos; the training run, the references and CIDEr's
document frequencies stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A metric as sums over images, which is what a bootstrap can take apart and put together again.

    Attributes:
        names: The figures, such as `("bleu_1", "bleu_2", "bleu_3", "bleu_4")`.
        statistics: What each image adds to the sums, shape (images, columns).
        score: Sums, shape (..., columns) -> figures, shape (..., figures).
    """

    names: tuple[str, ...]
    statistics: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def mean(cls, name: str, per_image: np.ndarray) -> Metric:
        """A metric whose corpus figure is the mean of its images' figures, shape (images,)."""
        return cls((name,), np.stack([per_image, np.ones(len(per_image))], axis=1), _mean)

    @property
    def corpus(self) -> np.ndarray:
        """The figures of all images together, shape (figures,)."""
        return self.score(self.statistics.sum(axis=0))

    @property
    def per_image(self) -> np.ndarray:
        """The figures of each image alone, shape (images, figures)."""
        return self.score(self.statistics)

    def resampled(self, resamples: int, seed: int) -> np.ndarray:
        """Return the figures of corpora drawn from the images, shape (resamples, figures); a seed always draws the same
        images.

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
    return sums[..., :1] / sums[..., 1:]


@dataclass(frozen=True)
class Comparison:
    """One figure of two systems on the same images.

    Attributes:
        difference: Second system less first.
        low, high: 95 % interval of the difference.
        p_value: How likely a difference at least as large is between equal systems, two-sided; never below 1 /
            (resamples + 1).
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(metric: Metric, resamples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of each figure of a metric."""
    low, high = _interval(metric.resampled(resamples, seed))
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(metric.names)}


def paired_bootstrap(first: Metric, second: Metric, resamples: int = 1000, seed: int = 0) -> dict[str, Comparison]:
    """Compare two systems' figures over the same drawn images.

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
    differences = second.resampled(resamples, seed) - first.resampled(resamples, seed)  # (resamples, figures)
    low, high = _interval(differences)
    as_large = (np.abs(differences - differences.mean(axis=0)) >= np.abs(observed)).sum(axis=0)
    p_value = (as_large + 1) / (resamples + 1)
    return {
        name: Comparison(float(observed[i]), float(low[i]), float(high[i]), float(p_value[i]))
        for i, name in enumerate(first.names)
    }


def _interval(resampled: np.ndarray) -> np.ndarray:
    return np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
