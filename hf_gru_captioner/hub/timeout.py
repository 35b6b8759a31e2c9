"""A timeout for requests to the Hub; huggingface_hub has none for most."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import get_session

READ_TIMEOUT = 60.0  # seconds without a byte sent or received


@contextmanager
def default_timeout() -> Iterator[None]:
    """Sets a timeout for requests that have none.

    It is set per request, since some explicitly disable the timeout; an existing timeout is kept.
    """

    def limit(request: Any) -> None:
        limits = request.extensions["timeout"].items()
        request.extensions["timeout"] = {name: READ_TIMEOUT if each is None else each for name, each in limits}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)
