"""`gru-captioner push`: publishes a checkpoint with code, scores and card on the Hub in one commit, or as a Space."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import counted
from .card import add_card_arguments, describe
from .export import ensure_graphs

USAGE_LINE = re.compile(r'(captioner = pipeline\(model=)"[^"\n]*"')


def add_command(commands) -> None:
    parser = commands.add_parser(
        "push",
        help="publish a checkpoint on the Hub",
        description="Publishes weights (safetensors only), settings, code, scores and card in one commit.",
        epilog="A README.md in the checkpoint's folder is published as its card; without one, a card is written as "
        "with gru-captioner card.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub")
    parser.add_argument("--space", action="store_true", help="publish the demo with this checkpoint, as a Gradio Space")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch; created if it doesn't exist")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", default="Upload a GRU captioner", help="commit message (%(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the files with their sizes, show the card, upload nothing"
    )
    add_card_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..hub import check_name, files_of_checkpoint, files_of_space, push

    check_name(arguments.repo_id)
    if not arguments.dry_run and arguments.checkpoint.is_dir():
        ensure_graphs(arguments.checkpoint)
    files: dict[str, Path | bytes] = dict(files_of_checkpoint(arguments.checkpoint))
    card = _card(arguments)
    files = files_of_space(arguments.checkpoint, card) if arguments.space else {**files, **card}
    if arguments.dry_run:
        _show(files)
        return 0
    pushed = push(
        files,
        arguments.repo_id,
        kind="space" if arguments.space else "model",
        message=arguments.message,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
    )
    print(pushed.url)
    return 0


def _card(arguments: argparse.Namespace) -> Mapping[str, Path | bytes]:
    """The card in the folder, else a new one; and its images."""
    from ..hub import EXAMPLE_IMAGES, card_of_checkpoint, license_of

    license_of(arguments.checkpoint, arguments.license)
    if (card := card_of_checkpoint(arguments.checkpoint)) is not None:
        # The card's example may load the folder; readers load the repository.
        name = "checkpoint" if arguments.space else arguments.repo_id
        text = USAGE_LINE.sub(f'\\1"{name}"', card["README.md"].read_text("utf-8"))
        return card | {"README.md": text.encode()}
    if arguments.space:  # the Space loads the folder beside its app
        arguments.title = arguments.title or arguments.repo_id.split("/")[-1]
    text, drawn = describe(arguments, "checkpoint" if arguments.space else arguments.repo_id, EXAMPLE_IMAGES)
    return {"README.md": text.encode(), **drawn}


def _show(files: Mapping[str, Path | bytes]) -> None:
    sizes = {path: len(each) if isinstance(each, bytes) else each.stat().st_size for path, each in files.items()}
    for path, size in sizes.items():
        print(f"{size:>12,}  {path}")
    print(f"{sum(sizes.values()):>12,}  bytes in {counted(len(files), 'file')}; nothing was sent. The card:\n")
    card = files["README.md"]
    print(card.decode() if isinstance(card, bytes) else card.read_text())
