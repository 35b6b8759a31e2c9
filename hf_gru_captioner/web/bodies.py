"""Bounds on what a request may carry and how long it may take, kept before anything of it is held in memory.

Gradio bounds each uploaded file itself, but not how many there are; a photo that comes as text inside of JSON it would
read whole, whatever its size, and a client that falls silent it would wait for without end.
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

UPLOADS = "/upload"  # where Gradio takes files, each within its own limit
PART_HEADER = b"content-disposition"  # of each part of an upload, in letters of any case
PATIENCE = 30.0  # seconds that a body may take, and one more for each of
SLOWEST = 20_000  # bytes
LINGER_SECONDS = 10.0  # that the rest of a refused body is read and thrown away, and how much of it in
LINGER_BYTES = 50_000_000
TOO_LARGE = "This request is too large."


class BodyLimit:
    """ASGI middleware: refuses bodies that are too large with status 413, those that are too slow with 408.

    Args:
        app: What is protected.
        limit: In bytes, of every request but uploads of files.
        uploads: Counts what is uploaded, by visitor.
        patience: Seconds that a body may take besides those that its bytes may.
    """

    def __init__(self, app: App, limit: int, uploads: Uploads | None = None, patience: float = PATIENCE):
        self.app = app
        self.limit = limit
        self.uploads = uploads
        self.patience = patience

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive, send)
        try:
            body.begin()
            await self.app(scope, body.receive, body.send)
        except _TooMuchError as error:
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
        self.refusal: _TooMuchError | None = None
        self.has_begun = False  # the answer
        self._receive, self._send = receive, send
        self._started = time.monotonic()
        self._seen = 0
        self._is_whole = False
        self._uploads = limits.uploads if scope["path"].endswith(UPLOADS) else None
        self._visitor = visitor_of(scope) if self._uploads else ""
        self._sent: Any = None
        self._end = b""  # of what came so far: a header may be split between two messages

    def begin(self) -> None:
        lengths = [value for name, value in self.scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 for value in lengths):
            raise _TooMuchError(413, TOO_LARGE)
        if not self.scope["path"].endswith(UPLOADS) and any(int(value) > self.limits.limit for value in lengths):
            raise _TooMuchError(413, TOO_LARGE)
        if self._uploads:
            try:
                self._sent = self._uploads.begin(self._visitor)
            except RefusedError as error:
                raise _TooMuchError(413, str(error)) from None

    async def receive(self) -> Message:
        if self._is_whole:  # what is waited for now is that the client leaves
            return await self._receive()
        left = self._started + self.limits.patience + self._seen / SLOWEST - time.monotonic()
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
        if self.refusal is not None and not self.has_begun:  # what the app made of our refusal is not said
            return
        self.has_begun = True
        await self._send(message)

    async def drain(self) -> None:
        """Throws away what still comes: a client that is hung up on while it sends never reads why."""
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(min(LINGER_SECONDS, self.limits.patience)):
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
        self.refusal = _TooMuchError(status, text)
        raise self.refusal


class _TooMuchError(MultiPartException):
    """A body that is refused while it comes; of this kind, since on others Gradio leaves half an upload on the disk."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


async def refuse(send: Send, status: int, text: str, drain: Callable[[], Awaitable[None]] | None = None) -> None:
    """Answers with a sentence, and hangs up."""
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
