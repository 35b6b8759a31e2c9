"""A checkpoint's training data and license in a few sentences, from the files beside its weights."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..files import CONFIG
from .card import license_of, num_words, stages_of
from .markdown import escape_markdown
from .names import source_names

PUBLIC_DATASETS = {"flickr8k": "Flickr8k"}  # by the name of a folder with a copy; others are named by their Hub ids


def about_checkpoint(checkpoint: str | Path, name: str) -> str:
    """A checkpoint's training data and license in Markdown, for readers of its captions.

    Args:
        checkpoint: Its folder.
        name: Its displayed name.

    Raises:
        ValueError: The checkpoint's records are damaged.
    """
    folder = Path(checkpoint)
    try:
        size = num_words(json.loads((folder / CONFIG).read_text()))
        stages = stages_of(folder)
        sources = dict.fromkeys(each for stage in stages for each in source_names(stage["options"]["data.source"]))
        num_images = max((stage["images"] or 0 for stage in stages), default=0)
        learned = f"knows {size:,} words" + _learned_from(sources, num_images)
        terms = license_of(folder)
    except (AttributeError, KeyError, OSError, TypeError) as error:
        raise ValueError(
            f"config.json or training.json of {checkpoint} is damaged ({type(error).__name__})."
        ) from error
    limits = "It is meant for photos like these, can be wrong, and does not identify people."
    use = f"{escape_markdown(terms)}{' (not for commercial use)' if '-nc' in terms else ''}"
    return f"The model *{escape_markdown(name)}* {learned}. {limits} License of its weights: {use}."


def _learned_from(sources: Iterable[str], num_images: int) -> str:
    """What it learned from; only sources that readers can know are named, not one's own folders."""
    public = [PUBLIC_DATASETS.get(source, source if "/" in source else "") for source in sources]
    named = escape_markdown(", ".join(filter(None, dict.fromkeys(public))))
    photos = f"{num_images:,} photos" if num_images else "photos"
    if not public:
        return ""
    if not named:
        return f", learned from {photos}"
    return f", learned from {photos}{' of' if all(public) else ', including those of'} {named}"
