from pathlib import Path

import pytest

from hf_gru_captioner.training import save_whole


class Part:
    def __init__(self, text, fails=False):
        self.text, self.fails = text, fails

    def save_pretrained(self, save_directory):
        (Path(save_directory) / "part").write_text(self.text)
        if self.fails:
            raise OSError("No space left on device")


def test_a_checkpoint_replaces_the_one_before(tmp_path):
    for text in ("first", "second"):
        save_whole(tmp_path / "checkpoint", Part(text))
        assert (tmp_path / "checkpoint" / "part").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_the_one_before_whole(tmp_path):
    save_whole(tmp_path / "checkpoint", Part("first"))
    with pytest.raises(OSError, match="No space left"):
        save_whole(tmp_path / "checkpoint", Part("second", fails=True))
    assert (tmp_path / "checkpoint" / "part").read_text() == "first"
    save_whole(tmp_path / "checkpoint", Part("third"))
    assert (tmp_path / "checkpoint" / "part").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_run_killed_between_the_two_renames_loses_nothing(tmp_path):
    save_whole(tmp_path / "checkpoint", Part("first"))
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    with pytest.raises(OSError, match="No space left"):
        save_whole(tmp_path / "checkpoint", Part("second", fails=True))
    assert (tmp_path / "checkpoint" / "part").read_text() == "first"
