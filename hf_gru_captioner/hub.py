"""The model card's metadata: scores as a `model-index`, made with huggingface_hub's own classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

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


def write_model_index(
    card: str | Path, figures: Mapping[str, float], *, model_name: str, dataset: str, split: str, signature: str
) -> None:
    """Writes scores into a card's metadata, in the place of those that were there. Runs on one process.

    Args:
        card: The card, a Markdown file with a metadata block.
        figures: Scores by name, 0 to 1 (CIDEr 0 to 10); the card has them times 100, as tables do. Others are left out.
        model_name: Name of the model.
        dataset: Hub id or folder of the data set; a folder is written as its name.
        split: Its split.
        signature: What must be equal for figures to be comparable.

    Raises:
        FileNotFoundError: No such card.
    """
    card = Path(card)
    content = ModelCard(card.read_text())
    dataset_name = Path(dataset).name
    metadata = cast(ModelCardData, content.data)
    metadata.model_name = model_name
    metadata.eval_results = [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=dataset if dataset.count("/") == 1 and not dataset.startswith(".") else dataset_name,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type=metric_type,
            metric_name=name,
            metric_value=round(100 * figures[figure], 1),
            metric_args={"signature": signature},
        )
        for figure, (metric_type, name) in METRICS.items()
        if figure in figures
    ]
    aside = card.with_name(f"{card.name}.partial")
    content.save(aside)
    aside.replace(card)
