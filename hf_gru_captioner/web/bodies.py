"""A bound on what a request may carry, kept before anything of it is held in memory.

Gradio bounds uploaded files itself; a photo that comes as text inside of JSON it would read whole, whatever its size.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

UPLOADS = "/upload"  # where Gradio takes files, each within its own limit


class BodyLimit:
    """ASGI middleware: refuses bodies of more bytes with status 413.

    Args:
        app: What is protected.
        limit: In bytes, of every request but uploads of files.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], limit: int):
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(UPLOADS):
            await self.app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or int(value) > self.limit for value in lengths):
            await _refuse(send)
            return
        seen = 0
        has_begun = False

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise _TooLargeError
            return message

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, count, begin)
        except _TooLargeError:
            if not has_begun:
                await _refuse(send)


class _TooLargeError(Exception):
    """The body has grown beyond the limit while it came."""


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": b"This request is too large."})
