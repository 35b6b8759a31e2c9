"""The command `gru-captioner`. Each command parses its arguments, calls the package and prints.

Heavy imports are inside the commands, so that `--help` is fast.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import borrow, caption, card, demo, export, features, label, push, score, train
from .examples import add_examples
from .shell import BAD_INPUT, guarded

# Their options are the fields of `TrainingConfig`, parsed by `training_options` instead of argparse.
CONFIGURED = {"features": features.run, "train": train.run}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch then allocates huge pages: up to twice as fast
    if argv and argv[0] in CONFIGURED:
        return guarded(CONFIGURED[argv[0]], argv[1:])
    parser, commands = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        print(f"gru-captioner: {_unknown(argv[0], commands)}", file=sys.stderr)
        return BAD_INPUT
    arguments = parser.parse_args(argv)
    return guarded(arguments.run, arguments)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of all commands."""
    parser = argparse.ArgumentParser(
        prog="gru-captioner",
        description="Captions images on a plain CPU.",
        epilog="gru-captioner COMMAND --help lists the options of a command and ends with examples.",
    )
    parser.add_argument("--version", action="version", version=f"gru-captioner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (caption, score, card, push, demo, export, borrow, label):
        module.add_command(commands)
    for name, command in commands.choices.items():
        add_examples(command, name)
    commands.add_parser("features", help="encode the images of a training run ahead of it", add_help=False)
    commands.add_parser("train", help="train a captioner", add_help=False)
    return parser, list(commands.choices)


def _unknown(name: str, commands: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, commands, 1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the commands are {', '.join(commands)}."
    return f"unknown command {name[:60]!r}: {hint}"


def entry_point() -> None:
    """The console script."""
    sys.exit(main())
