"""A checkpoint's training data and license in a few sentences, from the files beside its weights."""

import json
from pathlib import Path

from ..files import CONFIG
from .card import license_of, stages_of
from .markdown import escape_markdown
from .names import source_names


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
        num_words = json.loads((folder / CONFIG).read_text())["vocab_size"]
        stages = stages_of(folder)
        sources = dict.fromkeys(each for stage in stages for each in source_names(stage["options"]["data.source"]))
        num_images = max((stage["images"] or 0 for stage in stages), default=0)
        learned = f"knows about {num_words:,} words"
        if sources:
            photos = f"{num_images:,} photos of " if num_images else ""
            learned += f", learned from {photos}{escape_markdown(', '.join(sources))}"
        terms = license_of(folder)
    except (AttributeError, KeyError, OSError, TypeError) as error:
        raise ValueError(
            f"config.json or training.json of {checkpoint} is damaged ({type(error).__name__})."
        ) from error
    limits = "It describes everyday photos like those, can be wrong, and identifies nobody."
    use = " (not for commercial use)" if "-nc" in terms else ""
    return (
        f"The model *{escape_markdown(name)}* {learned}. {limits} Terms of its weights: {escape_markdown(terms)}{use}."
    )
