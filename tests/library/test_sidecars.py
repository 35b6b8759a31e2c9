import pytest

from hf_gru_captioner.library.changes import Change
from hf_gru_captioner.library.sidecars import TextSidecars


@pytest.fixture
def photos(tmp_path):
    return [str(tmp_path / name) for name in ("a.jpg", "b.png", "b.jpg")]


def test_captions_stand_beside_the_photo_one_a_line(photos, tmp_path):
    changes = TextSidecars(photos).keep(photos[0], ["a dog", "two\ndogs ß"])
    assert (tmp_path / "a.txt").read_text("utf-8") == "a dog\ntwo dogs ß\n"
    assert changes == [Change(tmp_path / "a.txt", "text", "", "a dog\ntwo dogs ß\n")]


@pytest.mark.parametrize(
    ("existing", "after", "is_taken"),
    [("skip", "mine", True), ("overwrite", "a dog\n", False), ("append", "mine\na dog\n", False)],
)
def test_a_text_that_is_there_is_kept_replaced_or_added_to(photos, tmp_path, existing, after, is_taken):
    (tmp_path / "a.txt").write_text("mine")
    place = TextSidecars(photos, existing)
    assert place.is_taken(photos[0]) == is_taken
    assert not place.is_taken(photos[1])
    for _ in range(2):  # a second run, after a kill for one, adds nothing
        place.keep(photos[0], ["a dog"])
        assert (tmp_path / "a.txt").read_text() == after
    assert place.keep(photos[0], ["a dog"]) == []


def test_a_dry_run_tells_what_would_be_written(photos, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    changes = TextSidecars(photos, "overwrite").keep(photos[0], ["a dog"], dry_run=True)
    assert changes == [Change(tmp_path / "a.txt", "text", "mine", "a dog\n")]
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_photos_that_would_share_a_text_are_told(photos, tmp_path):
    place = TextSidecars(photos)
    place.keep(photos[1], ["a cat"])
    with pytest.raises(ValueError, match=r"b\.jpg: .*b\.txt belongs to .*b\.png"):
        place.keep(photos[2], ["a dog"])
    assert (tmp_path / "b.txt").read_text() == "a cat\n"


def test_a_text_of_another_encoding_and_an_address_are_refused(photos, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text; it is unchanged"):
        TextSidecars(photos, "append").keep(photos[0], ["a dog"])
    with pytest.raises(ValueError, match="is a URL: there is no folder"):
        TextSidecars([]).keep("https://x.org/a.jpg", ["a dog"])
