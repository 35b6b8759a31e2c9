"""The model card: written from what lies beside the weights, so that nothing in it is said by heart.

    config.json, model.safetensors      what the model is
    training.json                       how it was trained
    scores.json                         how it scores, and on which words it is right or wrong

What can only be had by running the model, its captions of example photos and of pictures that show nothing, is handed
in. The text stands in card_template.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from .markdown import Markdown, render_markdown
from .names import CODE, public_name
from .scores import METRICS, WEIGHTS, eval_results, read_scores

TEMPLATE = Path(__file__).with_name("card_template.md")

# Prefix of the weights' names -> part of the model, as the card's table has them; the first that fits counts.
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
    """A picture and what the model says of it.

    Attributes:
        name: File name of the photo, or what the picture shows.
        caption: What the model says.
        picture: Where the picture with its attention lies, seen from the card; None to show none.
    """

    name: str
    caption: str
    picture: str | None = None


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
    """Writes a checkpoint's card.

    Args:
        checkpoint: Its folder.
        repo_id: `user/name` on the Hub, or the folder by which the card's lines of use load it.
        license: As the Hub knows it, e.g. "apache-2.0"; the one that config.json brings when not given, else "other".
        language: Of the captions, an ISO 639-1 code.
        title: The card's first line; the repository's name when not given.
        datasets: Hub ids of data sets that were loaded from folders of the same name.
        terms: Where data and encoder come from and on what terms, in Markdown.
        examples: Photos that show what it is good and bad at.
        blanks: Pictures that show nothing.

    Raises:
        ValueError: The checkpoint's records are damaged, or its weights are under another licence.
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


def license_of(checkpoint: str | Path, wanted: str | None = None) -> str:
    """The licence of a checkpoint's weights: `license` in its config.json, which training and saving take along.

    Raises:
        ValueError: Another one is wanted.
    """
    recorded = json.loads((Path(checkpoint) / "config.json").read_text()).get("license")
    if recorded is None:
        return wanted or "other"
    if wanted not in (None, recorded):
        raise ValueError(
            f"the weights of {checkpoint} are under the licence {recorded}, not {wanted}: only who owns them may "
            'change that, as "license" in config.json.'
        )
    return str(recorded)


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
    settings = json.loads((checkpoint / "config.json").read_text())
    record = checkpoint / "training.json"
    stages = json.loads(record.read_text())["stages"] if record.is_file() else []
    scores = read_scores(checkpoint)
    encoder = public_name(settings["encoder_config"].get("_name_or_path") or settings["encoder_config"]["model_type"])
    hub_ids = {name.split("/")[-1]: name for name in datasets}
    sources = [public_name(stage["options"]["data.source"]) for stage in stages]
    learned_from = list(dict.fromkeys(hub_ids.get(source, source) for source in sources))
    best: Mapping[str, Any] = scores[0] if scores else {"figures": {}, "data": "", "split": "", "signature": ""}
    results = eval_results(
        best["figures"],
        dataset=hub_ids.get(best["data"], best["data"]),
        split=best["split"],
        signature=best["signature"],
    )
    metadata = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag="image-to-text",
        tags=["image-captioning", "image-to-text", "gru", "attention", "custom_code"],
        datasets=[name for name in learned_from if name.count("/") == 1] or None,
        metrics=list(dict.fromkeys(METRICS[figure][0] for figure in METRICS if figure in best["figures"])) or None,
        base_model=encoder if encoder.count("/") == 1 else None,
        model_name=title if results else None,
        eval_results=results or None,
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
        scores=scores,
        titles={figure: title for figure, (_, title) in METRICS.items()},
        terms=Markdown(terms.strip()),
        examples=examples,
        blanks=blanks,
        num_special_tokens=4,
    )
    return ModelCard(text)


def count_parameters(weights: str | Path) -> dict[str, int]:
    """Parameters of each part of the model, read from the weights' header."""
    counts: dict[str, int] = dict.fromkeys(PARTS.values(), 0)
    with safe_open(weights, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            if "running_" not in name and "num_batches" not in name:  # BatchNorm's statistics are no parameters
                part = next(title for prefix, title in PARTS.items() if name.startswith(prefix))
                counts[part] += math.prod(file.get_slice(name).get_shape())
    return counts


def _describe(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage in words."""
    options = stage["options"]
    if options["objective"] == "self_critical":
        what = f"self-critical training, {options['self_critical.samples']} samples a photo at temperature "
        what += f"{options['self_critical.temperature']:g}"
        if options["self_critical.cross_entropy_weight"]:
            what += f", {100 * options['self_critical.cross_entropy_weight']:.0f} % cross-entropy"
    else:
        what = f"cross-entropy, label smoothing {options['optimization.label_smoothing']:g}"
    if options["optimization.encoder_learning_rate"] is None:
        what += "; the encoder frozen"
    else:
        first = options["optimization.encoder_first_layer"]
        what += f"; the encoder learns too{f', from {first} on' if first else ''}"
    return {**stage, "what": what}
