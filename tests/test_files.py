import hashlib
from pathlib import Path

import pytest

from hf_gru_captioner.files import atomic_folder, atomic_path, distinct_names, sha256_of, write_atomically


def test_a_file_is_written_and_nothing_is_left_beside_it(tmp_path):
    write_atomically(tmp_path / "text", "née")
    assert (tmp_path / "text").read_bytes() == "née".encode()
    write_atomically(tmp_path / "text", b"bytes", writer="process-7")
    assert (tmp_path / "text").read_bytes() == b"bytes"
    assert list(tmp_path.iterdir()) == [tmp_path / "text"]


def test_names_of_files_are_distinct_and_not_too_long():
    names = distinct_names(["a", "b", "a", "a.2", "a", "ü" * 300, "ü" * 200])
    assert names[:5] == ["a", "b", "a.2", "a.2.2", "a.3"]
    assert names[5:] == ["ü" * 100, "ü" * 100 + ".2"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "text"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_write_the_same_file_do_not_mix_their_content(tmp_path):
    path = tmp_path / "text"
    with atomic_path(path, "a") as first, atomic_path(path, "b") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


def test_names_as_long_as_a_file_system_takes_are_written(tmp_path):
    for name in ("a" * 255, "é" * 127):
        write_atomically(tmp_path / name, "here")
        assert (tmp_path / name).read_text() == "here"


def fill(folder, text):
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text(text)


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "folder") as temporary:
            fill(temporary, text)
        assert (tmp_path / "folder" / "inner" / "file").read_text() == text
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_folder_that_is_not_finished_leaves_the_one_before(tmp_path):
    with atomic_folder(tmp_path / "folder") as temporary:
        fill(temporary, "first")

    def write_half():
        with atomic_folder(tmp_path / "folder") as temporary:
            fill(temporary, "second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_second_rename_that_fails_puts_the_folder_before_back(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    with atomic_folder(folder) as temporary:
        fill(temporary, "first")
    rename = Path.rename

    def fail(path, target):
        if path.name.endswith(".partial"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), atomic_folder(folder) as temporary:
        fill(temporary, "second")
    assert (folder / "inner" / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_kill_between_the_two_renames_leaves_is_put_right(tmp_path):
    (tmp_path / "folder.old").mkdir()
    fill(tmp_path / "folder.old", "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "old"


def test_the_digest_is_that_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
