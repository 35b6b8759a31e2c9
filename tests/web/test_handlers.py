"""What the page's buttons and endpoints call, without a browser."""

import base64
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import CaptionService, ServicePool, build_page
from hf_gru_captioner.web.uploads import uploads

ADDRESS = "photos.example/a.png"
SETTINGS = ("greedy", 1, 1, 1.0, 1.0, 1.0, 6, 2)  # the fields of a Decoding


def functions_of(pool) -> SimpleNamespace:
    """The functions behind the page's events and endpoints, by name."""
    return SimpleNamespace(**{each.name: each.fn for each in build_page(pool, load_image).fns.values() if each.fn})


@pytest.fixture
def path(photo):
    """A photo among the page's uploads."""
    path = uploads().folder / "photo.png"
    photo.save(path)
    yield str(path)
    path.unlink()


@pytest.fixture
def expected(checkpoint, photo):
    captioner = Captioner.from_pretrained(checkpoint)
    return captioner(photo, num_beams=1, max_new_tokens=6, no_repeat_ngram_size=2).text


@pytest.fixture
def crowded(checkpoint, monkeypatch):
    """The page's functions, where another visitor's checkpoint replaces one's own as soon as a photo is loaded."""
    pool = ServicePool([".", "./"], lambda name: Captioner.from_pretrained(checkpoint / name), capacity=1)
    load = CaptionService.load

    def load_and_evict(service, content):
        image = load(service, content)
        pool["./"]
        while service.is_running:
            time.sleep(0.01)
        return image

    def wait(seconds):
        raise AssertionError("a closed service is not busy: waiting does not help")

    monkeypatch.setattr(CaptionService, "load", load_and_evict)
    monkeypatch.setattr("hf_gru_captioner.web.handlers.time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))
    yield functions_of(pool)
    pool.close()


def wrapped_base64(path) -> str:
    """As the `base64` command writes it, in lines of 76 characters."""
    return base64.encodebytes(Path(path).read_bytes()).decode()


def last(answers):
    *_, answer = answers
    return answer


def caption_in_review(page, path):
    sent = json.dumps({"photos": [{"name": "photo.png", "path": path}]})
    return json.loads(last(page.caption_for_review(sent, ".", *SETTINGS)))["rows"][0]["captions"][0]


def first(answer):
    return json.loads(answer)["captions"][0]["caption"]


WAYS = {
    "one photo": lambda page, path: first(page.caption_input(path, "", ".", *SETTINGS)[0]),
    "the review": caption_in_review,
    "/caption": lambda page, path: page.caption({"path": path}, *SETTINGS, ".")["caption"],
    "/caption_many": lambda page, path: last(page.caption_many([{"path": path}], *SETTINGS, "."))[0]["caption"],
    "/caption_stream": lambda page, path: last(page.caption_stream({"path": path}, max_words=6)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_that_others_replace_meanwhile_still_captions(crowded, path, expected, way):
    assert WAYS[way](crowded, path) == expected


@pytest.fixture
def page(checkpoint, photo, monkeypatch):
    """The page's functions, with a photo on the web, and the addresses that were fetched."""
    fetched = []

    def fetch(address, limits):
        fetched.append(address)
        buffer = io.BytesIO()
        photo.save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr("hf_gru_captioner.web.handlers.fetch_image", fetch)
    pool = ServicePool(["."], lambda name: Captioner.from_pretrained(checkpoint))
    yield SimpleNamespace(**vars(functions_of(pool)), fetched=fetched)
    pool.close()


@pytest.mark.parametrize(
    ("typed", "fetched"),
    [
        (ADDRESS, f"https://{ADDRESS}"),
        (f" {ADDRESS} ", f"https://{ADDRESS}"),
        ("example.org/my photo:1.jpg", "https://example.org/my photo:1.jpg"),
        (f"http://{ADDRESS}", f"http://{ADDRESS}"),
        (f"HTTPS://{ADDRESS}", f"HTTPS://{ADDRESS}"),
    ],
)
def test_an_address_as_typed_is_captioned_and_again_after_a_change_of_settings(page, expected, typed, fetched):
    for caption in (page.caption_input, page.caption_again):
        assert first(caption(None, typed, ".", *SETTINGS)[0]) == expected
        assert page.fetched.pop() == fetched


def test_a_program_may_write_the_scheme_of_an_address_in_capitals(page, expected):
    assert page.caption(f"HTTPS://{ADDRESS}", *SETTINGS, ".")["caption"] == expected


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/png;base64,\r\n"])
def test_base64_may_be_broken_into_lines(page, path, expected, prefix):
    photo = prefix + wrapped_base64(path)
    assert photo.count("\n") > 5
    assert page.caption(photo, *SETTINGS, ".")["caption"] == expected
    assert last(page.caption_stream(photo, max_words=6)) == expected


def test_a_program_is_told_what_many_photos_are(page, path):
    for photos in ([wrapped_base64(path)], wrapped_base64(path), [], [{"path": path}, "https://photos.example/a.png"]):
        with pytest.raises(gr.Error, match=r"must be a list of uploaded files .*handle_file.*; /caption also takes"):
            next(page.caption_many(photos, *SETTINGS, "."))
    for photo in ({}, {"path": 7}):
        with pytest.raises(gr.Error, match=r"An uploaded file is an object with its path .*handle_file"):
            next(page.caption_many([photo], *SETTINGS, "."))


@pytest.mark.parametrize("typed", [None, "", "a photo of my dog", "ftp://photos.example/a.png"])
def test_what_is_no_address_is_not_fetched_when_settings_change(page, typed):
    answer, photo = page.caption_again(None, typed, ".", *SETTINGS)
    assert answer == photo == gr.skip()
    assert not page.fetched


def test_an_address_left_over_does_not_replace_a_photo_when_settings_change(page, path, expected):
    assert first(page.caption_again(path, ADDRESS, ".", *SETTINGS)[0]) == expected
    assert not page.fetched


UNKNOWN = {
    "the review": lambda page, sent: page.caption_for_review(json.dumps({"photos": [sent]}), "none", *SETTINGS),
    "/caption_many": lambda page, sent: page.caption_many([sent], *SETTINGS, "none"),
}


@pytest.mark.parametrize("way", UNKNOWN)
def test_many_photos_for_an_unknown_checkpoint_are_refused_at_once(page, path, way):
    with pytest.raises(gr.Error, match="no such checkpoint"):
        next(UNKNOWN[way](page, {"name": "photo.png", "path": path}))
