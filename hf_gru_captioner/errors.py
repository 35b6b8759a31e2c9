"""User-facing errors: one line that says what is wrong and what to do. And the phrases that such lines share."""

import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager

MAX_REASON = 300  # characters of a library's message about a damaged file


class UsageError(ValueError):
    """Something that the caller can fix; the message says how."""


class MissingExtraError(UsageError, ImportError):
    """A package is not installed; the message says which extra installs it."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Wraps imports of optional dependencies: says how to install what is missing.

    Raises:
        MissingExtraError: A module is not installed.
    """
    try:
        yield
    except MissingExtraError:  # from a nested call, which knows better which extra is needed
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", __package__):  # a bug of ours
            raise
        raise MissingExtraError(f"{missing} is not installed: {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, from its original source: a clone, a wheel, a repository or
    an index. Without a name, the command that reinstalls the package."""
    import shlex  # deferred: only needed if something is missing, and slows down the start
    import shutil
    import sys
    from pathlib import Path

    package = Path(__file__).parent
    extras = f"[{extra}]" if extra else ""
    if (package.parent / "pyproject.toml").is_file():
        wanted = ["-e", f"{package.parent}{extras}"]
    else:
        wanted = [_requirement(package.name, extras)]
    pip = Path(sys.executable).with_name("pip")
    # without an active virtual environment, another pip may be first on the PATH
    command = ["pip"] if shutil.which("pip") == str(pip) else [sys.executable, "-m", "pip"]
    return shlex.join([*command, "install", *wanted])


def _requirement(name: str, extras: str) -> str:
    """The requirement that pip installed a distribution from, with extras in brackets."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.request import url2pathname

    try:
        # https://packaging.python.org/en/latest/specifications/direct-url/; missing if installed from an index
        origin = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    if not origin:
        return f"{name}{extras}"
    address = origin["url"]
    if "vcs_info" in origin:
        return f"{name}{extras} @ {origin['vcs_info']['vcs']}+{address}"
    if address.startswith("file://"):
        return f"{url2pathname(address.removeprefix('file://'))}{extras}"
    return f"{name}{extras} @ {address}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 image`, `1,200 images`; `many` is the plural if an s doesn't make it."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Collection[str], most: int, separator: str = ", ") -> str:
    """The first `most` names, and the number of others: `a, b and 3 more`."""
    others = len(names) - most
    return separator.join(itertools.islice(names, most)) + (f" and {others:,} more" if others > 0 else "")


def one_line(error: BaseException) -> str:
    """An error's message in one line, with terminal control characters escaped."""
    text = " ".join(str(error).split())
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def brief(error: BaseException) -> str:
    """The same, shortened for use in parentheses in our own messages."""
    return one_line(error)[:MAX_REASON]


def reason_of(error: BaseException) -> str:
    """Type and brief message of another library's error."""
    return f"{type(error).__name__}: {brief(error)}"
