"""`gru-captioner card`: writes a checkpoint's model card, with captions of example images and blank ones."""

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, counted
from ..files import distinct_names, write_atomically

BLANK_SIDE = 224  # pixels
EXAMPLE_SIDE = 1000  # pixels, longer side


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments shared by `card` and `push`."""
    parser.add_argument(
        "--license", help="license of the weights, as a Hub id; by default that in config.json, else other"
    )
    parser.add_argument("--language", default="en", help="language of the captions, ISO 639-1 (%(default)s)")
    parser.add_argument("--title", help="title of the card; by default the repository's name")
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="USER/NAME",
        help="Hub ids of datasets that were loaded from folders of the same name",
    )
    parser.add_argument("--terms", type=Path, metavar="FILE", help="Markdown on the terms of the data and the encoder")
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="examples to caption and show in the card; you must have the right to share them",
    )


def add_command(commands) -> None:
    parser = commands.add_parser(
        "card",
        help="write a checkpoint's model card",
        description="Writes a model card from the files beside the weights, training.json, scores.json (gru-captioner "
        "score --keep) and the configuration, and from the model's captions of example images.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("--repo-id", help="user/name on the Hub; by default the folder's relative path")
    parser.add_argument("--output", type=Path, help="file of the card; by default README.md in the folder")
    parser.add_argument("--image-folder", type=Path, help="folder of the example images; by default examples beside it")
    add_card_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    output = arguments.output or arguments.checkpoint / "README.md"
    folder = arguments.image_folder or output.parent / "examples"
    prefix = os.path.relpath(folder, output.parent)
    card, drawn = describe(arguments, arguments.repo_id or _relative_path(arguments.checkpoint), prefix)
    for path, content in [(output, card.encode()), *((output.parent / path, each) for path, each in drawn.items())]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    print(f"written: {output}" + (f", {counted(len(drawn), 'image')} in {folder}" if drawn else ""))
    return 0


def _relative_path(folder: Path) -> str:
    """A folder's path relative to the current one, if inside, else its name: cards are read on other machines."""
    try:
        return folder.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return folder.absolute().name


def describe(arguments: argparse.Namespace, repo_id: str, prefix: str) -> tuple[str, dict[str, bytes]]:
    """The card, and its images by their paths in the card.

    Args:
        arguments: The command's arguments: checkpoint, license, language, terms, images.
        repo_id: The model loaded by the card's example code.
        prefix: Folder of the images, relative to the card.
    """
    from ..captioner import Captioner
    from ..hub import Example, render_card

    for path in [*arguments.images, *filter(None, [arguments.terms])]:
        if not path.is_file():
            raise UsageError(f"{path}: no such file.")
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    names, images = zip(*_blanks(), strict=True)
    blanks = [Example(name, caption.text) for name, caption in zip(names, captioner(images), strict=True)]
    examples, drawn = [], {}
    stems = distinct_names(path.stem for path in arguments.images)
    captions = captioner([str(path) for path in arguments.images])
    for path, stem, caption in zip(arguments.images, stems, captions, strict=True):
        drawing = None
        if caption.attention is not None:
            drawing = f"{prefix}/{stem}.jpg"
            drawn[drawing] = _draw(path, caption)
        examples.append(Example(path.name, caption.text, drawing))
    card = render_card(
        arguments.checkpoint,
        repo_id,
        license=arguments.license,
        language=arguments.language,
        title=arguments.title,
        datasets=arguments.datasets,
        terms=arguments.terms.read_text() if arguments.terms else "",
        examples=examples,
        blanks=blanks,
    )
    return str(card), drawn


def _draw(path: Path, caption) -> bytes:
    """An image with the attention map of each word of its caption, as JPEG."""
    from ..model import load_image
    from ..visualization import draw_attention

    drawing = draw_attention(load_image(path), caption.words, caption.attention, max_columns=7)
    drawing.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _blanks() -> Sequence:
    """Images without content, with their names."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (BLANK_SIDE, BLANK_SIDE, 3), dtype=np.uint8)
    plain = [(color, Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), color)) for color in ("white", "black", "grey")]
    return [*plain, ("noise", Image.fromarray(noise))]
