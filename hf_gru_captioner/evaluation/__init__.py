"""Scores of image captions: pycocoevalcap's figures to the last digit, several times faster, with their uncertainty.

`score_captions` gives all figures of a system at once, `compare` tells two systems apart. The classes are `evaluate`
metrics; each lives in a file that `evaluate.load` takes by its path. `CiderDReward` serves self-critical training.
"""

try:
    import evaluate  # noqa: F401
except ImportError as error:
    raise ImportError('Scoring needs the evaluate library: pip install "hf_gru_captioner[score]"') from error

from .breakdown import LengthRecord, WordRecord, by_length, by_word
from .caption_bleu import BleuScores, CaptionBleu, bleu_scores
from .caption_set import CaptionSet
from .cider import Cider, CiderDReward, cider_scores
from .diversity import Diversity, DiversityScores, diversity_scores
from .document_frequencies import DocumentFrequencies
from .human import leave_one_out
from .meteor import Meteor, meteor_from_statistics, meteor_statistics
from .ptb import Tokenizer, ptb_tokenize, simple_tokenize, tokenize
from .rouge_l import RougeL, rouge_l_scores
from .scoring import METRICS, CaptionScores, compare, score_captions
from .statistics import Comparison, Metric, bootstrap_interval, paired_bootstrap

__all__ = [
    "METRICS",
    "BleuScores",
    "CaptionBleu",
    "CaptionScores",
    "CaptionSet",
    "Cider",
    "CiderDReward",
    "Comparison",
    "Diversity",
    "DiversityScores",
    "DocumentFrequencies",
    "LengthRecord",
    "Meteor",
    "Metric",
    "RougeL",
    "Tokenizer",
    "WordRecord",
    "bleu_scores",
    "bootstrap_interval",
    "by_length",
    "by_word",
    "cider_scores",
    "compare",
    "diversity_scores",
    "leave_one_out",
    "meteor_from_statistics",
    "meteor_statistics",
    "paired_bootstrap",
    "ptb_tokenize",
    "rouge_l_scores",
    "score_captions",
    "simple_tokenize",
    "tokenize",
]
