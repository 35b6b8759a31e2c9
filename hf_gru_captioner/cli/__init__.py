"""The command `gru-captioner`, and the one room that wires the others together.

Heavy imports stand inside the commands, so that `--help` is quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from . import caption, card, demo, export, features, push, score, train
from .shell import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then takes memory in huge pages: up to half the time
    configured = {
        "features": features.run,
        "train": train.run,
    }  # their parser is made from dataclasses
    if argv and argv[0] in configured:
        return guarded(configured[argv[0]], argv[1:])
    parser = argparse.ArgumentParser(prog="gru-captioner", description="Captions photos on a plain CPU.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    caption.add_command(commands)
    score.add_command(commands)
    card.add_command(commands)
    push.add_command(commands)
    demo.add_command(commands)
    export.add_command(commands)
    commands.add_parser("features", help="encode the photos of a training run ahead of it", add_help=False)
    commands.add_parser("train", help="train a captioner: gru-captioner train --config FILE", add_help=False)
    arguments = parser.parse_args(argv)
    return guarded(arguments.run, arguments)


def entry_point() -> None:
    """The console script."""
    sys.exit(main())
