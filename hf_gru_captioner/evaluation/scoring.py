"""All figures of one system at once, with intervals and a human row; and the comparison of two systems.

The captions are tokenized once and their n-grams counted once. Figures are kept on the scale of their formulas (0 to 1,
CIDEr 0 to 10) and printed times 100, as the field's tables have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import evaluate
import numpy as np

from .caption_bleu import ReferenceLength, bleu_from_statistics, bleu_scores
from .caption_set import CaptionSet
from .cider import cider_scores
from .diversity import diversity_scores
from .document_frequencies import DocumentFrequencies
from .human import leave_one_out
from .meteor import meteor_from_statistics, meteor_statistics
from .ptb import Tokenizer, tokenize
from .rouge_l import rouge_l_scores
from .statistics import Comparison, Metric, bootstrap_interval, paired_bootstrap

METRICS = ("bleu", "meteor", "rouge_l", "cider", "cider_cosine", "diversity", "evaluate/bleu")

# Figure -> its title and what the table multiplies it by, in the order of the table's rows.
TABLE_ROWS = {
    "cider": ("CIDEr", 100),
    "meteor": ("METEOR", 100),
    "bleu_4": ("BLEU-4", 100),
    "bleu_3": ("BLEU-3", 100),
    "bleu_2": ("BLEU-2", 100),
    "bleu_1": ("BLEU-1", 100),
    "rouge_l": ("ROUGE-L", 100),
    "cider_cosine": ("CIDEr, plain cosine", 100),
    "distinct_1": ("distinct-1", 100),
    "distinct_2": ("distinct-2", 100),
    "vocabulary": ("different words", 1),
    "mean_length": ("words a caption", 1),
    "repeated_word_share": ("repeating a word, %", 100),
    "novel_share": ("not in training set, %", 100),
    "evaluate/bleu": ("evaluate/bleu (not comparable)", 100),
}


@dataclass(frozen=True)
class CaptionScores:
    """The scores of one system.

    Attributes:
        figures: Corpus figures by name, such as `"bleu_4"` and `"cider"`; 0 to 1, CIDEr 0 to 10, `vocabulary` and
            `mean_length` in words.
        intervals: 95 % bootstrap interval of each figure that is a sum over images. `distinct_1`, `distinct_2`,
            `vocabulary` are not (an image drawn twice adds no new word) and `evaluate/bleu` cannot be taken apart;
            these have none.
        per_image: The figures of each image alone, shape (images,) each.
        human: The mean figures of people, each scored against the others; empty if not asked for.
        settings: What must be equal for two figures to be comparable, as in
            `tok:ptb|refs:5.0|images:1000|reflen:closest`.
        decoding: How the system wrote its captions, as in `num_beams:5|length_penalty:0.8`; empty if not known.
        length_ratio: Words in the hypotheses by words in the references they are held against; None without BLEU.
        captions: The tokenized captions.
        metrics: The sums over images behind the figures, for bootstraps of one's own.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_image: dict[str, np.ndarray]
    human: dict[str, float]
    settings: str
    decoding: str
    length_ratio: float | None
    captions: CaptionSet
    metrics: list[Metric]

    @property
    def signature(self) -> str:
        """Settings, length ratio, decoding: `tok:ptb|refs:5.0|images:1000|reflen:closest|ratio:0.98|num_beams:5`."""
        ratio = "" if self.length_ratio is None else f"ratio:{self.length_ratio:.2f}"
        return "|".join(filter(None, (self.settings, ratio, self.decoding)))

    def table(self) -> str:
        """Return a table for the terminal: score, 95 % interval and what people score; all times 100."""
        lines = [f"{'':<31}{'score':>8}  {'95 % interval':<18}{'people':>8}".rstrip()]
        for name, (title, scale) in TABLE_ROWS.items():
            if name not in self.figures:
                continue
            low, high = self.intervals.get(name, (None, None))
            interval = "" if low is None or high is None else f"{low * scale:.1f} to {high * scale:.1f}"
            human = f"{self.human[name] * scale:.1f}" if name in self.human else ""
            lines.append(f"{title:<31}{self.figures[name] * scale:>8.1f}  {interval:<18}{human:>8}".rstrip())
        return "\n".join([*lines, f"Scores times 100. {self.signature}"])


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = ("bleu", "meteor", "rouge_l", "cider"),
    tokenizer: Tokenizer = "ptb",
    reference_length: ReferenceLength = "closest",
    brevity_penalty: bool = True,
    document_frequencies: DocumentFrequencies | None = None,
    training_captions: Sequence[str] | None = None,
    decoding: str = "",
    human: bool = True,
    bootstrap: int = 1000,
    seed: int = 0,
) -> CaptionScores:
    """Score one system's captions.

    Args:
        predictions: One caption an image, as written.
        references: One or more captions an image, as written.
        metrics: Any of "bleu", "meteor", "rouge_l", "cider", "cider_cosine" (the paper's first CIDEr), "diversity" and
            "evaluate/bleu" (`evaluate.load("bleu")`: needs the network the first time and is not comparable with any of
            the others or with published figures).
        tokenizer: "ptb" for comparable figures, "simple" where there is no Java, "none" for tokens.
        reference_length, brevity_penalty: How BLEU counts, see `bleu_scores`.
        document_frequencies: For CIDEr, in place of those of `references`.
        training_captions: As written; with "diversity", for the share of captions that are new.
        decoding: How the captions were written, for the signature.
        human: Also score people against each other, where an image has two references or more. With "meteor" this takes
            about as many times as long as there are references an image.
        bootstrap: Resamples for the intervals; 0 for none.
        seed: Of the bootstrap.

    Raises:
        ValueError: Captions that cannot be scored, or an unknown metric.
        ImportError: "ptb" or "meteor" without Java or pycocoevalcap.
    """
    unknown = set(metrics) - set(METRICS)
    if unknown or not metrics:
        raise ValueError(f"Found metrics {list(metrics)}. Choose one or more of {', '.join(METRICS)}.")
    captions = CaptionSet.from_text(predictions, references, tokenizer)
    rounds = leave_one_out(captions) if human and max(map(len, references)) > 1 else []
    sets = [captions, *rounds]
    bleus = [bleu_scores(each, reference_length, brevity_penalty) for each in sets] if "bleu" in metrics else []
    meteors = _meteor_statistics(sets) if "meteor" in metrics else []
    known = None
    if training_captions is not None and "diversity" in metrics:
        known = frozenset(tokenize(training_captions, tokenizer))

    scored = []  # of the system and of each human round: its sums over images, and all its figures
    for position, each in enumerate(sets):
        sums: list[Metric] = []
        figures: dict[str, float] = {}
        if bleus:
            score = partial(bleu_from_statistics, brevity_penalty=brevity_penalty)
            sums.append(Metric(("bleu_1", "bleu_2", "bleu_3", "bleu_4"), bleus[position].statistics, score))
        if meteors:
            sums.append(Metric(("meteor",), meteors[position], _meteor))
        if "rouge_l" in metrics:
            sums.append(Metric.mean("rouge_l", rouge_l_scores(each)))
        if "cider" in metrics:
            sums.append(Metric.mean("cider", cider_scores(each, document_frequencies)))
        if "cider_cosine" in metrics:
            sums.append(Metric.mean("cider_cosine", cider_scores(each, document_frequencies, "cider")))
        if "diversity" in metrics:
            varied = diversity_scores(each.hypotheses, known)
            figures |= {"distinct_1": varied.distinct_1, "distinct_2": varied.distinct_2}
            figures["vocabulary"] = float(varied.vocabulary)
            sums.append(Metric.mean("mean_length", varied.length))
            sums.append(Metric.mean("repeated_word_share", varied.repeats_word))
            if varied.novel is not None:
                sums.append(Metric.mean("novel_share", varied.novel))
        for metric in sums:
            figures.update(zip(metric.names, metric.corpus.tolist(), strict=True))
        scored.append((sums, figures))

    (sums, figures), *of_people = scored
    settings = bleus[0].settings if bleus else captions.signature
    if document_frequencies is not None:
        settings += f"|df:{document_frequencies.images} images"
    intervals: dict[str, tuple[float, float]] = {}
    per_image: dict[str, np.ndarray] = {}
    for metric in sums:
        per_image.update(zip(metric.names, metric.per_image.T, strict=True))
        if bootstrap:
            intervals |= bootstrap_interval(metric, bootstrap, seed)
    people = {name: float(np.mean([each[name] for _, each in of_people])) for name in figures} if of_people else {}
    if "evaluate/bleu" in metrics:
        figures["evaluate/bleu"] = _evaluate_bleu(predictions, references)
    return CaptionScores(
        figures=figures,
        intervals=intervals,
        per_image=per_image,
        human=people,
        settings=settings,
        decoding=decoding,
        length_ratio=bleus[0].length_ratio if bleus else None,
        captions=captions,
        metrics=sums,
    )


def compare(
    first: CaptionScores, second: CaptionScores, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems on the same images by a paired bootstrap: for each figure that both have, second less first.

    Raises:
        ValueError: The systems were scored against other references or with other settings, or share no figure.
    """
    if first.settings != second.settings or first.captions.references != second.captions.references:
        raise ValueError(
            f"These scores cannot be paired: {first.settings} and {second.settings}, or the references differ. "
            "Score both systems on the same images in the same order with the same settings."
        )
    others = {metric.names: metric for metric in second.metrics}
    pairs = [(metric, others[metric.names]) for metric in first.metrics if metric.names in others]
    if not pairs:
        raise ValueError("These scores share no figure. Score both systems with the same metrics.")
    return {name: each for pair in pairs for name, each in paired_bootstrap(*pair, resamples, seed).items()}


def _meteor_statistics(sets: Sequence[CaptionSet]) -> list[np.ndarray]:
    """Return `meteor_statistics` of each set, all from one JVM: it takes seconds to start."""
    together = CaptionSet(
        [hypothesis for each in sets for hypothesis in each.hypotheses],
        [references for each in sets for references in each.references],
        sets[0].tokenizer,
    )
    return np.split(meteor_statistics(together), np.cumsum([len(each) for each in sets])[:-1])


def _meteor(statistics: np.ndarray) -> np.ndarray:
    return meteor_from_statistics(statistics)[..., None]


def _evaluate_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    try:
        metric = evaluate.load("bleu")
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            'The metric "evaluate/bleu" is a download of the evaluate library. Go online once, or leave it out.'
        ) from error
    return float(metric.compute(predictions=list(predictions), references=[list(each) for each in references])["bleu"])
