"""`evaluate.load("bleu")` as a separate row: it keeps case and punctuation and uses the shortest reference's length, so
its score is not comparable with any other, nor with published captioning scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import evaluate

from .caption_set import CaptionSet
from .options import ScoringOptions
from .statistics import MetricResult


def score_evaluate_bleu(sets: Sequence[CaptionSet], options: ScoringOptions) -> list[MetricResult]:
    """Score the system's raw captions; human captions get no score. See `MetricFunction`.

    Raises:
        ConnectionError: The metric is not in the cache and the Hub cannot be reached.
    """
    try:
        metric = evaluate.load("bleu")
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            'The metric "evaluate/bleu" is a download of the evaluate library. Go online once, or leave it out.'
        ) from error
    references = [list(each) for each in options.references]
    result = metric.compute(predictions=list(options.predictions), references=references)
    system = MetricResult(corpus={"evaluate/bleu": float(result["bleu"])})
    return [system, *(MetricResult() for _ in sets[1:])]
