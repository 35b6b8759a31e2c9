"""Shared by all commands: a usage error prints one line and exits with code 2."""

import argparse
import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint_limits import LIMITS
from ..errors import one_line
from ..inference.backend import AUTO, BACKENDS

BAD_INPUT = 2  # exit code
PACKAGE = Path(__file__).parents[1]  # its folder, also the logger's name
NO_ROOM = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC}


def guarded(command: Callable[[Any], int], arguments: Any) -> int:
    """Runs a command and returns its exit code. GRU_CAPTIONER_DEBUG=1 in the environment shows tracebacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack characters of a file name
    try:
        with warnings.catch_warnings(), _log_printed():
            _quiet_pillow()
            warnings.showwarning = _warnings_in_a_line(warnings.showwarning)
            return command(arguments)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, ArithmeticError) as error:
        if os.environ.get("GRU_CAPTIONER_DEBUG"):
            raise
        is_full = isinstance(error, OSError) and error.errno in NO_ROOM
        hint = ". Make room and run the same command again; no file was left half-written" if is_full else ""
        print(f"gru-captioner: {one_line(error)}{hint}", file=sys.stderr)
        return BAD_INPUT
    except MemoryError as error:
        if os.environ.get("GRU_CAPTIONER_DEBUG"):
            raise
        details = f" ({one_line(error)})" if str(error) else ""
        print(f"gru-captioner: there is not enough memory{details}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130


def _warnings_in_a_line(shown_else: Callable[..., None]) -> Callable[..., None]:
    """Shows this package's warnings as one line each, once, without the code location; others as before."""
    shown: set[str] = set()

    def show(message: Any, category: Any, filename: str, *place: Any, **settings: Any) -> None:
        if not Path(filename).is_relative_to(PACKAGE):
            shown_else(message, category, filename, *place, **settings)
        elif (text := one_line(message)) not in shown:
            shown.add(text)
            print(f"warning: {text}", file=sys.stderr)

    return show


@contextmanager
def _log_printed() -> Iterator[None]:
    """Prints the package's log while a command runs: info to stdout, warnings to stderr."""
    logger = logging.getLogger(PACKAGE.name)
    level = logger.level
    information, problems = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    information.addFilter(lambda record: record.levelno < logging.WARNING)
    problems.setLevel(logging.WARNING)
    problems.setFormatter(logging.Formatter("warning: %(message)s"))
    handlers = (information, problems)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=(AUTO, *BACKENDS),
        default=AUTO,
        help="what runs the model; auto is onnxruntime if the checkpoint has graphs, else torch (%(default)s)",
    )
    parser.add_argument("--graphs", help="folder of graphs from gru-captioner export (onnx in the checkpoint)")
    parser.add_argument("--verbose", action="store_true", help="print to stderr what runs the model")


def say_what_runs(captioner: Any, num_captions: int = 1, **generation: Any) -> None:
    """What `--verbose` prints."""
    reason = f" ({captioner.not_graphs})" if captioner.not_graphs else ""
    print(f"backend: {captioner.backend_for(num_captions, **generation)}{reason}", file=sys.stderr)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole_number(text, None)


def beams(text: str) -> int:
    """A number of beams; many more than needed would exhaust memory."""
    return _whole_number(text, LIMITS["num_beams"])


def _whole_number(text: str, limit: int | None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1 or (limit is not None and number > limit):
        allowed = "of at least 1" if limit is None else f"from 1 to {limit:,}"
        raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, found {text!r:.50}")
    return number


def _quiet_pillow() -> None:
    """Hides Pillow's warnings about images that it can read anyway; unreadable ones are reported."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def quiet_transformers() -> None:
    """Hides progress bars for loading and saving weights, and Accelerate's warning about tied weights."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
