"""The model card, generated from the files beside the weights:

    config.json, model.safetensors      architecture, size
    training.json                       how it was trained
    scores.json                         how it scores, and on which words it is right or wrong

What needs the model to run, its captions of example images and of blank ones, is passed in. The text is in
card_template.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from ..evaluation.metrics import HUB_SCORES, few_images_note
from ..files import CONFIG, TRAINING_RECORD, WEIGHTS
from .markdown import Markdown, render_markdown
from .names import CODE, public_name, source_names
from .scores import eval_results, read_scores

TEMPLATE = Path(__file__).with_name("card_template.md")

NUM_SPECIAL_TOKENS = 4

# Prefix of the weights' names -> part of the model in the card's table; the first match counts.
PARTS = {
    "encoder.vision.": "vision encoder",
    "encoder.projection.": "keys and values of the regions",
    "decoder.embed_tokens.": "word embeddings, shared with the output layer",
    "decoder.language_gru.": "language GRU",
    "decoder.attention.": "attention",
    "decoder.fusion_gru.": "fusion GRU",
    "": "initial states, output",
}


@dataclass(frozen=True)
class Example:
    """An image and its caption.

    Attributes:
        name: File name of the image, or what it shows.
        caption: The model's caption.
        path: Path of the image with its attention, relative to the card; None to show no image.
    """

    name: str
    caption: str
    path: str | None = None


def render_card(
    checkpoint: str | Path,
    repo_id: str,
    *,
    license: str | None = None,  # noqa: A002, the Hub's name
    language: str = "en",
    title: str | None = None,
    datasets: Sequence[str] = (),
    terms: str = "",
    examples: Sequence[Example] = (),
    blanks: Sequence[Example] = (),
) -> ModelCard:
    """Render a checkpoint's card.

    Args:
        checkpoint: Its folder.
        repo_id: `user/name` on the Hub, or the folder that the card's example code loads.
        license: As the Hub knows it, e.g. "apache-2.0"; by default that of config.json, else "other".
        language: Of the captions, an ISO 639-1 code.
        title: The card's heading; by default the repository's name.
        datasets: Hub ids of datasets that were loaded from folders of the same name.
        terms: Sources and licenses of data and encoder, in Markdown.
        examples: Images that show what it is good and bad at.
        blanks: Images with no content.

    Raises:
        ValueError: The checkpoint's records are damaged, or its weights have another license.
    """
    try:
        return _render(
            Path(checkpoint),
            repo_id,
            license=license_of(checkpoint, license),
            language=language,
            title=title or repo_id.split("/")[-1],
            datasets=datasets,
            terms=terms,
            examples=examples,
            blanks=blanks,
        )
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"config.json, training.json or scores.json of {checkpoint} is damaged "
            f"({type(error).__name__}: {str(error)[:200]})."
        ) from error


def num_words(settings: Mapping[str, Any]) -> int:
    """Size of the vocabulary in config.json, without the tokens for start, padding, end and unknown words."""
    return int(settings["vocab_size"]) - NUM_SPECIAL_TOKENS


def license_of(checkpoint: str | Path, wanted: str | None = None) -> str:
    """The license of a checkpoint's weights: `license` in its config.json, which training and saving preserve.

    Raises:
        ValueError: `wanted` is another one.
    """
    recorded = json.loads((Path(checkpoint) / CONFIG).read_text()).get("license")
    if recorded is None:
        return wanted or "other"
    if wanted not in (None, recorded):
        raise ValueError(
            f"the weights of {checkpoint} are under the license {recorded}, not {wanted}: only their owner may change "
            'that, as "license" in config.json.'
        )
    return str(recorded)


def stages_of(checkpoint: Path) -> list[dict[str, Any]]:
    """The training stages recorded in a checkpoint's folder; empty without a record."""
    record = checkpoint / TRAINING_RECORD
    return json.loads(record.read_text())["stages"] if record.is_file() else []


def _render(
    checkpoint: Path,
    repo_id: str,
    *,
    license: str,  # noqa: A002
    language: str,
    title: str,
    datasets: Sequence[str],
    terms: str,
    examples: Sequence[Example],
    blanks: Sequence[Example],
) -> ModelCard:
    settings = json.loads((checkpoint / CONFIG).read_text())
    stages = stages_of(checkpoint)
    scores = read_scores(checkpoint)
    best = _best_of_each(scores)
    encoder = public_name(settings["encoder_config"].get("_name_or_path") or settings["encoder_config"]["model_type"])
    metadata = _metadata(
        stages, best, encoder=encoder, datasets=datasets, title=title, license=license, language=language
    )
    parts = count_parameters(checkpoint / WEIGHTS)
    text = render_markdown(
        TEMPLATE,
        card_data=Markdown(metadata.to_yaml()),
        repo_id=repo_id,
        title=title,
        settings=settings,
        encoder=encoder,
        code=CODE,
        parts=parts,
        parameters=sum(parts.values()),
        megabytes=(checkpoint / WEIGHTS).stat().st_size / 1e6,
        stages=[_describe(stage) for stage in stages],
        teachers=_teachers(stages),
        scores=scores,
        best_scores=best,
        other_scores=[each for each in scores if each not in best],
        columns=HUB_SCORES,
        few_images_note=few_images_note,
        terms=Markdown(terms.strip()),
        examples=examples,
        blanks=blanks,
        num_words=num_words(settings),
    )
    return ModelCard(text)


def _metadata(
    stages: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    *,
    encoder: str,
    datasets: Sequence[str],
    title: str,
    license: str,  # noqa: A002
    language: str,
) -> ModelCardData:
    """The card's metadata: the Hub's search and the `model-index` read it; `scores` are one per dataset."""
    hub_ids = {name.split("/")[-1]: name for name in datasets}
    sources = [name for stage in stages for name in source_names(stage["options"]["data.source"])]
    learned_from = list(dict.fromkeys(hub_ids.get(source, source) for source in sources))
    results = [
        result
        for each in scores
        for result in eval_results(
            each["values"],
            dataset=hub_ids.get(each["data"], each["data"]),
            split=each["split"],
            signature=each["signature"],
        )
    ]
    return ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["image-captioning", "image-to-text", "gru", "attention", "custom_code"],
        datasets=[name for name in learned_from if name.count("/") == 1] or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        base_model=encoder if encoder.count("/") == 1 else None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _teachers(stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """The captioners that wrote captions to learn from, each once."""
    each = [teacher for stage in stages for teacher in stage.get("teachers", ())]
    return [teacher for number, teacher in enumerate(each) if teacher not in each[:number]]


def _best_of_each(scores: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first scores of each dataset and split."""
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for each in scores:
        first.setdefault((each["data"], each["split"]), each)
    return list(first.values())


def count_parameters(weights: str | Path) -> dict[str, int]:
    """Number of parameters of each part of the model, read from the weights' header."""
    with safe_open(weights, framework="numpy") as file:
        names = list(file.keys())
        parts = PARTS | ({"decoder.embed_tokens.": "word embeddings"} if "lm_head.weight" in names else {})  # not tied
        counts: dict[str, int] = dict.fromkeys(parts.values(), 0)
        for name in names:
            if "running_" not in name and "num_batches" not in name:  # BatchNorm's statistics are not parameters
                part = next(title for prefix, title in parts.items() if name.startswith(prefix))
                counts[part] += math.prod(file.get_slice(name).get_shape())
    return counts


def _describe(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A training stage with its description."""
    options = stage["options"]
    if options["objective"] == "self_critical":
        what = f"self-critical training, {options['self_critical.samples']} samples per image at temperature "
        what += f"{options['self_critical.temperature']:g}"
        if options["self_critical.cross_entropy_weight"]:
            what += f", {100 * options['self_critical.cross_entropy_weight']:.0f} % cross-entropy"
    else:
        what = f"cross-entropy, label smoothing {options['optimization.label_smoothing']:g}"
    if options["optimization.encoder_learning_rate"] is None:
        what += "; encoder frozen"
    else:
        first = options["optimization.encoder_first_layer"]
        what += f"; encoder fine-tuned{f' from {first} on' if first else ''}"
    return {**stage, "what": what}
