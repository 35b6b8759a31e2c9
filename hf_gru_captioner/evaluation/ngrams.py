"""Word n-grams of a tokenized caption, counted once and shared by BLEU, CIDEr and whatever weighs n-grams."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import NamedTuple

MAX_ORDER = 4  # BLEU-4 and CIDEr both stop at four words

Ngram = tuple[str, ...]


class NgramCounts(NamedTuple):
    """The n-grams of one caption, of one to four words, with how often each occurs, and the number of words."""

    counts: Counter[Ngram]
    words: int


def count_ngrams(caption: str) -> NgramCounts:
    """Count the n-grams of a caption whose tokens are joined by spaces."""
    first = caption.split()
    second, third, fourth = first[1:], first[2:], first[3:]
    # One Counter fed by zip stays in C: nearly three times as fast as one Counter an order.
    ngrams = chain(zip(first), zip(first, second), zip(first, second, third), zip(first, second, third, fourth))  # noqa: B905
    return NgramCounts(Counter(ngrams), len(first))
