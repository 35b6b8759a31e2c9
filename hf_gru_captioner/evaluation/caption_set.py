"""What every metric is handed: one hypothesis and some references an image, checked and tokenized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .ptb import Tokenizer, tokenize


@dataclass(frozen=True)
class CaptionSet:
    """Tokenized captions of the same images in the same order.

    Attributes:
        hypotheses: The caption to score, one an image; tokens joined by a space.
        references: What people wrote, one or more an image; tokens joined by a space.
        tokenizer: What made the tokens. Figures made by different tokenizers are not comparable.
    """

    hypotheses: list[str]
    references: list[list[str]]
    tokenizer: str

    @classmethod
    def from_text(
        cls, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer = "ptb"
    ) -> CaptionSet:
        """Check captions as written and tokenize them all in one call.

        Raises:
            ValueError: No captions at all, as many predictions as references are not, or an image without references.
            TypeError: The references of an image are one string instead of a list.
        """
        check_captions(predictions, references)
        captions = [*predictions, *(reference for image in references for reference in image)]
        tokens = iter(tokenize(captions, tokenizer))
        hypotheses = [next(tokens) for _ in predictions]
        return cls(hypotheses, [[next(tokens) for _ in image] for image in references], tokenizer)

    def __len__(self) -> int:
        return len(self.hypotheses)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return zip(self.hypotheses, self.references, strict=True)

    @property
    def signature(self) -> str:
        """What two figures must share to be comparable, as in `tok:ptb|refs:5.0|images:1000` (mean references an image)."""
        references = sum(map(len, self.references)) / len(self)
        return f"tok:{self.tokenizer}|refs:{references:.1f}|images:{len(self)}"


def check_captions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise where captions cannot be scored: what was found, at which image, and what to do."""
    if len(predictions) != len(references):
        raise ValueError(
            f"Found {len(predictions)} predictions and {len(references)} lists of references. Pass one list of references a prediction."
        )
    if not predictions:
        raise ValueError("There are no captions to score. Pass at least one prediction with its references.")
    for image, captions in enumerate(references):
        if isinstance(captions, str):
            raise TypeError(f"The references of image {image} are a string, {captions!r}. Pass a list of strings.")
        if not captions:
            raise ValueError(f"Image {image} has no references (its prediction: {predictions[image]!r}). Add one or leave the image out.")
