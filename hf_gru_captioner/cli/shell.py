"""What the commands share of a command line's manners: a user's mistake ends in one line and exit code 2."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BAD_INPUT = 2  # exit code


class UsageError(Exception):
    """Something that the caller of the command can put right; its text says how."""


def guarded(command: Callable[[Any], int], arguments: Any) -> int:
    """Runs a command; its exit code. GRU_CAPTIONER_DEBUG=1 in the environment shows the traceback of a mistake."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal can't show
    try:
        return command(arguments)
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, OSError, ValueError) as error:
        if os.environ.get("GRU_CAPTIONER_DEBUG"):
            raise
        print(f"gru-captioner: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around the imports of a command: says how to install what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed: pip install "hf_gru_captioner[{extra}]"') from error


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "openvino"),
        default="torch",
        help="what the model runs on; all but torch need the graphs of gru-captioner export (%(default)s)",
    )
    parser.add_argument("--graphs", help="folder of the graphs; onnx in the checkpoint when not given")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {number}")
    return number


def quiet_transformers() -> None:
    """A command shows no bars of the weights it loads or saves, nor warns of weights stored once for two uses."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
