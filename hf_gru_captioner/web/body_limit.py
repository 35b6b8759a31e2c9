"""Limits on the size and the duration of request bodies, enforced before anything is kept in memory.

Gradio limits the size of each uploaded file, but not their number; it would read an image as text in JSON of any size,
and wait without a timeout for a client that stops sending.
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

UPLOADS = "/upload"  # Gradio's route for files, each with its own limit
PART_HEADER = b"content-disposition"  # of each part of an upload, case-insensitive
BODY_SECONDS = 30.0  # that a body may take, besides one second for each MIN_RATE bytes
MIN_RATE = 20_000  # bytes per second
LINGER_SECONDS = 10.0  # that the rest of a refused body is read and discarded, up to
LINGER_BYTES = 50_000_000
TOO_LARGE = "This request is too large."


class BodyLimit:
    """ASGI middleware: refuses bodies that are too large with status 413, those that are too slow with 408.

    Args:
        app: The protected app.
        limit: In bytes, of every request except uploads of files.
        uploads: Counts uploads by visitor.
        seconds: That a body may take, in addition to those for its bytes.
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
        if body.refusal is not None and not body.has_begun:
            await refuse(send, body.refusal.status, body.refusal.message, body.drain)


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, limits: BodyLimit, scope: Message, receive: Receive, send: Send):
        self.limits = limits
        self.scope = scope
        self.refusal: _RefusedBodyError | None = None
        self.has_begun = False  # to answer
        self._receive, self._send = receive, send
        self._started = time.monotonic()
        self._seen = 0
        self._is_whole = False
        self._uploads = limits.uploads if scope["path"].endswith(UPLOADS) else None
        self._visitor = visitor_of(scope) if self._uploads else ""
        self._sent: Any = None
        self._end = b""  # of the bytes so far: a header may be split between two messages

    def begin(self) -> None:
        lengths = [value for name, value in self.scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 for value in lengths):
            raise _RefusedBodyError(413, TOO_LARGE)
        if not self.scope["path"].endswith(UPLOADS) and any(int(value) > self.limits.limit for value in lengths):
            raise _RefusedBodyError(413, TOO_LARGE)
        if self._uploads:
            try:
                self._sent = self._uploads.begin(self._visitor)
            except RefusedError as error:
                raise _RefusedBodyError(413, str(error)) from None

    async def receive(self) -> Message:
        if self._is_whole:  # what is awaited now is the client's disconnection
            return await self._receive()
        left = self._started + self.limits.seconds + self._seen / MIN_RATE - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            self._refuse(408, "This request is too slow.")
        content = message.get("body", b"")
        self._seen += len(content)
        self._is_whole = not message.get("more_body")
        if not self.scope["path"].endswith(UPLOADS) and self._seen > self.limits.limit:
            self._refuse(413, TOO_LARGE)
        if self._uploads:
            try:
                self._uploads.count(self._visitor, self._sent, len(content), self._count_parts(content))
            except RefusedError as error:
                self._refuse(413, str(error))
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is not None and not self.has_begun:  # the app's own answer to our refusal is dropped
            return
        self.has_begun = True
        await self._send(message)

    async def drain(self) -> None:
        """Discard the rest: a client whose connection is closed while it sends never reads the reason."""
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(min(LINGER_SECONDS, self.limits.seconds)):
                while not self._is_whole and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._is_whole = not message.get("more_body")

    def end(self) -> None:
        if self._sent is not None:
            self._sent.is_complete = True

    def _count_parts(self, content: bytes) -> int:
        together = self._end + content.lower()
        self._end = together[1 - len(PART_HEADER) :]
        return together.count(PART_HEADER)

    def _refuse(self, status: int, text: str) -> None:
        self.refusal = _RefusedBodyError(status, text)
        raise self.refusal


class _RefusedBodyError(MultiPartException):
    """A body that is refused while it arrives; on exceptions of other types Gradio leaves partial uploads behind."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


async def refuse(send: Send, status: int, text: str, drain: Callable[[], Awaitable[None]] | None = None) -> None:
    """Answer with a sentence and close the connection."""
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
