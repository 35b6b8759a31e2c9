"""Metrics for image captions: pycocoevalcap's scores to the last digit, several times faster, with intervals.

`score_captions` computes all scores of a system, `compare` compares two systems. The classes are `evaluate` metrics;
each lives in a file that `evaluate.load` accepts by path. `CiderDReward` serves self-critical training. Names are
imported lazily: the registry, `metrics`, is also used without the `evaluate` library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import needs_extra

_MODULES = {
    "METRICS": "metrics",
    "BleuScores": "caption_bleu",
    "CaptionBleu": "caption_bleu",
    "CaptionScores": "scoring",
    "CaptionSet": "caption_set",
    "Cider": "cider",
    "CiderDReward": "cider",
    "Comparison": "statistics",
    "Diversity": "diversity",
    "DiversityScores": "diversity",
    "DocumentFrequencies": "document_frequencies",
    "LabelMentions": "mentions",
    "LabelRecord": "mentions",
    "LengthRecord": "breakdown",
    "Meteor": "meteor",
    "Metric": "metrics",
    "MetricResult": "statistics",
    "RougeL": "rouge_l",
    "Score": "metrics",
    "ScoreStatistics": "statistics",
    "ScoringOptions": "options",
    "SystemScores": "scoring",
    "Tokenizer": "ptb",
    "WordRecord": "breakdown",
    "bleu_scores": "caption_bleu",
    "bootstrap_interval": "statistics",
    "by_length": "breakdown",
    "by_word": "breakdown",
    "char_tokenize": "ptb",
    "check_scoring": "scoring",
    "choose_tokenizer": "ptb",
    "cider_scores": "cider",
    "compare": "scoring",
    "diversity_scores": "diversity",
    "label_mentions": "mentions",
    "leave_one_out": "human",
    "meteor_from_statistics": "meteor",
    "meteor_statistics": "meteor",
    "paired_bootstrap": "statistics",
    "ptb_tokenize": "ptb",
    "rouge_l_scores": "rouge_l",
    "score_captions": "scoring",
    "score_systems": "scoring",
    "simple_tokenize": "ptb",
    "tokenize": "ptb",
}

if TYPE_CHECKING:
    from .breakdown import LengthRecord, WordRecord, by_length, by_word
    from .caption_bleu import BleuScores, CaptionBleu, bleu_scores
    from .caption_set import CaptionSet
    from .cider import Cider, CiderDReward, cider_scores
    from .diversity import Diversity, DiversityScores, diversity_scores
    from .document_frequencies import DocumentFrequencies
    from .human import leave_one_out
    from .mentions import LabelMentions, LabelRecord, label_mentions
    from .meteor import Meteor, meteor_from_statistics, meteor_statistics
    from .metrics import METRICS, Metric, Score
    from .options import ScoringOptions
    from .ptb import Tokenizer, char_tokenize, choose_tokenizer, ptb_tokenize, simple_tokenize, tokenize
    from .rouge_l import RougeL, rouge_l_scores
    from .scoring import CaptionScores, SystemScores, check_scoring, compare, score_captions, score_systems
    from .statistics import (
        Comparison,
        MetricResult,
        ScoreStatistics,
        bootstrap_interval,
        paired_bootstrap,
    )

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
    "LabelMentions",
    "LabelRecord",
    "LengthRecord",
    "Meteor",
    "Metric",
    "MetricResult",
    "RougeL",
    "Score",
    "ScoreStatistics",
    "ScoringOptions",
    "SystemScores",
    "Tokenizer",
    "WordRecord",
    "bleu_scores",
    "bootstrap_interval",
    "by_length",
    "by_word",
    "char_tokenize",
    "check_scoring",
    "choose_tokenizer",
    "cider_scores",
    "compare",
    "diversity_scores",
    "label_mentions",
    "leave_one_out",
    "meteor_from_statistics",
    "meteor_statistics",
    "paired_bootstrap",
    "ptb_tokenize",
    "rouge_l_scores",
    "score_captions",
    "score_systems",
    "simple_tokenize",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_extra("score"):
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
