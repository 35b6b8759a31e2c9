"""Request bodies that are too large are rejected, with or without a Content-Length."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_gru_captioner.untrusted_images import Limits
from hf_gru_captioner.web.body_limit import BodyLimit
from hf_gru_captioner.web.uploads import Uploads


def ask(chunks, headers=(), path="/call/caption", limit=10):
    """Status of the response, and the number of chunks passed to the app."""
    taken, given, sent = [], [], []

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            given.append(message)
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def receive():
        taken.append(chunks[len(taken)])
        return {"type": "http.request", "body": taken[-1], "more_body": len(taken) < len(chunks)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers)}
    with ThreadPoolExecutor(1) as thread:  # Playwright keeps a running event loop in this one
        thread.submit(asyncio.run, BodyLimit(app, limit)(scope, receive, send)).result()
    assert not sent[-1].get("more_body")
    return sent[0]["status"], len(given)


def test_what_is_small_enough_goes_through():
    assert ask([b"12345", b"67890"], [(b"content-length", b"10")]) == (200, 2)


def test_what_says_that_it_is_too_large_is_not_read():
    assert ask([b"1"], [(b"content-length", b"11")]) == (413, 0)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"", b"0x1"])
def test_a_length_that_is_not_a_number_is_refused(length):
    assert ask([b"1"], [(b"content-length", length)]) == (413, 0)


def test_what_says_nothing_is_read_no_further_than_the_limit():
    assert ask([b"123456"] * 100) == (413, 1)


def test_uploads_have_a_limit_of_their_own():
    assert ask([b"123456"] * 3, path="/gradio_api/upload") == (200, 3)


def ask_a_server_that_catches_all(chunks, uploads=None, pause=0.0, seconds=30.0, path="/call/caption", limit=10):
    """Status and text of a server that, like Gradio's, turns errors while reading into its own response."""
    sent = []

    async def app(scope, receive, send):
        try:
            while (await receive())["more_body"]:
                pass
            status = 200
        except Exception:
            status = 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"its own"})

    taken = iter(chunks)
    left = len(chunks)

    async def receive():
        nonlocal left
        await asyncio.sleep(pause)
        left -= 1
        return {"type": "http.request", "body": next(taken), "more_body": left > 0}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [], "client": ("203.0.113.1", 1)}
    with ThreadPoolExecutor(1) as thread:  # Playwright keeps a running event loop in this one
        thread.submit(asyncio.run, BodyLimit(app, limit, uploads, seconds)(scope, receive, send)).result()
    return sent[0]["status"], sent[1]["body"]


def test_what_the_server_makes_of_a_refusal_is_not_said():
    assert ask_a_server_that_catches_all([b"123456"] * 3) == (413, b"This request is too large.")
    assert ask_a_server_that_catches_all([b"12", b"34"]) == (200, b"its own")


def test_a_body_that_drips_is_refused_and_a_slow_one_that_moves_is_not():
    assert ask_a_server_that_catches_all([b"1"] * 50, pause=0.02, seconds=0.1, limit=99)[0] == 408
    moving = [bytes(2000)] * 10  # a tenth of a second for each
    assert ask_a_server_that_catches_all(moving, pause=0.02, seconds=0.1, limit=99_999)[0] == 200


def test_uploads_are_counted_by_visitor_as_they_come(tmp_path):
    uploads = Uploads(tmp_path, Limits(visitor_bytes=20, visitor_files=2))
    path = "/gradio_api/upload"
    assert ask_a_server_that_catches_all([b"1234567890"], uploads, path=path)[0] == 200
    status, said = ask_a_server_that_catches_all([b"1234567890"] * 5, uploads, path=path)
    assert (status, b"MB were sent from here" in said) == (413, True)
    assert ask_a_server_that_catches_all([b"1"], uploads, path=path)[0] == 413
    files = Uploads(tmp_path, Limits(visitor_files=2))
    head = b'Content-Disposition: form-data; name="files"; filename="a"\r\n'
    assert ask_a_server_that_catches_all([head * 2], files, path=path)[0] == 200
    assert ask_a_server_that_catches_all([head * 2], files, path=path)[0] == 413


@pytest.mark.parametrize("spell", [bytes.lower, bytes.upper, bytes.title])
def test_files_are_counted_however_their_headers_are_spelled_and_split(tmp_path, spell):
    head = spell(b'content-disposition: form-data; name="files"; filename="a"\r\n')
    for size in (1, 7, len(head) - 5, 1000):
        body = head * 3
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        for limit, status in ((2, 413), (3, 200)):
            uploads = Uploads(tmp_path, Limits(visitor_files=limit))
            assert ask_a_server_that_catches_all(chunks, uploads, path="/gradio_api/upload")[0] == status
