"""Breakdown of a captioner's strengths and weaknesses by the words and the length of the reference captions.

A word counts as present in an image if at least half of the image's references use it. Function words are ignored.
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
    """How the captions use one word.

    Attributes:
        word: The word.
        images: Number of images in which it is present.
        recall: Share of these images whose caption uses it.
        hallucinated: Share of the captions with the word whose image has no reference with it; None if no caption
            uses it.
    """

    word: str
    images: int
    recall: float
    hallucinated: float | None


@dataclass(frozen=True)
class LengthRecord:
    """Scores of images whose references are about equally long.

    Attributes:
        shortest, longest: Range of the mean length of an image's references, in words.
        images: Number of images.
        score: Mean score over them.
    """

    shortest: float
    longest: float
    images: int
    score: float


def by_word(captions: CaptionSet, num_words: int = 20) -> list[WordRecord]:
    """Records of the words that are present in the most images, most frequent first."""
    present: list[set[str]] = []  # by at least half of the references
    mentioned: list[set[str]] = []  # by any reference
    for references in captions.references:
        counts = Counter(word for reference in references for word in set(reference.split()))
        present.append({word for word, count in counts.items() if 2 * count >= len(references)} - FUNCTION_WORDS)
        mentioned.append(set(counts))
    used = [set(hypothesis.split()) for hypothesis in captions.hypotheses]
    images = Counter(word for words in present for word in words)
    records = []
    for word, number in sorted(images.items(), key=lambda item: (-item[1], item[0]))[:num_words]:
        right = sum(word in caption and word in image for caption, image in zip(used, present, strict=True))
        uses = sum(word in caption for caption in used)
        wrong = sum(word in caption and word not in image for caption, image in zip(used, mentioned, strict=True))
        records.append(WordRecord(word, number, right / number, wrong / uses if uses else None))
    return records


def by_length(captions: CaptionSet, scores: np.ndarray, parts: int = 4) -> list[LengthRecord]:
    """Records of equal-sized groups of images, by mean length of their references, shortest first.

    Args:
        captions: The captions.
        scores: Score of each image, shape (images,).
        parts: Number of groups.
    """
    image = captions.image[len(captions) :]  # image of each reference
    length = np.bincount(image, captions.length[len(captions) :]) / np.bincount(image)  # (images,)
    order = np.argsort(length, kind="stable")
    return [
        LengthRecord(float(length[part].min()), float(length[part].max()), len(part), float(scores[part].mean()))
        for part in np.array_split(order, min(parts, len(order)))
    ]
