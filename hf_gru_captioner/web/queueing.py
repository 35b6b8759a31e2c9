"""A queue of Gradio's that outlives clients who hang up."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.queueing import AsyncQueue
from gradio.utils import LRUCache


class SessionMessages(LRUCache):
    """Messages that wait for each session, by its hash. What is sent to a session that has gone is dropped.

    Gradio 6.31 forgets a session when its client hangs up, and only then marks its requests as dead. A message to one
    of them in between raised KeyError in the task that hands out all work: nobody was served from then on.
    """

    def __missing__(self, session_hash: str) -> AsyncQueue:
        return AsyncQueue()

    def __delitem__(self, session_hash: str) -> None:
        if session_hash in self:  # forgotten twice: by the number of sessions, and when its client hangs up
            super().__delitem__(session_hash)


def outlive_clients(page: gr.Blocks) -> None:
    """Makes the queue of a page that is not launched yet one that outlives its clients."""
    pending: Mapping[str, Any] = page._queue.pending_messages_per_session
    page._queue.pending_messages_per_session = SessionMessages(pending.max_size)  # type: ignore[attr-defined]
