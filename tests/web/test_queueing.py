import json
import logging
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.queueing import AsyncQueue
from gradio.utils import LRUCache

from hf_gru_captioner.web import launch
from hf_gru_captioner.web.queueing import SessionMessages, outlive_clients


def post(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def first_data(url, seconds):
    """The first data line of an event stream, ignoring heartbeats."""
    end = time.monotonic() + seconds
    with urllib.request.urlopen(url, timeout=seconds) as lines:
        for line in lines:
            if line.startswith(b"data: ") and b"null" not in line:
                return line.decode()
            if time.monotonic() > end:
                break
    return ""


def test_messages_to_a_session_that_has_gone_are_dropped():
    messages = SessionMessages(2, defaultdict(set))
    messages["here"] = queue = AsyncQueue()
    messages["gone"].put_nowait("lost")
    assert "gone" not in messages
    assert messages["here"] is queue
    del messages["gone"]
    del messages["here"]
    assert "here" not in messages


def session(messages, name):
    """A session whose response has not been read."""
    messages[name] = AsyncQueue()
    messages.unread[name] = {name}


def test_of_too_many_sessions_those_are_forgotten_of_which_nothing_was_heard_for_longest():
    messages = SessionMessages(2, {})
    session(messages, "a")
    session(messages, "b")
    messages["a"].put_nowait("a word")
    session(messages, "c")
    assert list(messages) == ["a", "c"]
    assert messages.unread == {"a": {"a"}, "c": {"c"}}


def test_a_session_that_has_all_its_answers_is_forgotten_when_another_comes():
    messages = SessionMessages(2, {})
    for name in "abc":
        session(messages, name)
        messages.unread[name].clear()
    assert list(messages) == ["c"]
    assert messages.unread == {"c": set()}


@pytest.mark.parametrize("is_ours", [True, False], ids=["outlives", "Gradio's own"])
def test_a_queue_survives_a_client_that_hangs_up_while_it_waits(is_ours):
    with gr.Blocks() as page:
        gr.api(lambda: 1, api_name="one")
    page.queue()
    if is_ours:
        outlive_clients(page)
    else:
        assert type(page._queue.pending_messages_per_session) is LRUCache
    waiting = SimpleNamespace(alive=True, _id="event", session_hash="gone")
    if is_ours:
        page._queue.send_message(waiting, SimpleNamespace())
    else:
        with pytest.raises(KeyError):  # when this no longer fails, Gradio has mended it
            page._queue.send_message(waiting, SimpleNamespace())


def test_a_page_still_answers_when_the_session_of_a_waiting_request_was_forgotten():
    """The race itself: the queue notifies all waiting sessions of their position, one of which is gone."""
    go_on = threading.Event()

    def work(name: str) -> str:
        if name == "slow":
            go_on.wait(60)
        return name

    with gr.Blocks() as page:
        gr.api(work, api_name="work", concurrency_limit=1)
    launch(page, server_name="127.0.0.1")
    try:
        call = f"{page.local_url}gradio_api/call/work"
        post(call, {"data": ["slow"]})
        post(call, {"data": ["next"]})
        gone = post(call, {"data": ["gone"]})["event_id"]
        last = post(call, {"data": ["last"]})["event_id"]
        del page._queue.pending_messages_per_session[page._queue.event_ids_to_events[gone].session_hash]
        go_on.set()
        assert '["last"]' in first_data(f"{call}/{last}", seconds=20)
    finally:
        page.close()


@contextmanager
def launched(**functions):
    """Address of a page with these endpoints and unlimited concurrency, and its queue."""
    with gr.Blocks() as page:
        for name, function in functions.items():
            gr.api(function, api_name=name, concurrency_limit=None)
    launch(page, server_name="127.0.0.1")
    try:
        yield page.local_url, page._queue
    finally:
        page.close()


def test_a_session_is_answered_however_many_come_after_it_and_none_is_kept():
    """Gradio forgot the oldest after 2000: a client that was still there was told that it wasn't, and gave up."""
    go_on = threading.Event()

    def slow(name: str) -> str:
        go_on.wait(60)
        return name

    def quick(name: str) -> str:
        return name

    with launched(slow=slow, quick=quick) as (address, queue):
        queue.pending_messages_per_session.max_size = 10
        api = f"{address}gradio_api/"
        stays = post(f"{api}call/slow", {"data": ["stays"]})["event_id"]
        for number in range(30):
            event = post(f"{api}call/quick", {"data": [str(number)]})["event_id"]
            assert f'["{number}"]' in first_data(f"{api}call/quick/{event}", seconds=20)
        assert len(queue.pending_messages_per_session) < 5
        assert len(queue.pending_event_ids_session) < 5
        go_on.set()
        assert '["stays"]' in first_data(f"{api}call/slow/{stays}", seconds=20)


def test_who_asks_for_a_session_that_is_not_there_is_told_so_and_nothing_is_logged():
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    logging.getLogger("uvicorn.error").addHandler(handler)

    def quick(name: str) -> str:
        return name

    try:
        with launched(quick=quick) as (address, _):
            for url in ("call/quick/nowhere", "queue/data?session_hash=nowhere"):
                with urllib.request.urlopen(f"{address}gradio_api/{url}", timeout=20) as answer:
                    assert b"404: Not Found" in answer.read()
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert not [each.getMessage() for each in logged]
