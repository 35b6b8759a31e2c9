"""A limit to how long the Hub is waited for; huggingface_hub waits for most of its answers without end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import get_session

MAX_SILENCE = 60.0  # seconds that the Hub may take no byte and send none


@contextmanager
def not_for_ever() -> Iterator[None]:
    """Gives up on a Hub that falls silent.

    Request by request, since some of them bring "no limit" along; a limit that is there is kept.
    """

    def limit(request: Any) -> None:
        limits = request.extensions["timeout"].items()
        request.extensions["timeout"] = {name: MAX_SILENCE if each is None else each for name, each in limits}

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)
