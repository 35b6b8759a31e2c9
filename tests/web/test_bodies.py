"""Bodies that are too large are refused, whether they say so or not."""

import asyncio

import pytest

from hf_gru_captioner.web.bodies import BodyLimit


def ask(chunks, headers=(), path="/call/caption", limit=10):
    """Status of the answer, and how many chunks were taken."""
    taken, sent = [], []

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message["body"]
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
    asyncio.run(BodyLimit(app, limit)(scope, receive, send))
    return sent[0]["status"], len(taken)


def test_what_is_small_enough_goes_through():
    assert ask([b"12345", b"67890"], [(b"content-length", b"10")]) == (200, 2)


def test_what_says_that_it_is_too_large_is_not_read():
    assert ask([b"1"], [(b"content-length", b"11")]) == (413, 0)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"", b"0x1"])
def test_a_length_that_is_no_number_is_refused(length):
    assert ask([b"1"], [(b"content-length", length)]) == (413, 0)


def test_what_says_nothing_is_read_no_further_than_the_limit():
    assert ask([b"123456"] * 100) == (413, 2)


def test_uploads_have_a_limit_of_their_own():
    assert ask([b"123456"] * 3, path="/gradio_api/upload") == (200, 3)
