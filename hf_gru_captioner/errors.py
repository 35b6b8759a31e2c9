"""Errors for the person at the keyboard: one line that says what was found and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

MAX_REASON = 300  # characters of what a library says of a damaged file


class UsageError(ValueError):
    """Something that the caller can put right; its text says how."""


class MissingExtraError(UsageError, ImportError):
    """A package that is not installed; its text says which extra of this package brings it."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of optional dependencies: says how to install what is missing.

    Raises:
        MissingExtraError: A module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f'{error.name} is not installed: pip install "hf_gru_captioner[{extra}]"') from error


def one_line(error: BaseException) -> str:
    """Its text in one line, without the characters of a file's name that would steer a terminal."""
    text = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def brief(error: BaseException) -> str:
    """The same, short enough to stand in brackets in a message of ours."""
    return one_line(error)[:MAX_REASON]


def reason_of(error: BaseException) -> str:
    """Kind and brief text of an error of another library, which may be of any kind."""
    return f"{type(error).__name__}: {brief(error)}"
