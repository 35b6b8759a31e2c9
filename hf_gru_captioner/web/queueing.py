"""Makes Gradio's queue survive clients that disconnect, and forget sessions that have received their responses."""

from collections import defaultdict
from collections.abc import MutableMapping
from typing import Any

import gradio as gr
from fastapi import HTTPException
from gradio.queueing import AsyncQueue
from gradio.utils import LRUCache

from .body_limit import App, Message, Receive, Send


class SessionMessages(LRUCache):
    """Pending messages of each session, by its hash. Messages to a session that is gone are dropped.

    Gradio 6.31 forgets a session when its client disconnects, and only then marks its requests as dead. A message to
    one of them in between raised KeyError in the task that dispatches all work: no request was served from then on.

    Otherwise it forgets sessions only when there are too many, oldest first, even while they are being served: each
    call by a program is a session, and after 2000 calls the earlier ones were told that their session does not exist.

    Args:
        max_size: Maximum number of sessions; beyond it, the least recently active ones are forgotten.
        unread: For each session, the requests whose responses it has not read; deleted with the session.
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
        super().__setitem__(session_hash, messages)  # may evict the oldest session
        for each in {*self, *self.unread} - {session_hash}:
            if each not in self or not self.unread.get(each):
                del self[each]

    def __delitem__(self, session_hash: str) -> None:
        self.unread.pop(session_hash, None)
        if session_hash in self:  # may be deleted twice: by the limit of sessions, and when its client disconnects
            super().__delitem__(session_hash)


class NoSuchSession:
    """ASGI middleware: ends the response to a client that requests a session that does not exist.

    Gradio says so in the response, then raises an error that can no longer be sent and fills 90 lines of the log.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except RuntimeError as error:  # from Starlette: an error after the response has started
            if not isinstance(error.__cause__, HTTPException):
                raise
            await send({"type": "http.response.body", "body": b""})


def outlive_clients(page: gr.Blocks) -> None:
    """Makes the queue of a page survive clients that disconnect; to be called before launch."""
    queue: Any = page._queue
    max_size = queue.pending_messages_per_session.max_size
    queue.pending_event_ids_session = defaultdict(set)  # a stream looks up its session once more after it was forgotten
    queue.pending_messages_per_session = SessionMessages(max_size, queue.pending_event_ids_session)
