import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_gru_captioner.web.routes import HEADERS, RouteFilter
from hf_gru_captioner.web.uploads import Uploads


def ask(folder, method, path, root_path="", kind="http"):
    """Messages of the response; the wrapped app responds with status 200 and weak headers."""
    sent = []

    async def app(scope, receive, send):
        headers = [(b"Content-Security-Policy", b"default-src *"), (b"x-a", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "root_path": root_path, "headers": []}
    with ThreadPoolExecutor(1) as thread:  # Playwright keeps a running event loop in this one
        thread.submit(asyncio.run, RouteFilter(app, Uploads(folder))(scope, None, send)).result()
    return sent


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/config", 200),
        ("GET", "/assets/a/b.js", 200),
        ("GET", "/gradio_api/info", 200),
        ("POST", "/gradio_api/upload", 200),
        ("POST", "/gradio_api/call/caption", 200),
        ("GET", "/gradio_api/call/caption/abc", 200),
        ("POST", "/gradio_api/queue/join", 200),
        ("POST", "/gradio_api/run/predict", 200),
        ("GET", "/openapi.json", 404),
        ("GET", "/gradio_api/openapi.json", 404),
        ("GET", "/gradio_api/proxy=https://a.hf.space/b", 404),
        ("GET", "/gradio_api/file=https://example.org/a.png", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/file/etc/passwd", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/login", 404),
        ("DELETE", "/", 404),
        ("PUT", "/gradio_api/upload", 404),
        ("GET", "/anything/new", 404),
    ],
)
def test_only_what_is_listed_is_there(tmp_path, method, path, status):
    assert ask(tmp_path, method, path)[0]["status"] == status
    assert ask(tmp_path, method, f"/behind{path}", root_path="/behind")[0]["status"] == status


def test_a_file_of_the_uploads_may_be_asked_for(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert ask(tmp_path, "GET", f"/gradio_api/file={tmp_path / 'a.jpg'}")[0]["status"] == 200


@pytest.mark.parametrize("path", ["/", "/openapi.json"])
def test_every_answer_has_our_headers_once(tmp_path, path):
    headers = [(name.lower(), value) for name, value in ask(tmp_path, "GET", path)[0]["headers"]]
    for name, value in HEADERS:
        assert [found for each, found in headers if each == name] == [value]
    assert ((b"x-a", b"1") in headers) == (path == "/")


def test_a_web_socket_is_refused(tmp_path):
    assert ask(tmp_path, "GET", "/", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
