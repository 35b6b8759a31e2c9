"""Captions to be scored: checked, tokenized once and their n-grams counted once, for all metrics.

Array dimensions: `images` (one hypothesis each), `captions` (all hypotheses in order, then all references, image by
image), `rows` (distinct pairs of a caption and an n-gram of one order) and `ngrams` (distinct n-grams of one order).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .ptb import Tokenizer, tokenize

MAX_ORDER = 4  # BLEU-4 and CIDEr both stop at four words


@dataclass(frozen=True)
class NgramTable:
    """Counts of the n-grams of one order in each caption: a sparse matrix sorted by caption, then by n-gram.

    Attributes:
        caption: Index of the caption, shape (rows,).
        ngram: Index of the n-gram, shape (rows,).
        count: How often the caption contains the n-gram, at least once, shape (rows,).
        texts: The words of each n-gram joined by spaces, length ngrams.
    """

    caption: np.ndarray
    ngram: np.ndarray
    count: np.ndarray
    texts: list[str]


def count_ngrams(captions: Sequence[str]) -> list[NgramTable]:
    """Count the n-grams of one to four words in captions whose tokens are joined by spaces; one table per order."""
    split = [caption.split() for caption in captions]
    words = [word for caption in split for word in caption]
    lengths = np.array([len(caption) for caption in split], dtype=np.int64)
    ids: dict[str, int] = {}
    word = np.array([ids.setdefault(text, len(ids)) for text in words], dtype=np.int64)
    caption = np.repeat(np.arange(len(captions)), lengths)
    remaining = np.repeat(lengths.cumsum(), lengths) - np.arange(len(words))  # words from here to the caption's end
    tables = []
    start, prefix = np.arange(len(words)), np.zeros(len(words), dtype=np.int64)
    for order in range(1, MAX_ORDER + 1):
        fits = remaining[start] >= order
        start, prefix = start[fits], prefix[fits]
        # An n-gram is an (n-1)-gram and its last word; renumbering keeps the product far below 2**63.
        longer = prefix * len(ids) + word[start + order - 1]
        _, first, prefix = np.unique(longer, return_index=True, return_inverse=True)
        texts = [" ".join(words[index : index + order]) for index in start[first]]
        rows, count = np.unique(caption[start] * len(texts) + prefix, return_counts=True)
        tables.append(NgramTable(*np.divmod(rows, max(len(texts), 1)), count, texts))
    return tables


@dataclass(frozen=True)
class CaptionSet:
    """Tokenized captions of the same images in the same order.

    Attributes:
        hypotheses: The caption to score, one per image; tokens joined by spaces.
        references: The reference captions, one or more per image; tokens joined by spaces.
        tokenizer: The tokenizer used. Scores with different tokenizers are not comparable.
    """

    hypotheses: list[str]
    references: list[list[str]]
    tokenizer: Tokenizer

    @classmethod
    def from_text(
        cls, predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: Tokenizer = "ptb"
    ) -> CaptionSet:
        """Check raw captions and tokenize them all in one call.

        Raises:
            ValueError: No captions, different numbers of predictions and lists of references, or an image without
                references.
            TypeError: The references of an image are one string instead of a list.
        """
        check_captions(predictions, references)
        texts = [*predictions, *(caption for captions in references for caption in captions)]
        tokens = iter(tokenize(texts, tokenizer))
        hypotheses = [next(tokens) for _ in predictions]
        return cls(hypotheses, [[next(tokens) for _ in captions] for captions in references], tokenizer)

    def __len__(self) -> int:
        return len(self.hypotheses)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return zip(self.hypotheses, self.references, strict=True)

    @cached_property
    def captions(self) -> list[str]:
        """All hypotheses, then all references."""
        return [*self.hypotheses, *(caption for captions in self.references for caption in captions)]

    @cached_property
    def image(self) -> np.ndarray:
        """Image index of each caption, shape (captions,)."""
        images = np.arange(len(self))
        return np.concatenate([images, np.repeat(images, [len(captions) for captions in self.references])])

    @cached_property
    def length(self) -> np.ndarray:
        """Words in each caption, shape (captions,)."""
        return np.array([len(caption.split()) for caption in self.captions])

    @cached_property
    def ngrams(self) -> list[NgramTable]:
        """The n-grams of all captions, one table per order from 1 to 4."""
        return count_ngrams(self.captions)

    def common_rows(self, table: NgramTable) -> tuple[np.ndarray, np.ndarray]:
        """Pair rows of hypotheses with rows of their images' references for the same n-gram.

        Returns the hypothesis row and the reference row of each pair, shape (pairs,) each.
        """
        key = self.image[table.caption] * len(table.texts) + table.ngram
        references = int(np.searchsorted(table.caption, len(self)))  # the first row of a reference
        hypothesis_key, reference_key = key[:references], key[references:]  # the former sorted and unique
        row = np.searchsorted(hypothesis_key, reference_key)
        row[row == references] = 0
        common = np.flatnonzero(hypothesis_key[row] == reference_key) if references else row[:0]
        return row[common], common + references

    @property
    def signature(self) -> str:
        """What must match for scores to be comparable, as in `tok:ptb|refs:5.0|images:1000`; `refs` is a mean."""
        return f"tok:{self.tokenizer}|refs:{len(self.captions) / len(self) - 1:.1f}|images:{len(self)}"


def check_captions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise an error if captions cannot be scored, saying what is wrong, for which image, and what to do."""
    if len(predictions) != len(references):
        raise ValueError(
            f"Found {len(predictions)} predictions and {len(references)} lists of references. Pass one list of "
            "references per prediction."
        )
    if not predictions:
        raise ValueError("There are no captions to score. Pass at least one prediction with its references.")
    for image, captions in enumerate(references):
        if isinstance(captions, str):
            raise TypeError(f"The references of image {image} are a string, {captions!r}. Pass a list of strings.")
        if not captions:
            raise ValueError(
                f"Image {image} has no references (its prediction: {predictions[image]!r}). Add one or leave the "
                "image out."
            )
