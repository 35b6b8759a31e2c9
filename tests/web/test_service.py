import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.untrusted_images import RefusedError
from hf_gru_captioner.web.service import BusyError, CaptionService, ClosedError, Decoding, ServicePool

QUICK = Decoding(num_captions=2, num_beams=2, max_words=6)


@pytest.fixture
def captioner(checkpoint):
    return Captioner.from_pretrained(checkpoint)


@pytest.fixture
def service(captioner):
    service = CaptionService(captioner)
    yield service
    service.close()


class Gate:
    """Blocks the model until opened; signals when the first batch has arrived."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()


@pytest.fixture
def gate(captioner, monkeypatch):
    gate, encode = Gate(), captioner.encode

    def wait_and_encode(images):
        gate.reached.set()
        gate.opened.wait(60)
        return encode(images)

    monkeypatch.setattr(captioner, "encode", wait_and_encode)
    return gate


def wait_until(condition, seconds=20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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


def test_waiting_requests_share_a_forward_pass_and_each_gets_its_own_caption(service, captioner, gate, make_photo):
    photos = [make_photo(seed) for seed in range(5)]
    with ThreadPoolExecutor(5) as callers:
        first = callers.submit(service, photos[0], QUICK)
        assert gate.reached.wait(60)
        others = [callers.submit(service, photo, QUICK) for photo in photos[1:4]]
        other_decoding = callers.submit(service, photos[4], Decoding("greedy", max_words=6))
        wait_until(lambda: service.num_waiting == 4)
        gate.opened.set()
        found = [each.result(20) for each in (first, *others)]
        assert other_decoding.result(20).batch == 1
    assert [each.batch for each in found] == [1, 3, 3, 3]
    for photo, each in zip(photos, found, strict=False):
        expected = captioner(photo, num_captions=2, **QUICK.generation())
        assert [caption.text for caption in each.captions] == [caption.text for caption in expected]
        assert each.captions[0].score == pytest.approx(expected[0].score, abs=1e-4)


def test_requests_beyond_the_queue_limit_are_rejected_and_the_others_served(captioner, gate, photo):
    service = CaptionService(captioner, max_waiting=2)
    with ThreadPoolExecutor(3) as callers:
        inside = callers.submit(service, photo, QUICK)
        assert gate.reached.wait(60)
        waiting = [callers.submit(service, photo, QUICK) for _ in range(2)]
        wait_until(lambda: service.num_waiting == 2)
        with pytest.raises(BusyError, match="try again"):
            service(photo, QUICK)
        gate.opened.set()
        texts = {each.result(20).captions[0].text for each in (inside, *waiting)}
        assert len(texts) == 1
    service.close()


def test_an_image_that_fails_does_not_fail_the_others(captioner, gate, photo):
    service = CaptionService(captioner)
    with ThreadPoolExecutor(3) as callers:
        first = callers.submit(service, photo, QUICK)
        assert gate.reached.wait(60)
        good, bad = callers.submit(service, photo, QUICK), callers.submit(service, "nowhere.jpg", QUICK)
        wait_until(lambda: service.num_waiting == 2)
        gate.opened.set()
        assert good.result(20).captions[0].text == first.result(20).captions[0].text
        with pytest.raises(FileNotFoundError):
            bad.result(20)
    service.close()


def test_a_stream_grows_word_by_word_to_the_greedy_caption(service, captioner, photo):
    texts = list(service.stream(photo, Decoding("greedy", max_words=8)))
    final = captioner(photo, num_beams=1, max_new_tokens=8, no_repeat_ngram_size=2).text
    assert texts[-1] == final
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    with pytest.raises(FileNotFoundError):
        list(service.stream("nowhere.jpg", Decoding("greedy")))


def test_where_pytorch_is_missing_sampling_is_refused(monkeypatch, photo):
    monkeypatch.setattr("hf_gru_captioner.web.service.has_pytorch", lambda: False)
    service = CaptionService(Captioner.from_pretrained())
    with pytest.raises(RefusedError, match="Sampling needs PyTorch, which is not installed here"):
        service(photo, Decoding("sample"))
    with pytest.raises(RefusedError, match="needs PyTorch"):
        list(service.stream(photo, Decoding("sample")))
    assert service(photo, QUICK).captions
    service.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "magic"}, "one of beam, greedy, sample"),
        ({"num_beams": 11}, "num_beams must be a whole number from 1 to 10"),
        ({"num_beams": 2.5}, "num_beams must be a whole number"),
        ({"num_captions": True}, "num_captions must be a whole number"),
        ({"temperature": float("nan")}, r"temperature must be a number from 0\.1 to 2"),
        ({"max_words": "24"}, "max_words must be a whole number"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, said):
    with pytest.raises(RefusedError, match=said):
        Decoding(**settings)


def test_a_browsers_three_point_zero_is_three():
    assert Decoding(num_beams=3.0, temperature=1) == Decoding(num_beams=3, temperature=1.0)
    assert isinstance(Decoding(num_beams=3.0).num_beams, int)


@pytest.fixture
def make_pool(checkpoint):
    pools = []

    def make(names, **settings):
        pool = ServicePool(names, lambda name: Captioner.from_pretrained(checkpoint / name), **settings)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def test_a_checkpoint_is_loaded_once_when_it_is_used(make_pool, photo):
    pool = make_pool(["."])
    assert pool["."] is pool["."]
    assert pool["."](photo, QUICK).captions


def test_only_named_checkpoints_may_be_used_unless_any_may(make_pool):
    with pytest.raises(RefusedError, match="no such checkpoint here"):
        make_pool(["."])["../checkpoint"]
    pool = make_pool(["."], any_name=True)
    assert pool["../checkpoint"] is not pool["."]
    with pytest.raises(RefusedError, match="neither a folder nor a model"):
        pool["nowhere"]


def test_the_least_recently_used_checkpoint_is_closed_after_its_callers(make_pool, photo):
    pool = make_pool([".", "./", "./."], capacity=2)
    first, second = pool["."], pool["./"]
    assert pool["."] is first
    pool["./."]
    assert pool["."] is first
    wait_until(lambda: not second.is_running)
    assert first.is_running
    with pytest.raises(ClosedError, match="take it from its ServicePool again"):
        second(photo, QUICK)
    assert list(second.stream(photo, Decoding("greedy", max_words=6)))
    assert pool.caption("./", photo, QUICK).captions == first(photo, QUICK).captions


@pytest.fixture
def slow_pool(checkpoint):
    """A pool of `.` and of `slow`, which loads when the gate is opened, or fails; and the names loaded so far."""
    gate, loaded, failures = Gate(), [], []

    def load(name):
        loaded.append(name)
        if name == "slow":
            gate.reached.set()
            assert gate.opened.wait(60)
        if failures:
            raise failures.pop()
        return Captioner.from_pretrained(checkpoint)

    pool = ServicePool([".", "slow"], load)
    yield pool, gate, loaded, failures
    gate.opened.set()
    pool.close()


def test_a_checkpoint_that_is_being_loaded_delays_nobody_else_and_is_loaded_once(slow_pool, photo):
    pool, gate, loaded, _ = slow_pool
    pool["."]
    with ThreadPoolExecutor(4) as callers:
        waiting = [callers.submit(pool.__getitem__, "slow") for _ in range(3)]
        assert gate.reached.wait(60)
        assert callers.submit(pool.caption, ".", photo, QUICK).result(20).captions
        assert not any(each.done() for each in waiting)
        gate.opened.set()
        assert len({each.result(20) for each in waiting}) == 1
    assert loaded == [".", "slow"]


def test_a_load_that_fails_is_refused_to_all_who_wait_and_tried_again_by_the_next(slow_pool, photo):
    pool, gate, loaded, failures = slow_pool
    failures.append(OSError("the connection was\nclosed"))
    with ThreadPoolExecutor(2) as callers:
        waiting = [callers.submit(pool.__getitem__, "slow") for _ in range(2)]
        assert gate.reached.wait(60)
        time.sleep(0.1)  # until both wait
        gate.opened.set()
        for each in waiting:
            with pytest.raises(RefusedError, match=r"^the connection was closed$"):
                each.result(20)
    assert pool.caption("slow", photo, QUICK).captions
    assert loaded == ["slow", "slow"]


def test_names_that_can_not_be_loaded_close_no_checkpoint(make_pool):
    pool = make_pool(["."], any_name=True, capacity=1)
    service = pool["."]
    with pytest.raises(RefusedError):
        pool["nowhere"]
    assert pool["."] is service


def test_closing_a_pool_waits_for_what_is_being_loaded(slow_pool):
    pool, gate, *_ = slow_pool
    with ThreadPoolExecutor(2) as callers:
        loading = callers.submit(pool.__getitem__, "slow")
        assert gate.reached.wait(60)
        closing = callers.submit(pool.close)
        gate.opened.set()
        closing.result(20)
        assert not loading.result(20).is_running
