"""CIDEr and CIDEr-D: agreement with the references, n-grams weighted by how rare they are; and CIDEr-D as a reward.

Vedantam, Zitnick and Parikh, 2015, "CIDEr: Consensus-based Image Description Evaluation",
https://arxiv.org/abs/1411.5726.

Two scores share the name, and both implementations differ from the paper:

* `"cider-d"` is what captioning papers report as "CIDEr", and what pycocoevalcap's class `Cider` computes, despite its
  name: the paper's CIDEr-D, with clipping (a hypothesis cannot gain by repeating an n-gram more often than the
  reference), a Gaussian penalty on the difference in length (sigma 6), a factor of 10 and no stemming. Term
  frequencies are plain counts, as in every published implementation; the paper divides them by the caption's n-grams,
  which matters under clipping. Length is counted in bigrams, so empty captions and captions of one word are equally
  long.
* `"cider"` is the paper's first score, the plain cosine, as in `pyciderevalcap/cider` by the paper's first author
  (https://github.com/vrama91/cider): no clipping and no length penalty, but times 10 and without the paper's stemming.

The reward of self-critical training (`ciderD` in https://github.com/ruotianluo/cider) is `"cider-d"` with document
frequencies from the training set instead of the scored references; `CiderDReward` does that. There, captions end in an
end-of-sentence token; here, they do not.

Scores range from 0 to 10. Tables print 100 times the score, as is customary: 0.82 is "82".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import evaluate
import numpy as np

from .caption_set import MAX_ORDER, CaptionSet
from .document_frequencies import DocumentFrequencies
from .options import FEATURES, ScoringOptions
from .ptb import Tokenizer, tokenize
from .statistics import MetricResult, ScoreStatistics
from .writing_systems import MARKS

CiderForm = Literal["cider-d", "cider"]

_SIGMA = 6.0  # words; the width of CIDEr-D's length penalty
_SCALE = 10.0


def cider_scores(
    captions: CaptionSet, frequencies: DocumentFrequencies | None = None, form: CiderForm = "cider-d"
) -> np.ndarray:
    """Return each image's score, shape (images,), 0 to 10; the corpus score is their mean.

    Args:
        captions: Tokenized hypotheses and references.
        frequencies: Document frequencies; by default those of the references, as in published scores. A single image
            then scores 0, since n-grams that occur in every image have zero weight.
        form: Which of the two scores, see the module docstring.

    Raises:
        ValueError: `frequencies` were computed with another tokenizer, or `form` is unknown.
    """
    if form not in ("cider-d", "cider"):
        raise ValueError(
            f'form={form!r} is unknown. Choose "cider-d" (what tables call CIDEr) or "cider" (the plain cosine).'
        )
    if frequencies is None:
        frequencies = DocumentFrequencies.from_captions(captions)
    _check_tokenizer(frequencies, captions.tokenizer)
    images = len(captions)
    similarity = np.zeros(len(captions.captions))  # of each reference to its hypothesis, summed over n-gram orders
    for table in captions.ngrams:
        idf = frequencies.idf(table.texts)
        weight = table.count * idf[table.ngram]  # (rows,)
        norm = np.sqrt(np.bincount(table.caption, weight**2, minlength=len(similarity)))  # (captions,)
        hypothesis_row, reference_row = captions.common_rows(table)
        ours, theirs = weight[hypothesis_row], weight[reference_row]
        reference = table.caption[reference_row]
        product = (np.minimum(ours, theirs) if form == "cider-d" else ours) * theirs
        norms = norm[table.caption[hypothesis_row]] * norm[reference]
        # A caption whose n-grams all have zero weight has similarity 0 to every other.
        cosine = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
        similarity += np.bincount(reference, cosine, minlength=len(similarity))
    if form == "cider-d":
        bigrams = np.maximum(captions.length - 1, 0)
        similarity *= np.exp(-((bigrams - bigrams[captions.image]) ** 2) / (2 * _SIGMA**2))
    image = captions.image[images:]
    return _SCALE / MAX_ORDER * np.bincount(image, similarity[images:]) / np.bincount(image)


def score_cider(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """CIDEr-D, which tables call CIDEr, as a `MetricFunction`.

    Raises:
        ValueError: As in [`cider_scores`].
    """
    scores = [cider_scores(each, options.document_frequencies) for each in sets]
    return [MetricResult((ScoreStatistics.mean("cider", each),)) for each in scores]


def score_cider_cosine(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """The paper's first CIDEr, a plain cosine, as a `MetricFunction`.

    Raises:
        ValueError: As in [`cider_scores`].
    """
    scores = [cider_scores(each, options.document_frequencies, "cider") for each in sets]
    return [MetricResult((ScoreStatistics.mean("cider_cosine", each),)) for each in scores]


class CiderDReward:
    """CIDEr-D of sampled captions: the reward of self-critical training, https://arxiv.org/abs/1612.00563.

    Args:
        references: Raw captions, one or more per image; `images` below are indices into it.
        frequencies: Document frequencies of the training set; by default those of `references`.
        tokenizer: `"simple"` needs no Java and starts no process.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        frequencies: DocumentFrequencies | None = None,
        tokenizer: Tokenizer = "simple",
    ):
        captions = CaptionSet.from_text([""] * len(references), references, tokenizer)
        self.tokenizer = tokenizer
        self.references = captions.references
        self.frequencies = frequencies or DocumentFrequencies.from_captions(captions)
        _check_tokenizer(self.frequencies, tokenizer)

    def __call__(self, hypotheses: Sequence[str], images: Sequence[int]) -> np.ndarray:
        """Score raw captions, shape (hypotheses,); `images[i]` is the image of `hypotheses[i]`, so an image may have
        several."""
        references = [self.references[image] for image in images]
        return cider_scores(
            CaptionSet(tokenize(hypotheses, self.tokenizer), references, self.tokenizer), self.frequencies
        )


def _check_tokenizer(frequencies: DocumentFrequencies, tokenizer: str) -> None:
    if frequencies.tokenizer != tokenizer:
        raise ValueError(
            f"The document frequencies were counted on {frequencies.tokenizer!r} tokens, the captions are tokenized "
            f"by {tokenizer!r}. "
            f"Compute the frequencies with tokenizer={tokenizer!r}."
        )


class Cider(evaluate.Metric):
    """CIDEr as an `evaluate` metric: `Cider().compute(predictions=[...], references=[[...], ...])`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(
                "CIDEr of image captions, equal to pycocoevalcap's (in the paper's terms CIDEr-D); 0 to "
                "10, tables print it times 100."
            ),
            citation="Vedantam, Zitnick and Parikh, 2015, CIDEr: Consensus-based Image Description Evaluation",
            inputs_description=(
                "predictions: list of str, one caption per image. references: list of lists of str. "
                'tokenizer: "ptb", "simple", "char" or "none". document_frequencies: path of a file that '
                "DocumentFrequencies.to_json wrote; "
                'without it they come from the references. form: "cider-d" or "cider", the plain cosine. '
                "Returns cider (cider_cosine for the cosine), 0 to 10, and cider_signature."
            ),
            features=FEATURES,
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
            "cider" if form == "cider-d" else "cider_cosine": float(cider_scores(captions, frequencies, form).mean()),
            "cider_signature": f"{captions.signature}|form:{form}|df:{source}",
        }
