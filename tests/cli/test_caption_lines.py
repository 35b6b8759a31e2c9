"""caption --output: a file that is whole after any kill, and that the same command completes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hf_gru_captioner.cli.caption_lines import LinesFile

from hf_gru_captioner.cli import main
from hf_gru_captioner.errors import UsageError


@pytest.fixture
def photos(tmp_path, make_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        make_photo(number).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def command(photos, checkpoint, tmp_path):
    return ["caption", str(photos), "--checkpoint", str(checkpoint), "--batch-size", "2", "--num-captions", "2"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_holds_what_would_be_printed(command, tmp_path, capsys):
    file = tmp_path / "new" / "captions.jsonl"
    assert main([*command, "--json"]) == 2
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*command, "--output", str(file)]) == 2
    assert "9 images, 1 of them could not be read" in capsys.readouterr().out
    assert read(file) == printed
    assert [path.name for path in file.parent.iterdir()] == ["captions.jsonl"]


@pytest.mark.parametrize("cut", [0, 1, 60, 200, 333, 500, 777])
def test_any_torn_file_is_completed(command, tmp_path, monkeypatch, cut):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    whole = file.read_bytes()
    assert cut < len(whole)
    file.unlink()
    Path(f"{file}.part-1").write_bytes(whole[:cut])  # of one of two processes
    captioned = []
    from hf_gru_captioner.captioner import Captioner

    load = Captioner.load_image
    monkeypatch.setattr(Captioner, "load_image", lambda self, path: captioned.append(path) or load(self, path))
    assert main([*command, "--output", str(file)]) == 2
    assert read(file) == read_bytes(whole)
    done = {record["path"] for record in read_bytes(whole[: whole[:cut].rfind(b"\n") + 1])}
    assert len(captioned) >= 9 - len(done)
    assert len(captioned) <= 9 - len(done) + 1  # the one whose second line was torn
    assert [path.name for path in tmp_path.glob("captions*")] == ["captions.jsonl"]


def read_bytes(lines: bytes):
    return [json.loads(line) for line in lines.splitlines()]


def test_photos_of_an_earlier_command_stay(command, photos, tmp_path):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    first = read(file)
    other = photos.parent / "other.png"
    other.write_bytes((photos / "0.png").read_bytes())
    command[1] = str(other)
    assert main([*command, "--output", str(file)]) == 0
    assert read(file)[: len(first)] == first
    assert [record["path"] for record in read(file)[len(first) :]] == [str(other)] * 2


def test_a_file_of_something_else_is_not_written_over(command, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("mine\nall mine\n")
    assert main([*command, "--output", str(file)]) == 2
    assert "line 1: not a line of captions" in capsys.readouterr().err
    assert file.read_text() == "mine\nall mine\n"


def test_names_of_bytes_that_are_no_text_survive(tmp_path):
    file = LinesFile(tmp_path / "lines", 0, 1)
    path = os.fsdecode(b"a\xff\n.png")
    file.write(path, [{"path": path, "caption": "ä"}])
    file.close()
    assert file.gather([path]) == {path: [{"path": path, "caption": "ä"}]}


def test_several_processes_want_a_file(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert "add --output FILE" in capsys.readouterr().err


def test_a_line_of_no_photo_is_refused(tmp_path):
    (tmp_path / "lines").write_text('{"path": "a", "caption": "b"}\n[]\n')
    with pytest.raises(UsageError, match="line 2"):
        LinesFile(tmp_path / "lines", 0, 1)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_file(command, tmp_path):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    whole = file.read_bytes()
    file.unlink()
    chance = random.Random(0)
    arguments = [sys.executable, "-m", "hf_gru_captioner.cli", *command, "--output", str(file)]
    for _ in range(3):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob("captions.jsonl*")):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main([*command, "--output", str(file)]) == 2
    assert file.read_bytes() == whole
