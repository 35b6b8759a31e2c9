"""In how many images' references each n-gram occurs: the "document frequencies" by which CIDEr weighs n-grams.

The published CIDEr takes them from the references that are scored against. Rewards and single photos have no such corpus; they take
them from a training set, computed once and kept in a JSON file.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .ngrams import Ngram, count_ngrams
from .ptb import Tokenizer, tokenize

_FORMAT = "hf_gru_captioner document frequencies 1"


@dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies of n-grams of one to four words.

    Attributes:
        counts: Images in whose references the n-gram occurs at least once, 1 to `images`.
        images: Images in the corpus.
        tokenizer: What made the tokens; captions scored with these frequencies must be tokenized alike.
    """

    counts: dict[Ngram, int]
    images: int
    tokenizer: str

    @classmethod
    def from_references(cls, references: Iterable[Sequence[str]], tokenizer: str) -> DocumentFrequencies:
        """Count over tokenized references, one sequence of captions an image."""
        counts: Counter[Ngram] = Counter()
        images = 0
        for images, captions in enumerate(references, start=1):  # noqa: B007 (its last value is the number of images)
            counts.update({ngram for caption in captions for ngram in count_ngrams(caption).counts})
        return cls(dict(counts), images, tokenizer)

    @classmethod
    def from_text(cls, references: Sequence[Sequence[str]], tokenizer: Tokenizer = "ptb") -> DocumentFrequencies:
        """Tokenize references as written, one sequence of captions an image, and count over them."""
        tokens = iter(tokenize([caption for captions in references for caption in captions], tokenizer))
        return cls.from_references([[next(tokens) for _ in captions] for captions in references], tokenizer)

    @cached_property
    def idf(self) -> dict[Ngram, float]:
        """Inverse document frequency of each known n-gram, `log(images / count)` >= 0, in nats."""
        return {ngram: self.unknown_idf - math.log(count) for ngram, count in self.counts.items()}

    @cached_property
    def unknown_idf(self) -> float:
        """Inverse document frequency of an n-gram that no reference holds: as if one image did."""
        return math.log(self.images) if self.images else 0.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON aside and rename it into place, so that a reader never sees half a file. Call it on one rank."""
        ngrams = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        content = {"format": _FORMAT, "images": self.images, "tokenizer": self.tokenizer, "ngrams": ngrams}
        path = Path(path)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                json.dump(content, file, ensure_ascii=False)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                file.close()
                os.unlink(file.name)
                raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not one of document frequencies, or a count lies outside 1 to `images`.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}). Make it anew with DocumentFrequencies.save().") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} does not hold {_FORMAT!r}. Make it anew with DocumentFrequencies.save().")
        counts = {tuple(ngram.split(" ")): count for ngram, count in content["ngrams"].items()}
        if counts and not 1 <= min(counts.values()) <= max(counts.values()) <= content["images"]:
            raise ValueError(f"{path} holds a count outside 1 to {content['images']}, its number of images. Make it anew.")
        return cls(counts, content["images"], content["tokenizer"])
