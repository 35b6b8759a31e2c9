"""Which doors of Gradio's server are open, what every answer tells the browser, and clients that hang.

Gradio serves far more than the page needs: a proxy to the whole web (`file=https://...`), tools for those who write
pages, descriptions of itself. What is not listed here is not there.
"""

import asyncio
import re
from typing import Any

from ..untrusted_images import RefusedError
from .bodies import App, Message, Receive, Send, refuse
from .uploads import Uploads

API = "/gradio_api/"
FILES = f"{API}file="
OPEN = {
    ("GET", "HEAD"): re.compile(
        r"/|/(config|favicon\.ico|manifest\.json|robots\.txt|theme\.css|pwa_icon(/\d+)?)/?"
        r"|/(assets|static|svelte)/.+"
        rf"|{API}(info/?|app_id|startup-events|theme\.css|user/?|login_check/?|queue/data|queue/status|upload_progress)"
        rf"|{API}(heartbeat/[^/]+|call/[^/]+/[^/]+|file=.+)"
    ),
    ("POST", "OPTIONS"): re.compile(
        rf"{API}(upload|cancel|reset/?|queue/join|run/[^/]+/?|call/(v2/)?[^/]+/?)"  # run: what needs no queue
    ),
}

# Scripts: Gradio begins with one inside of the page, and makes functions of the viewer's text. Nothing may come from,
# or be told to, any other server: what is smuggled in finds no way out.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space",  # which show Spaces in a frame
    )
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
HEADER_SECONDS = 15.0  # from the first byte of a request to the end of its headers, or from a connection's begin
MAX_CONNECTIONS = 1000


class Doors:
    """ASGI middleware: refuses what is not listed with 404, and gives every answer its security headers.

    Args:
        app: What is protected.
        uploads: Where files that may be asked for are.
    """

    def __init__(self, app: App, uploads: Uploads):
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in HEADERS}
                others = [each for each in message.get("headers", []) if each[0].lower() not in ours]
                message["headers"] = [*others, *HEADERS]
            await send(message)

        if self._is_open(scope["method"], scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))):
            await self.app(scope, receive, with_headers)
        else:
            await refuse(with_headers, 404, "There is nothing here.")

    def _is_open(self, method: str, path: str) -> bool:
        if not any(method in methods and pattern.fullmatch(path) for methods, pattern in OPEN.items()):
            return False
        try:
            if path.startswith(FILES):
                self.uploads.check(path.removeprefix(FILES))
        except RefusedError:
            return False
        return True


def with_patience(protocol: Any, seconds: float = HEADER_SECONDS) -> Any:
    """A protocol of uvicorn that hangs up on clients that fall silent; by itself it waits for ever.

    Args:
        protocol: That of h11 or httptools.
        seconds: From a connection's begin, or the first byte of a further request, to the end of the headers. An answer
            waits four times as long for the client to read on.
    """

    class Impatient(protocol):
        _hang_up: asyncio.TimerHandle | None = None
        _hang_up_writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            self._wait()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._hang_up_writing = asyncio.get_running_loop().call_later(4 * seconds, self.transport.abort)

        def resume_writing(self) -> None:
            if self._hang_up_writing is not None:
                self._hang_up_writing.cancel()
            super().resume_writing()

        def connection_lost(self, exc) -> None:
            self._stop_waiting()
            if self._hang_up_writing is not None:
                self._hang_up_writing.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._hang_up is None and (self.cycle is None or self.cycle.response_complete):
                self._hang_up = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._hang_up is not None:
                self._hang_up.cancel()
                self._hang_up = None

    return Impatient
