import subprocess
import sys

import pytest
from PIL import Image

from hf_gru_captioner import raw_photos
from hf_gru_captioner.model import load_image


@pytest.fixture
def raw(tmp_path, write_dng):
    """A raw file taken in portrait orientation."""
    preview = Image.new("RGB", (320, 240), "blue")
    write_dng(tmp_path / "a.dng", Image.new("RGB", (16, 12), "red"), preview, 6)
    return tmp_path / "a.dng"


def test_the_preview_comes_as_load_image_gives_it(raw, tmp_path):
    (tmp_path / "a.jpg").write_bytes(raw_photos.preview_of(raw))
    found = load_image(tmp_path / "a.jpg")
    assert found.size == load_image(raw).size == (240, 320)
    assert found.getpixel((9, 9)) == load_image(raw).getpixel((9, 9))


def test_a_large_preview_is_made_smaller(tmp_path, write_dng):
    write_dng(tmp_path / "a.dng", Image.new("RGB", (16, 12)), Image.new("RGB", (6000, 3000)))
    (tmp_path / "a.jpg").write_bytes(raw_photos.preview_of(tmp_path / "a.dng"))
    assert load_image(tmp_path / "a.jpg").size == (raw_photos.MAX_SIDE, raw_photos.MAX_SIDE // 2)


def test_what_is_no_raw_file_is_unreadable(tmp_path):
    (tmp_path / "a.nef").write_bytes(b"II*\0" + bytes(1000))
    with pytest.raises(raw_photos.UnreadableError, match=r"a\.nef can't be read"):
        raw_photos.preview_of(tmp_path / "a.nef")


def test_a_file_that_takes_too_long_is_given_up(raw, monkeypatch):
    monkeypatch.setattr(raw_photos, "SECONDS", 0.01)
    with pytest.raises(raw_photos.UnreadableError):
        raw_photos.preview_of(raw)


@pytest.mark.parametrize(
    ("limit", "code"), [("MAX_MEMORY = 1 << 20", "1"), ("SECONDS = 0", "-24"), ("SECONDS = 20", "0")]
)
def test_a_file_that_takes_too_much_is_cut_off(raw, limit, code):
    """Without memory, or by SIGXCPU."""
    program = f"from hf_gru_captioner import raw_photos; raw_photos.{limit}; raw_photos._main({str(raw)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert str(done.returncode) == code
