"""`gru-captioner card`: a checkpoint's model card, with what it says of photos and of nothing at all."""

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import write_atomically
from .shell import quiet_transformers

BLANK_SIDE = 224  # pixels


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """What `card` and `push` share."""
    parser.add_argument(
        "--license", help="of the weights, as the Hub knows it; that of config.json when not given, else other"
    )
    parser.add_argument("--language", default="en", help="of the captions, ISO 639-1 (%(default)s)")
    parser.add_argument("--title", help="of the card; the repository's name when not given")
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="USER/NAME",
        help="Hub ids of data sets that were loaded from folders of the same name",
    )
    parser.add_argument("--terms", type=Path, metavar="FILE", help="Markdown on the terms of the data and the encoder")
    parser.add_argument(
        "--photos",
        nargs="+",
        type=Path,
        default=[],
        metavar="PHOTO",
        help="examples to caption and show; yours to share",
    )


def add_command(commands) -> None:
    parser = commands.add_parser(
        "card",
        help="write a checkpoint's model card",
        description="Writes a model card from what lies beside the weights: training.json, scores.json (gru-captioner "
        "score --keep), the configuration; and from what the model says of example photos.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("--repo-id", help="user/name on the Hub; the folder, as seen from here, when not given")
    parser.add_argument("--output", type=Path, help="file of the card; README.md in the folder when not given")
    parser.add_argument("--pictures", type=Path, help="folder of the example pictures; examples beside the card")
    add_card_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    output = arguments.output or arguments.checkpoint / "README.md"
    pictures = arguments.pictures or output.parent / "examples"
    prefix = os.path.relpath(pictures, output.parent)
    card, drawn = describe(arguments, arguments.repo_id or _seen_from_here(arguments.checkpoint), prefix)
    for path, content in [(output, card.encode()), *((output.parent / path, each) for path, each in drawn.items())]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    print(f"written: {output}" + (f", {len(drawn)} pictures in {pictures}" if drawn else ""))
    return 0


def _seen_from_here(folder: Path) -> str:
    """The path of a folder inside of the current one, else its name: a card is for others, on other machines."""
    try:
        return folder.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return folder.absolute().name


def describe(arguments: argparse.Namespace, repo_id: str, prefix: str) -> tuple[str, dict[str, bytes]]:
    """The card, and its pictures by the path at which the card shows them.

    Args:
        arguments: The command's: checkpoint, license, language, terms, photos.
        repo_id: What the lines of use load.
        prefix: Folder of the pictures, seen from the card.
    """
    quiet_transformers()
    from ..captioner import Captioner
    from ..hub import Example, render_card
    from ..model import load_image
    from ..visualization import draw_attention

    for path in [*arguments.photos, *filter(None, [arguments.terms])]:
        if not path.is_file():
            raise UsageError(f"{path}: no such file.")
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    names, images = zip(*_blanks(), strict=True)
    blanks = [Example(name, caption.text) for name, caption in zip(names, captioner(images), strict=True)]
    examples, pictures = [], {}
    for path, caption in zip(arguments.photos, captioner([str(path) for path in arguments.photos]), strict=True):
        where = None
        if caption.attention is not None:
            where = f"{prefix}/{path.stem}.jpg"
            sheet = draw_attention(load_image(path), caption.words, caption.attention, max_columns=7)
            sheet.thumbnail((1000, 1000))
            buffer = io.BytesIO()
            sheet.save(buffer, "JPEG", quality=75)
            pictures[where] = buffer.getvalue()
        examples.append(Example(path.name, caption.text, where))
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
    return str(card), pictures


def _blanks() -> Sequence:
    """Pictures that show nothing, with their names."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (BLANK_SIDE, BLANK_SIDE, 3), dtype=np.uint8)
    plain = [(color, Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), color)) for color in ("white", "black", "grey")]
    return [*plain, ("noise", Image.fromarray(noise))]
