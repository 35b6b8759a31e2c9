"""`scores.json`, a checkpoint's scores stored beside its weights for its card, and the card's `model-index`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import UsageError, reason_of
from ..evaluation.metrics import HUB_SCORES
from ..files import SCORES, WEIGHTS, atomic_path, sha256_of, write_atomically


def keep_scores(checkpoint: str | Path, scores: Mapping[str, Any]) -> Path:
    """Adds scores to `scores.json` in the checkpoint's folder, replacing older ones of the same kind; returns its path.

    Args:
        checkpoint: The folder.
        scores: `data`, `split`, `images` (their number), `settings` (what must match for scores to be comparable),
            `decoding`, `values`, `intervals`, `human`, `by_word`, `by_length`, `labels`.
    """
    kind = ("data", "split", "settings", "decoding")
    others = [each for each in read_scores(checkpoint) if any(each[name] != scores[name] for name in kind)]
    content = {"weights": sha256_of(Path(checkpoint) / WEIGHTS), "scores": [*others, scores]}
    path = Path(checkpoint) / SCORES
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def read_scores(checkpoint: str | Path) -> list[dict[str, Any]]:
    """Return the scores in a checkpoint's folder, oldest first; empty if they are for different weights."""
    path = Path(checkpoint) / SCORES
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    return content["scores"] if content["weights"] == sha256_of(Path(checkpoint) / WEIGHTS) else []


def eval_results(values: Mapping[str, float], *, dataset: str, split: str, signature: str) -> list[EvalResult]:
    """Return scores in the Hub's format, for the metadata of a card.

    Args:
        values: Scores by name, as in `CaptionScores.values`; times 100 in a card, as in tables. Scores without a metric
            type on the Hub are omitted.
        dataset: Hub id or folder of the dataset; only a folder's name is written.
        split: Its split.
        signature: What must match for scores to be comparable.
    """
    dataset_name = Path(dataset).name
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=dataset if dataset.count("/") == 1 and not dataset.startswith(".") else dataset_name,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=cast(str, score.hub_type),
            metric_name=score.title,
            metric_value=round(score.scale * values[name], 1),
            metric_args={"signature": signature},
        )
        for name, score in HUB_SCORES.items()
        if name in values
    ]


def read_card(card: str | Path) -> ModelCard:
    """Read a model card.

    Raises:
        FileNotFoundError: No such card.
        UsageError: Its metadata are malformed.
    """
    card = Path(card)
    if not card.is_file():
        raise FileNotFoundError(f"{card}: no such file. gru-captioner card CHECKPOINT --output {card} writes it.")
    content = card.read_text()
    try:
        return ModelCard(content)
    except Exception as error:  # of YAML, or of huggingface_hub about any field
        raise UsageError(
            f"the metadata of {card}, between its lines ---, are malformed ({reason_of(error)})."
        ) from error


def write_model_index(card: str | Path, model_name: str, results: Sequence[EvalResult]) -> None:
    """Write scores into a card's metadata, replacing existing ones. Runs on one process.

    Raises:
        FileNotFoundError, UsageError: As in [`read_card`].
    """
    card = Path(card)
    content = read_card(card)
    metadata = cast(ModelCardData, content.data)
    metadata.model_name, metadata.eval_results = model_name, list(results)
    with atomic_path(card) as temporary:
        content.save(temporary)
