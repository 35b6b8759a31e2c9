"""Where a captioner is good and where it is not: by what people see in a photo, and by how much they say of it.

A word counts as seen in a photo when at least half of the photo's references say it. Nouns and verbs alike: what is
left out are the words without which no English caption can do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .caption_set import CaptionSet

_FUNCTION_WORDS = (
    "a about above across after against along among an and another are around as at away be before behind being below "
    "beneath beside between both by down during each for from front has have he her him his in inside into is it its "
    "next near of off on one onto or other out outside over past several she so some that the their them there they "
    "this through to together top toward towards two three under up while who with 's"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class WordRecord:
    """How the captions deal with one word.

    Attributes:
        word: The word.
        photos: Photos in which people see it.
        said: Share of these whose caption says it.
        invented: Of the captions that say it, the share whose photo's references never do; None if no caption says it.
    """

    word: str
    photos: int
    said: float
    invented: float | None


@dataclass(frozen=True)
class LengthRecord:
    """Scores of the photos that people describe at about the same length.

    Attributes:
        shortest, longest: Mean words of the photos' references.
        photos: How many.
        score: Mean of the score over them.
    """

    shortest: float
    longest: float
    photos: int
    score: float


def by_word(captions: CaptionSet, num_words: int = 20) -> list[WordRecord]:
    """The words that people see in the most photos, the most frequent first."""
    seen: list[set[str]] = []
    ever: list[set[str]] = []
    for references in captions.references:
        counts = Counter(word for reference in references for word in set(reference.split()))
        seen.append({word for word, count in counts.items() if 2 * count >= len(references)} - FUNCTION_WORDS)
        ever.append(set(counts))
    said = [set(hypothesis.split()) for hypothesis in captions.hypotheses]
    photos = Counter(word for words in seen for word in words)
    records = []
    for word, number in sorted(photos.items(), key=lambda item: (-item[1], item[0]))[:num_words]:
        right = sum(word in here and word in there for here, there in zip(said, seen, strict=True))
        all_said = sum(word in here for here in said)
        wrong = sum(word in here and word not in there for here, there in zip(said, ever, strict=True))
        records.append(WordRecord(word, number, right / number, wrong / all_said if all_said else None))
    return records


def by_length(captions: CaptionSet, scores: np.ndarray, parts: int = 4) -> list[LengthRecord]:
    """Photos in equal parts by the mean length of their references, those described in the fewest words first.

    Args:
        captions: The captions.
        scores: A score of each photo, shape (images,).
        parts: How many.
    """
    image = captions.image[len(captions) :]  # of each reference
    length = np.bincount(image, captions.length[len(captions) :]) / np.bincount(image)  # (images,)
    order = np.argsort(length, kind="stable")
    return [
        LengthRecord(float(length[part].min()), float(length[part].max()), len(part), float(scores[part].mean()))
        for part in np.array_split(order, min(parts, len(order)))
    ]
