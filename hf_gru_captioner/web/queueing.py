"""A queue of Gradio's that outlives clients who hang up, and forgets those who have their answers."""

from collections import defaultdict
from collections.abc import MutableMapping
from typing import Any

import gradio as gr
from fastapi import HTTPException
from gradio.queueing import AsyncQueue
from gradio.utils import LRUCache

from .body_limit import App, Message, Receive, Send


class SessionMessages(LRUCache):
    """Messages that wait for each session, by its hash. What is sent to a session that has gone is dropped.

    Gradio 6.31 forgets a session when its client hangs up, and only then marks its requests as dead. A message to one
    of them in between raised KeyError in the task that hands out all work: no request was served from then on.

    It forgets no session else before there are too many, and then the oldest, even while it is answered: each call of a
    program is a session, and after 2000 of them the earlier ones were told that their session does not exist.

    Args:
        max_size: Sessions; of more, those are forgotten of which nothing was heard for longest.
        unread: Of each session, the requests whose answers it has not read; those of a forgotten one are deleted.
    """

    def __init__(self, max_size: int, unread: MutableMapping[str, set[str]]):
        super().__init__(max_size)
        self.unread = unread

    def __getitem__(self, session_hash: str) -> AsyncQueue:
        if session_hash in self:
            self.move_to_end(session_hash)
        return super().__getitem__(session_hash)

    def __missing__(self, session_hash: str) -> AsyncQueue:
        return AsyncQueue()

    def __setitem__(self, session_hash: str, messages: AsyncQueue) -> None:
        super().__setitem__(session_hash, messages)  # which may make room
        for each in {*self, *self.unread} - {session_hash}:
            if each not in self or not self.unread.get(each):
                del self[each]

    def __delitem__(self, session_hash: str) -> None:
        self.unread.pop(session_hash, None)
        if session_hash in self:  # forgotten twice: by the number of sessions, and when its client hangs up
            super().__delitem__(session_hash)


class NoSuchSession:
    """ASGI middleware: ends the answer to a client that asks for a session that is not there.

    Gradio has already said so in the response, and then raises an error that can no longer become one: 90 lines of log.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except RuntimeError as error:  # of Starlette: a refusal after the answer had begun
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b""})


def outlive_clients(page: gr.Blocks) -> None:
    """Makes the queue of a page that is not launched yet one that outlives its clients."""
    queue: Any = page._queue
    max_size = queue.pending_messages_per_session.max_size
    queue.pending_event_ids_session = defaultdict(set)  # a stream looks once more for a session that was forgotten
    queue.pending_messages_per_session = SessionMessages(max_size, queue.pending_event_ids_session)
