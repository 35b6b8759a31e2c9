"""`scores.json` beside the weights: what a checkpoint scored, for its card; and the card's `model-index`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..files import SCORES, WEIGHTS, atomic_path, sha256_of, write_atomically

# figure -> (type on the Hub, name in tables)
METRICS = {
    "cider": ("cider", "CIDEr"),
    "meteor": ("meteor", "METEOR"),
    "bleu_4": ("bleu", "BLEU-4"),
    "bleu_3": ("bleu", "BLEU-3"),
    "bleu_2": ("bleu", "BLEU-2"),
    "bleu_1": ("bleu", "BLEU-1"),
    "rouge_l": ("rouge", "ROUGE-L"),
}


def keep_scores(checkpoint: str | Path, scores: Mapping[str, Any]) -> None:
    """Adds figures to those that the checkpoint's folder keeps, in the place of older ones of the same kind.

    Args:
        checkpoint: The folder.
        scores: `data`, `split`, `settings` (what must be equal for figures to be comparable), `decoding`, `figures`,
            `intervals`, `people`, `by_word`, `by_length`.
    """
    kind = ("data", "split", "settings", "decoding")
    others = [each for each in read_scores(checkpoint) if any(each[name] != scores[name] for name in kind)]
    content = {"weights": sha256_of(Path(checkpoint) / WEIGHTS), "scores": [*others, scores]}
    write_atomically(Path(checkpoint) / SCORES, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_scores(checkpoint: str | Path) -> list[dict[str, Any]]:
    """The figures that a checkpoint's folder keeps, those kept first coming first; none that are of other weights."""
    path = Path(checkpoint) / SCORES
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    return content["scores"] if content["weights"] == sha256_of(Path(checkpoint) / WEIGHTS) else []


def eval_results(figures: Mapping[str, float], *, dataset: str, split: str, signature: str) -> list[EvalResult]:
    """Scores as the Hub knows them, for the metadata of a card.

    Args:
        figures: Scores by name, 0 to 1 (CIDEr 0 to 10); times 100 in a card, as tables have them. Others are left out.
        dataset: Hub id or folder of the data set; a folder is written as its name.
        split: Its split.
        signature: What must be equal for figures to be comparable.
    """
    dataset_name = Path(dataset).name
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=dataset if dataset.count("/") == 1 and not dataset.startswith(".") else dataset_name,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=metric_type,
            metric_name=title,
            metric_value=round(100 * figures[figure], 1),
            metric_args={"signature": signature},
        )
        for figure, (metric_type, title) in METRICS.items()
        if figure in figures
    ]


def write_model_index(card: str | Path, model_name: str, results: Sequence[EvalResult]) -> None:
    """Writes scores into a card's metadata, in the place of those that were there. Runs on one process.

    Raises:
        FileNotFoundError: No such card.
    """
    card = Path(card)
    content = ModelCard(card.read_text())
    metadata = cast(ModelCardData, content.data)
    metadata.model_name, metadata.eval_results = model_name, list(results)
    with atomic_path(card) as temporary:
        content.save(temporary)
