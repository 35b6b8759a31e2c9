"""Many photos at once: the same captions, in order, even with bad files among them."""

import itertools
import threading

import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.inference.prefetch import caption_all


@pytest.fixture
def captioner(checkpoint):
    return Captioner.from_pretrained(checkpoint)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_captions_are_those_of_one_by_one(captioner, make_photo, batch_size):
    photos = [make_photo(seed, width=50 + seed) for seed in range(7)]
    found = list(caption_all(captioner, photos, batch_size=batch_size, num_captions=2))
    expected = [captioner(photo, num_captions=2) for photo in photos]
    assert [[each.text for each in of_photo] for of_photo in found] == [
        [each.text for each in of_photo] for of_photo in expected
    ]


def test_what_can_not_be_read_keeps_its_place(captioner, make_photo, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    sources = [tmp_path / "nowhere.jpg", make_photo(1), tmp_path / "torn.jpg", make_photo(2)]
    found = list(caption_all(captioner, sources, batch_size=2))
    for each, kind in zip(found, (FileNotFoundError, list, ValueError, list), strict=True):
        assert isinstance(each, kind)
    assert found[3][0].text == captioner(make_photo(2)).text
    empty = list(caption_all(captioner, [None, make_photo(2), {"bytes": None, "path": None}], batch_size=2))
    assert [type(each) for each in empty] == [TypeError, list, TypeError]
    assert all(isinstance(each, ValueError) for each in caption_all(captioner, [b"", b"x"], batch_size=2))


def test_photos_are_taken_when_they_are_needed(captioner, make_photo):
    taken = itertools.count()
    photo = make_photo()
    endless = (photo for _ in taken)
    found = list(itertools.islice(caption_all(captioner, endless, batch_size=2), 10))
    assert len(found) == 10
    assert next(taken) < 25


def test_no_thread_outlives_a_reader_who_has_seen_enough(captioner, make_photo):
    before = threading.active_count()
    results = caption_all(captioner, itertools.repeat(make_photo()), batch_size=2)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_a_mistake_of_the_search_is_not_taken_for_a_photo(captioner, make_photo):
    with pytest.raises(ValueError, match="num_beams"):
        list(caption_all(captioner, [make_photo()], num_captions=3, num_beams=2))
