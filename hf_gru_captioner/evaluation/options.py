"""What the metrics have in common: the options that `score_captions` passes to each, and the inputs of `compute`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets

if TYPE_CHECKING:
    from .caption_bleu import ReferenceLength
    from .document_frequencies import DocumentFrequencies

# Inputs of the `evaluate` metrics: a caption of each image, and its references.
FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


@dataclass(frozen=True)
class ScoringOptions:
    """Options of the metrics, as in `score_captions`.

    Attributes:
        predictions, references: The system's raw captions and references, for metrics with their own tokenizer.
        reference_length, brevity_penalty: See `bleu_scores`.
        document_frequencies: For CIDEr, instead of those of the references.
        training_captions: Raw captions, to detect novel ones; None without a training set.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    reference_length: ReferenceLength = "closest"
    brevity_penalty: bool = True
    document_frequencies: DocumentFrequencies | None = None
    training_captions: Sequence[str] | None = None
