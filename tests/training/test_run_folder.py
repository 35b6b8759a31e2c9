import subprocess
import sys
from pathlib import Path

import pytest

from hf_gru_captioner.training import run_folder

HOLD = """
import importlib.util, sys, time
from hf_gru_captioner.training import run_folder
from pathlib import Path
with run_folder.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that locks the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_run_is_told_who_holds_the_folder_and_the_first_never_notices(other, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for _ in range(2):
        said = f"held by another run, process {other.pid} on .* since 20"
        with pytest.raises(run_folder.FolderHeldError, match=said), run_folder.hold(tmp_path / "run"):
            pass
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert other.poll() is None


def test_a_killed_run_holds_nothing(other, tmp_path):
    other.kill()
    other.wait()
    with run_folder.hold(tmp_path / "run"):
        assert (tmp_path / "run" / run_folder.HOLDER).read_text().startswith("process ")
    assert not (tmp_path / "run" / run_folder.HOLDER).exists()


def test_it_is_let_go_when_the_run_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), run_folder.hold(tmp_path):
            raise ZeroDivisionError


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    Path(tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), run_folder.hold(tmp_path / "file"):
        pass
