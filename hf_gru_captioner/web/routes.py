"""Allowed routes of Gradio's server, security headers of every response, and connection timeouts.

Gradio serves far more than the page needs: a proxy to the whole web (`file=https://...`), developer tools, descriptions
of itself. Routes that are not listed here return 404.
"""

import asyncio
import re
from typing import Any

from ..untrusted_images import RefusedError
from .body_limit import App, Message, Receive, Send, refuse
from .uploads import Uploads

API = "/gradio_api/"
FILES = f"{API}file="
ALLOWED = {
    ("GET", "HEAD"): re.compile(
        r"/|/(config|favicon\.ico|manifest\.json|robots\.txt|theme\.css|pwa_icon(/\d+)?)/?"
        r"|/(assets|static|svelte)/.+"
        rf"|{API}(info/?|app_id|startup-events|theme\.css|user/?|login_check/?|queue/data|queue/status|upload_progress)"
        rf"|{API}(heartbeat/[^/]+|call/[^/]+/[^/]+|file=.+)"
    ),
    ("POST", "OPTIONS"): re.compile(
        rf"{API}(upload|cancel|reset/?|queue/join|run/[^/]+/?|call/(v2/)?[^/]+/?)"  # run: calls that need no queue
    ),
}

# Scripts: Gradio starts with an inline one, and evaluates the viewer's code. Nothing may be loaded from or sent to
# other servers, so injected code could not exfiltrate anything.
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
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space",  # Spaces are shown in a frame
    )
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
HEADER_SECONDS = 15.0  # from the first byte of a request, or the start of a connection, to the end of the headers
MAX_CONNECTIONS = 1000


class RouteFilter:
    """ASGI middleware: returns 404 for routes that are not listed, and adds security headers to every response.

    Args:
        app: The protected app.
        uploads: The files that may be requested.
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

        if self._is_allowed(scope["method"], scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))):
            await self.app(scope, receive, with_headers)
        else:
            await refuse(with_headers, 404, "Not found.")

    def _is_allowed(self, method: str, path: str) -> bool:
        if not any(method in methods and pattern.fullmatch(path) for methods, pattern in ALLOWED.items()):
            return False
        try:
            if path.startswith(FILES):
                self.uploads.check(path.removeprefix(FILES))
        except RefusedError:
            return False
        return True


def with_timeouts(protocol: Any, seconds: float = HEADER_SECONDS) -> Any:
    """A uvicorn protocol that closes the connections of silent clients; uvicorn has no such timeout.

    Args:
        protocol: Uvicorn's protocol for h11 or httptools.
        seconds: Timeout from the start of a connection, or the first byte of a further request, to the end of the
            headers. A client that reads a response may pause four times as long.
    """

    class WithTimeouts(protocol):
        _header_timeout: asyncio.TimerHandle | None = None
        _write_timeout: asyncio.TimerHandle | None = None

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._start_timeout()

        def data_received(self, data: bytes) -> None:
            self._start_timeout()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timeout()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._write_timeout = asyncio.get_running_loop().call_later(4 * seconds, self.transport.abort)

        def resume_writing(self) -> None:
            if self._write_timeout is not None:
                self._write_timeout.cancel()
            super().resume_writing()

        def connection_lost(self, exc) -> None:
            self._stop_timeout()
            if self._write_timeout is not None:
                self._write_timeout.cancel()
            super().connection_lost(exc)

        def _start_timeout(self) -> None:
            if self._header_timeout is None and (self.cycle is None or self.cycle.response_complete):
                self._header_timeout = asyncio.get_running_loop().call_later(seconds, self.transport.abort)

        def _stop_timeout(self) -> None:
            if self._header_timeout is not None:
                self._header_timeout.cancel()
                self._header_timeout = None

    return WithTimeouts
