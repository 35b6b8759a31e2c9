"""What `score_captions` hands to every metric besides the captions; each metric reads what concerns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .caption_bleu import ReferenceLength
    from .document_frequencies import DocumentFrequencies


@dataclass(frozen=True)
class ScoringOptions:
    """Options of the metrics, as in `score_captions`.

    Attributes:
        predictions, references: The system's captions and references as written, for a metric with a tokenizer of its
            own.
        reference_length, brevity_penalty: How BLEU counts.
        document_frequencies: For CIDEr, instead of those of the references.
        training_captions: As written, to count novel captions; None without a training set.
    """

    predictions: Sequence[str]
    references: Sequence[Sequence[str]]
    reference_length: ReferenceLength = "closest"
    brevity_penalty: bool = True
    document_frequencies: DocumentFrequencies | None = None
    training_captions: Sequence[str] | None = None
