from pathlib import Path

import pytest
from safetensors import SafetensorError

from hf_gru_captioner.training import TrainingStates, checkpoints, save_whole


class Part:
    def __init__(self, text, fails=None):
        self.text, self.fails = text, fails

    def save_pretrained(self, save_directory):
        (Path(save_directory) / "part").write_text(self.text)
        if self.fails:
            raise self.fails("No space left on device")


def test_a_checkpoint_replaces_the_one_before(tmp_path):
    for text in ("first", "second"):
        save_whole(tmp_path / "checkpoint", Part(text))
        assert (tmp_path / "checkpoint" / "part").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("error", [OSError, RuntimeError, SafetensorError])
def test_a_failed_save_leaves_the_one_before_whole(tmp_path, error):
    save_whole(tmp_path / "checkpoint", Part("first"))
    with pytest.raises(OSError, match=r"No space left .* The previous one, .*checkpoint, is intact: make room"):
        save_whole(tmp_path / "checkpoint", Part("second", fails=error))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (tmp_path / "checkpoint" / "part").read_text() == "first"
    save_whole(tmp_path / "checkpoint", Part("third"))
    assert (tmp_path / "checkpoint" / "part").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_run_killed_between_the_two_renames_loses_nothing(tmp_path):
    save_whole(tmp_path / "checkpoint", Part("first"))
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    with pytest.raises(OSError, match="No space left"):
        save_whole(tmp_path / "checkpoint", Part("second", fails=OSError))
    assert (tmp_path / "checkpoint" / "part").read_text() == "first"


class Alone:
    """A single process that saves the given state."""

    is_local_main_process = True

    def wait_for_everyone(self):
        pass


@pytest.fixture
def states(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "gather_object", lambda objects: objects)
    return TrainingStates(tmp_path / "state", "this run", Alone())


def write(folder):
    (folder / "weights").write_text("12345")
    (folder / "more").mkdir()
    (folder / "more" / "generators").write_text("678")


def test_the_newest_state_is_found_and_old_ones_are_dropped(states, tmp_path):
    assert states.newest() is None
    for step in (5, 10, 15, 100):
        states.save(step, write)
    assert states.newest() == (100, tmp_path / "state" / "step-00000100")
    assert [path.name for path in sorted((tmp_path / "state").iterdir())] == ["step-00000015", "step-00000100"]


@pytest.mark.parametrize(
    ("tear", "problem"),
    [
        (lambda folder: (folder / "weights").write_text("1234"), "weights is damaged"),
        (lambda folder: (folder / "weights").write_text("12346"), "weights is damaged"),
        (lambda folder: (folder / "more" / "generators").unlink(), "generators is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_state_is_named_and_the_one_before_taken(states, tmp_path, caplog, tear, problem):
    states.save(5, write)
    states.save(10, write)
    tear(tmp_path / "state" / "step-00000010")
    assert states.newest()[0] == 5
    assert f"step-00000010 is skipped: {problem}" in caplog.text
    states.save(10, write)  # the run comes by again
    assert states.newest()[0] == 10


def test_a_state_of_another_run_is_named_and_skipped(states, tmp_path, caplog):
    states.save(5, write)
    states.run = "another run"
    assert states.newest() is None
    assert "it belongs to another run" in caplog.text


@pytest.mark.parametrize("error", [OSError, RuntimeError, SafetensorError])
def test_a_full_disk_is_told_in_a_clear_line_and_the_state_before_stays(states, tmp_path, error):
    def fill_the_disk(folder):
        write(folder)
        raise error("No space left on device")

    with pytest.raises(OSError, match=r"after step 5 can't be written .*No space left.* There is no earlier one"):
        states.save(5, fill_the_disk)
    states.save(5, write)
    with pytest.raises(OSError, match=r"step-00000005 is intact: make room and run the same command again"):
        states.save(10, fill_the_disk)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000005"]
    assert states.newest()[0] == 5


def test_leftovers_of_a_killed_save_are_no_states(states, tmp_path):
    states.save(5, write)
    (tmp_path / "state" / "step-00000010.partial").mkdir()
    assert states.newest()[0] == 5
    states.save(10, write)
    assert not (tmp_path / "state" / "step-00000010.partial").exists()


def test_machines_write_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUP_RANK", "1")
    assert TrainingStates(tmp_path / "state", "", Alone()).folder == tmp_path / "state-machine-1"
