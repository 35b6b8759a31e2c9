"""CIDEr and CIDEr-D: agreement with what people wrote, n-grams weighed by how rare they are; and CIDEr-D as a reward.

Vedantam, Zitnick and Parikh, 2015, "CIDEr: Consensus-based Image Description Evaluation", https://arxiv.org/abs/1411.5726.

Two scores share the name, and the code differs from the paper in both:

* `"cider-d"` is what captioning tables print under "CIDEr", and what pycocoevalcap's class `Cider` computes, its name notwithstanding:
  the paper's CIDEr-D, with clipping (a hypothesis cannot gain by repeating an n-gram more often than the reference), a Gaussian penalty on the
  difference in length (sigma 6), the factor 10 and no stemming. Term frequencies are plain counts, as in every published implementation;
  the paper divides them by the caption's n-grams, which matters under clipping. The length is counted in bigrams, so captions of no word
  and of one word are equally long.
* `"cider"` is the paper's first score, the plain cosine, as `pyciderevalcap/cider` of the paper's first author has it
  (https://github.com/vrama91/cider): no clipping and no length penalty, yet times 10 and without the paper's stemming.

The scorer that self-critical training made known (`ciderD` in https://github.com/ruotianluo/cider) is `"cider-d"` with document frequencies from the
training set in place of the scored references; `CiderDReward` does that. It also counts the end of the caption as a word, which this one does not.

Scores run from 0 to 10. Tables print 100 times the score, as the field does: 0.82 is "82".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import datasets
import evaluate
import numpy as np

from .caption_set import CaptionSet
from .document_frequencies import DocumentFrequencies
from .ngrams import MAX_ORDER, NgramCounts, count_ngrams
from .ptb import Tokenizer, tokenize

CiderForm = Literal["cider-d", "cider"]

_SIGMA = 6.0  # words; the width of CIDEr-D's length penalty
_SCALE = 10.0


class CiderReferences:
    """One image's references with the norms of their weighted n-grams, prepared so that scoring a hypothesis is cheap."""

    def __init__(self, references: Sequence[NgramCounts], frequencies: DocumentFrequencies, form: CiderForm = "cider-d"):
        """Raises ValueError if `form` is neither "cider-d" nor "cider"."""
        if form not in ("cider-d", "cider"):
            raise ValueError(f'form={form!r} is unknown. Choose "cider-d" (what tables call CIDEr) or "cider" (the plain cosine).')
        self.clipped = form == "cider-d"
        self.frequencies = frequencies
        self.references = [(reference, frozenset(reference.counts), self._norms(reference)) for reference in references]

    def score(self, hypothesis: NgramCounts) -> float:
        """Return the score of one hypothesis, 0 to 10."""
        ngrams, norms = frozenset(hypothesis.counts), self._norms(hypothesis)
        similarities = []
        for reference, reference_ngrams, reference_norms in self.references:
            penalty = 1.0
            if self.clipped:
                difference = max(hypothesis.words - 1, 0) - max(reference.words - 1, 0)  # in bigrams
                penalty = math.exp(-(difference**2) / (2 * _SIGMA**2))
            for ngram in ngrams & reference_ngrams:
                if idf := self.frequencies.idf.get(ngram, self.frequencies.unknown_idf):  # 0 weighs nothing, and its norm may be 0
                    order = len(ngram) - 1
                    count, other = hypothesis.counts[ngram], reference.counts[ngram]
                    common = min(count, other) if self.clipped else count
                    similarities.append(penalty * common * other * idf * idf / (norms[order] * reference_norms[order]))
        # A set has no order that lasts from one process to the next; an exact sum makes the score independent of it.
        return _SCALE * math.fsum(similarities) / (MAX_ORDER * len(self.references))

    def _norms(self, ngrams: NgramCounts) -> list[float]:
        idf, unknown = self.frequencies.idf, self.frequencies.unknown_idf
        squares = [0.0] * MAX_ORDER
        for ngram, count in ngrams.counts.items():
            squares[len(ngram) - 1] += (count * idf.get(ngram, unknown)) ** 2
        return [math.sqrt(square) for square in squares]


def cider(
    captions: CaptionSet, frequencies: DocumentFrequencies | None = None, form: CiderForm = "cider-d"
) -> np.ndarray:
    """Return each image's score, shape (images,), 0 to 10; the corpus score is their mean.

    Args:
        captions: Tokenized hypotheses and references.
        frequencies: Document frequencies; without them those of the references, as published figures do. A single image then scores 0,
            since n-grams that every image has weigh nothing.
        form: Which of the two scores, see the head of this module.

    Raises:
        ValueError: `frequencies` were counted on the tokens of another tokenizer.
    """
    if frequencies is None:
        frequencies = DocumentFrequencies.from_references(captions.references, captions.tokenizer)
    _check_tokenizer(frequencies, captions.tokenizer)
    return np.array(
        [
            CiderReferences([count_ngrams(reference) for reference in references], frequencies, form).score(count_ngrams(hypothesis))
            for hypothesis, references in captions
        ]
    )


class CiderDReward:
    """CIDEr-D of sampled captions, the reward of self-critical training (Rennie et al., 2017, https://arxiv.org/abs/1612.00563).

    Args:
        references: Captions as written, one or more an image; `images` below are positions in it.
        frequencies: Document frequencies of the training set; without them those of `references`.
        tokenizer: `"simple"` needs no Java and starts nothing.
        prepared_images: Images whose references stay prepared, the last used first; one takes about 35 kB.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        frequencies: DocumentFrequencies | None = None,
        tokenizer: Tokenizer = "simple",
        prepared_images: int = 10_000,
    ):
        self.tokenizer = tokenizer
        self.captions = CaptionSet.from_text([""] * len(references), references, tokenizer)
        if frequencies is None:
            frequencies = DocumentFrequencies.from_references(self.captions.references, tokenizer)
        _check_tokenizer(frequencies, tokenizer)
        self.frequencies = frequencies
        self.prepared = lru_cache(prepared_images)(self._prepare)

    def __call__(self, hypotheses: Sequence[str], images: Sequence[int]) -> np.ndarray:
        """Score captions as written; `images[i]` is the image of `hypotheses[i]`, so an image may come with several. Shape (hypotheses,)."""
        tokenized = tokenize(hypotheses, self.tokenizer)
        return np.array([self.prepared(image).score(count_ngrams(caption)) for caption, image in zip(tokenized, images, strict=True)])

    def _prepare(self, image: int) -> CiderReferences:
        return CiderReferences([count_ngrams(reference) for reference in self.captions.references[image]], self.frequencies)


def _check_tokenizer(frequencies: DocumentFrequencies, tokenizer: str) -> None:
    if frequencies.tokenizer != tokenizer:
        raise ValueError(
            f"The document frequencies were counted on {frequencies.tokenizer!r} tokens, the captions are tokenized by {tokenizer!r}. "
            f"Compute the frequencies with tokenizer={tokenizer!r}."
        )


class Cider(evaluate.Metric):
    """CIDEr as an `evaluate` metric: `Cider().compute(predictions=[...], references=[[...], ...])`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="CIDEr of image captions, equal to pycocoevalcap's (in the paper's terms CIDEr-D); 0 to 10, tables print it times 100.",
            citation="Vedantam, Zitnick and Parikh, 2015, CIDEr: Consensus-based Image Description Evaluation",
            inputs_description=(
                "predictions: list of str, one caption an image. references: list of lists of str. "
                'tokenizer: "ptb", "simple" or "none". document_frequencies: path of a file that DocumentFrequencies.save wrote; '
                'without it they come from the references. form: "cider-d" or "cider", the plain cosine. '
                "Returns cider (0 to 10) and cider_signature."
            ),
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
            reference_urls=["https://arxiv.org/abs/1411.5726"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        tokenizer: Tokenizer = "ptb",
        document_frequencies: str | None = None,
        form: CiderForm = "cider-d",
    ) -> dict[str, Any]:
        captions = CaptionSet.from_text(predictions, references, tokenizer)
        frequencies = DocumentFrequencies.load(document_frequencies) if document_frequencies else None
        source = f"{frequencies.images} images of a file" if frequencies else "references"
        return {
            "cider": float(cider(captions, frequencies, form).mean()),
            "cider_signature": f"{captions.signature}|form:{form}|df:{source}",
        }
