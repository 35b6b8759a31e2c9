import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.untrusted_images import RefusedError
from hf_gru_captioner.web.service import BusyError, CaptionService, Decoding, ServicePool

QUICK = Decoding(num_captions=2, num_beams=2, max_words=6)


@pytest.fixture
def captioner(checkpoint):
    return Captioner.from_pretrained(checkpoint)


@pytest.fixture
def service(captioner):
    service = CaptionService(captioner)
    yield service
    service.close()


@pytest.fixture
def gate(captioner, monkeypatch):
    """Holds the model until it is set."""
    gate, encode = threading.Event(), captioner.encode

    def wait_and_encode(images):
        gate.wait(10)
        return encode(images)

    monkeypatch.setattr(captioner, "encode", wait_and_encode)
    return gate


def wait_for(service, waiting: int) -> None:
    while service._waiting.qsize() < waiting:
        threading.Event().wait(0.01)


@pytest.mark.parametrize(
    "decoding",
    [QUICK, Decoding("greedy", max_words=6), Decoding("sample", num_captions=3, max_words=6, temperature=0.1)],
)
def test_a_photo_gets_what_the_captioner_writes(service, captioner, photo, decoding):
    found = service(photo, decoding)
    assert len(found.captions) == decoding.captions_written
    expected = captioner(photo, num_captions=decoding.captions_written, **decoding.generation())
    if decoding.strategy != "sample":
        assert found.captions == expected
    assert all(len(caption.alternatives) == len(caption.words) for caption in found.captions)
    assert found.encoder_ms > 0 < found.decoder_ms


def test_those_who_wait_share_a_forward_and_each_gets_their_own_caption(service, captioner, gate, make_photo):
    photos = [make_photo(seed) for seed in range(5)]
    with ThreadPoolExecutor(5) as callers:
        first = callers.submit(service, photos[0], QUICK)
        while not service._waiting.empty() or not service._model.locked():
            threading.Event().wait(0.01)
        others = [callers.submit(service, photo, QUICK) for photo in photos[1:4]]
        other_decoding = callers.submit(service, photos[4], Decoding("greedy", max_words=6))
        wait_for(service, 4)
        gate.set()
        found = [each.result(20) for each in (first, *others)]
        assert other_decoding.result(20).batch == 1
    assert [each.batch for each in found] == [1, 3, 3, 3]
    for photo, each in zip(photos, found, strict=False):
        expected = captioner(photo, num_captions=2, **QUICK.generation())
        assert [caption.text for caption in each.captions] == [caption.text for caption in expected]
        assert each.captions[0].score == pytest.approx(expected[0].score, abs=1e-4)


def test_a_full_house_says_so_and_the_others_are_served(captioner, gate, photo):
    service = CaptionService(captioner, max_waiting=2)
    with ThreadPoolExecutor(3) as callers:
        inside = callers.submit(service, photo, QUICK)
        while not service._waiting.empty() or not service._model.locked():
            threading.Event().wait(0.01)
        waiting = [callers.submit(service, photo, QUICK) for _ in range(2)]
        wait_for(service, 2)
        with pytest.raises(BusyError, match="try again"):
            service(photo, QUICK)
        gate.set()
        texts = {each.result(20).captions[0].text for each in (inside, *waiting)}
        assert len(texts) == 1
    service.close()


def test_a_photo_that_fails_does_not_spoil_the_others(captioner, gate, photo):
    service = CaptionService(captioner)
    with ThreadPoolExecutor(3) as callers:
        first = callers.submit(service, photo, QUICK)
        while not service._waiting.empty() or not service._model.locked():
            threading.Event().wait(0.01)
        good, bad = callers.submit(service, photo, QUICK), callers.submit(service, "nowhere.jpg", QUICK)
        wait_for(service, 2)
        gate.set()
        assert good.result(20).captions[0].text == first.result(20).captions[0].text
        with pytest.raises(FileNotFoundError):
            bad.result(20)
    service.close()


def test_a_stream_grows_word_by_word_to_the_greedy_caption(service, captioner, photo):
    texts = list(service.stream(photo, Decoding("greedy", max_words=8)))
    final = captioner(photo, num_beams=1, max_new_tokens=8).text
    assert texts[-1] == final
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    with pytest.raises(FileNotFoundError):
        list(service.stream("nowhere.jpg", Decoding("greedy")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "magic"}, "one of beam, greedy, sample"),
        ({"num_beams": 11}, "num_beams is a whole number from 1 to 10"),
        ({"num_beams": 2.5}, "num_beams is a whole number"),
        ({"num_captions": True}, "num_captions is a whole number"),
        ({"temperature": float("nan")}, r"temperature is a number from 0\.1 to 2"),
        ({"max_words": "24"}, "max_words is a whole number"),
    ],
)
def test_settings_that_nobody_may_have_are_refused(settings, said):
    with pytest.raises(RefusedError, match=said):
        Decoding(**settings)


def test_a_browsers_three_point_zero_is_three():
    assert Decoding(num_beams=3.0, temperature=1) == Decoding(num_beams=3, temperature=1.0)
    assert isinstance(Decoding(num_beams=3.0).num_beams, int)


@pytest.fixture
def make_shelf(checkpoint):
    shelves = []

    def make(names, **settings):
        pool = ServicePool(names, lambda name: Captioner.from_pretrained(checkpoint / name), **settings)
        shelves.append(pool)
        return pool

    yield make
    for pool in shelves:
        for service in pool._services.values():
            service.close()


def test_a_checkpoint_is_loaded_once_when_it_is_wanted(make_shelf, photo):
    pool = make_shelf(["."])
    assert pool["."] is pool["."]
    assert pool["."](photo, QUICK).captions


def test_only_checkpoints_of_the_shelf_may_be_wanted_unless_any_may(make_shelf):
    with pytest.raises(RefusedError, match="no such checkpoint here"):
        make_shelf(["."])["../checkpoint"]
    pool = make_shelf(["."], any_name=True)
    assert pool["../checkpoint"] is not pool["."]
    with pytest.raises(RefusedError, match="neither a folder nor a model"):
        pool["nowhere"]


def test_the_checkpoint_wanted_longest_ago_makes_room_and_ends_well(make_shelf, photo):
    pool = make_shelf([".", "./", "./."], room=2)
    first, second = pool["."], pool["./"]
    assert pool["."] is first
    pool["./."]
    assert pool["."] is first
    second._thread.join(10)
    assert not second._thread.is_alive()
    with pytest.raises(BusyError):
        second(photo, QUICK)
