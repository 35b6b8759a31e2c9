import json
import threading
import time
import urllib.request
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
    """The first line of data that an event stream has, which otherwise says from time to time that it lives."""
    end = time.monotonic() + seconds
    with urllib.request.urlopen(url, timeout=seconds) as lines:
        for line in lines:
            if line.startswith(b"data: ") and b"null" not in line:
                return line.decode()
            if time.monotonic() > end:
                break
    return ""


def test_messages_to_a_session_that_has_gone_are_dropped():
    messages = SessionMessages(2)
    messages["here"] = queue = AsyncQueue()
    messages["gone"].put_nowait("lost")
    assert "gone" not in messages
    assert messages["here"] is queue
    del messages["gone"]
    del messages["here"]
    assert "here" not in messages


def test_the_sessions_that_came_last_are_kept():
    messages = SessionMessages(2)
    for name in "abc":
        messages[name] = AsyncQueue()
    assert list(messages) == ["b", "c"]


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
    """The race itself: the queue tells all who wait where they stand, one of them gone."""
    go_on = threading.Event()

    def work(name: str) -> str:
        if name == "slow":
            go_on.wait(20)
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
