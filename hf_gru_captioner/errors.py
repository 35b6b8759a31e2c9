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
    except MissingExtraError:  # from further inside, where it is known better which extra brings it
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", __package__):  # our own mistake
            raise
        raise MissingExtraError(f"{missing} is not installed: {install_command(extra)}") from error


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, from where that came: a clone, a wheel, a repository, or
    an index. Without a name, that which installs it whole again."""
    import shlex  # these only where something is missing: each caption's start would pay for them
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
    # another one may be first on the path, where a virtual environment is not active
    command = ["pip"] if shutil.which("pip") == str(pip) else [sys.executable, "-m", "pip"]
    return shlex.join([*command, "install", *wanted])


def _requirement(name: str, extras: str) -> str:
    """What pip installed a distribution from, with extras in brackets."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.request import url2pathname

    try:
        # https://packaging.python.org/en/latest/specifications/direct-url/; there is none for what an index served
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
