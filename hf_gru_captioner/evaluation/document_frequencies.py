"""Document frequencies for CIDEr: the number of images in whose references each n-gram occurs.

Published CIDEr computes them from the references that are scored against. Rewards and single images have no such
corpus; they use those of a training set, computed once and stored in a JSON file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .caption_set import CaptionSet
from .ptb import Tokenizer

_FORMAT = "hf_gru_captioner document frequencies 1"


@dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies of n-grams of one to four words.

    Attributes:
        counts: n-gram, its words joined by spaces -> number of images in whose references it occurs, 1 to `images`.
        images: Number of images in the corpus.
        tokenizer: The tokenizer used; captions scored with these frequencies must be tokenized the same way.
    """

    counts: dict[str, int]
    images: int
    tokenizer: str

    @classmethod
    def from_captions(cls, captions: CaptionSet) -> DocumentFrequencies:
        """Count over the references of a caption set."""
        counts: dict[str, int] = {}
        for table in captions.ngrams:
            in_reference = table.caption >= len(captions)
            # Several references of an image may contain an n-gram; the image counts once.
            pairs = np.unique(
                captions.image[table.caption[in_reference]] * len(table.texts) + table.ngram[in_reference]
            )
            ngrams, images = np.unique(pairs % max(len(table.texts), 1), return_counts=True)
            counts.update(
                (table.texts[ngram], count) for ngram, count in zip(ngrams.tolist(), images.tolist(), strict=True)
            )
        return cls(counts, len(captions), captions.tokenizer)

    @classmethod
    def from_text(cls, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "ptb") -> DocumentFrequencies:
        """Tokenize raw references, one sequence of captions per image, and count over them."""
        return cls.from_captions(CaptionSet.from_text([""] * len(references), references, tokenizer))

    def idf(self, ngrams: Sequence[str]) -> np.ndarray:
        """Return `log(images / count)` of each n-gram, in nats, at least 0, shape (ngrams,).

        Unseen n-grams have a count of 1.
        """
        counts = np.array([self.counts.get(ngram, 1) for ngram in ngrams], dtype=np.float64)
        weights: np.ndarray = np.log(self.images) - np.log(counts)
        return weights

    def to_json(self) -> str:
        """Return the text that [`load`] reads."""
        ngrams = dict(sorted(self.counts.items()))
        content = {"format": _FORMAT, "images": self.images, "tokenizer": self.tokenizer, "ngrams": ngrams}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Read a file written from [`to_json`].

        Raises:
            ValueError: The file does not contain document frequencies, or a count lies outside 1 to `images`.
        """
        remedy = "Make it again with DocumentFrequencies.to_json()."
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}). {remedy}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a file of the format {_FORMAT!r}. {remedy}")
        counts, images = content["ngrams"], content["images"]
        if not all(1 <= count <= images for count in counts.values()):
            raise ValueError(f"{path} holds a count outside 1 to {images}, its number of images. {remedy}")
        return cls(counts, images, content["tokenizer"])
