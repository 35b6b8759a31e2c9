"""Limits on the size and duration of request bodies, enforced before anything is kept in memory.

Gradio limits the size of each uploaded file, but not their number; it would read JSON bodies of any size, and wait
forever for a client that stops sending.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from starlette.formparsers import MultiPartException

from ..untrusted_images import RefusedError
from .uploads import Uploads, visitor_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

UPLOADS = "/upload"  # Gradio's route for files, which have separate limits
PART_HEADER = b"content-disposition"  # of each part of an upload, case-insensitive
BODY_SECONDS = 30.0  # timeout for a body, plus one second per MIN_RATE bytes
MIN_RATE = 20_000  # bytes per second
LINGER_SECONDS = 10.0  # limits up to which the rest of a rejected body is read and discarded
LINGER_BYTES = 50_000_000
TOO_LARGE = "This request is too large."


class BodyLimit:
    """ASGI middleware: rejects bodies that are too large with status 413, and those that are too slow with 408.

    Args:
        app: The protected app.
        limit: Maximum bytes per request, except for file uploads.
        uploads: Counts uploads by visitor.
        seconds: Timeout for a body, in addition to the time for its size.
    """

    def __init__(self, app: App, limit: int, uploads: Uploads | None = None, seconds: float = BODY_SECONDS):
        self.app = app
        self.limit = limit
        self.uploads = uploads
        self.seconds = seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive, send)
        try:
            body.begin()
            await self.app(scope, body.receive, body.send)
        except _RefusedBodyError as error:
            body.refusal = error
        finally:
            body.end()
        if body.refusal is not None and not body.response_started:
            await refuse(send, body.refusal.status, body.refusal.message, body.drain)


class _Body:
    """The incoming body of one request, and the outgoing response."""

    def __init__(self, limits: BodyLimit, scope: Message, receive: Receive, send: Send):
        self.limits = limits
        self.scope = scope
        self.refusal: _RefusedBodyError | None = None
        self.response_started = False  # whether the response has started
        self._receive, self._send = receive, send
        self._started = time.monotonic()
        self._num_bytes = 0
        self._is_complete = False
        self._uploads = limits.uploads if scope["path"].endswith(UPLOADS) else None
        self._visitor = visitor_of(scope) if self._uploads else ""
        self._request: Any = None
        self._tail = b""  # last bytes so far: a header may be split between two messages

    def begin(self) -> None:
        lengths = [value for name, value in self.scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 for value in lengths):
            raise _RefusedBodyError(413, TOO_LARGE)
        if not self.scope["path"].endswith(UPLOADS) and any(int(value) > self.limits.limit for value in lengths):
            raise _RefusedBodyError(413, TOO_LARGE)
        if self._uploads:
            try:
                self._request = self._uploads.begin(self._visitor)
            except RefusedError as error:
                raise _RefusedBodyError(413, str(error)) from None

    async def receive(self) -> Message:
        if self._is_complete:  # from now on only the client's disconnection is awaited
            return await self._receive()
        left = self._started + self.limits.seconds + self._num_bytes / MIN_RATE - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            self._refuse(408, "This request is too slow.")
        content = message.get("body", b"")
        self._num_bytes += len(content)
        self._is_complete = not message.get("more_body")
        if not self.scope["path"].endswith(UPLOADS) and self._num_bytes > self.limits.limit:
            self._refuse(413, TOO_LARGE)
        if self._uploads:
            try:
                self._uploads.count(self._visitor, self._request, len(content), self._count_parts(content))
            except RefusedError as error:
                self._refuse(413, str(error))
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is not None and not self.response_started:  # the app's own response to our rejection is dropped
            return
        self.response_started = True
        await self._send(message)

    async def drain(self) -> None:
        """Discards the rest: a client whose connection is closed while it sends never reads the reason."""
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(min(LINGER_SECONDS, self.limits.seconds)):
                while not self._is_complete and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._is_complete = not message.get("more_body")

    def end(self) -> None:
        if self._request is not None:
            self._request.is_complete = True

    def _count_parts(self, content: bytes) -> int:
        joined = self._tail + content.lower()
        self._tail = joined[1 - len(PART_HEADER) :]
        return joined.count(PART_HEADER)

    def _refuse(self, status: int, text: str) -> None:
        self.refusal = _RefusedBodyError(status, text)
        raise self.refusal


class _RefusedBodyError(MultiPartException):
    """A body is rejected while it arrives; after exceptions of other types Gradio leaves partial uploads behind."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


async def refuse(send: Send, status: int, text: str, drain: Callable[[], Awaitable[None]] | None = None) -> None:
    """Sends an error message and closes the connection."""
    content = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": drain is not None})
    if drain is not None:
        await drain()
        await send({"type": "http.response.body", "body": b""})
