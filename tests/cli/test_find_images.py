import errno
import os

import pytest
from PIL import Image

from hf_gru_captioner.cli.find_images import find_images
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.model import image_loading_gru_captioner as image_loading


@pytest.fixture
def library(tmp_path):
    """A library of empty files; only names matter here."""
    for name in (
        *("a.jpg", "b.JPG", "notes.txt", "._a.jpg", ".hidden.png", "film.mp4", "old.mpg"),
        *("2024/c.png", "2024/trip/d.webp", "2024/trip/e.HEIC", ".cache/f.jpg", "2024/@eaDir/g.jpg"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def plain(monkeypatch):
    """An install without the extra that reads more formats."""
    monkeypatch.setattr(image_loading, "is_installed", lambda package: False)
    monkeypatch.setattr("hf_gru_captioner.cli.find_images.is_installed", lambda package: False)
    Image.init()  # another test of this process may have registered the readers
    extra = {ending for endings in image_loading.EXTRA_READERS.values() for ending in endings}
    known = {ending: name for ending, name in Image.EXTENSION.items() if ending not in extra}
    monkeypatch.setattr(Image, "EXTENSION", known)


def names(found, folder):
    return [os.path.relpath(path, folder) for path in found.paths]


def test_subfolders_are_read_when_asked_for_and_hidden_files_never(library):
    found = find_images([str(library)], recursive=True)
    assert names(found, library) == ["a.jpg", "b.JPG", "2024/c.png", "2024/trip/d.webp", "2024/trip/e.HEIC"]
    assert (found.problems, found.summary()) == ([], [])
    hidden = [str(library / "._a.jpg"), str(library / ".cache")]  # what is named is meant
    assert find_images(hidden).paths == [hidden[0], str(library / ".cache" / "f.jpg")]


def test_what_lies_deeper_is_counted(library):
    found = find_images([str(library)])
    assert names(found, library) == ["a.jpg", "b.JPG"]
    assert found.summary() == [f"{library}: 3 photos lie deeper: add --recursive"]
    (library / "2024" / "c.png").rename(library / "2024" / "trip" / "c.png")
    found = find_images([str(library / "2024")])
    assert (found.paths, found.problems) == ([], [])
    assert found.summary() == [f"{library / '2024'}: 3 photos lie deeper: add --recursive"]


def test_a_large_tree_is_not_walked_to_its_end_for_a_hint(library, monkeypatch):
    for folder in range(20):
        (library / "2025" / f"{folder}").mkdir(parents=True)
        for number in range(10):
            (library / "2025" / f"{folder}" / f"{number}.jpg").touch()
    scandir, opened = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda folder: opened.append(folder) or scandir(folder))
    monkeypatch.setattr("hf_gru_captioner.cli.find_images.MAX_COUNTED", 60)
    (line,) = find_images([str(library)]).summary()
    assert line.startswith(f"{library}: at least ")
    assert line.endswith(" photos lie deeper: add --recursive")
    assert 0 < len(opened) < 12


def test_subfolders_that_are_not_searched_may_be_unreadable(library, monkeypatch):
    def refuse(call):
        def guarded(folder):  # as the system does, but for the superuser
            if str(folder).endswith("trip"):
                raise PermissionError(errno.EACCES, "Permission denied", folder)
            return call(folder)

        return guarded

    monkeypatch.setattr(os, "listdir", refuse(os.listdir))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    found = find_images([str(library)])
    assert names(found, library) == ["a.jpg", "b.JPG"]
    assert (found.problems, found.summary()) == ([], [f"{library}: 1 photo lies deeper: add --recursive"])


def test_formats_that_cannot_be_read_are_counted_and_named(library, plain):
    for name in ("x.heic", "y.heic", "z.dng", "drawing.svg"):
        (library / name).touch()
    found = find_images([str(library)], recursive=True)
    assert names(found, library) == ["a.jpg", "b.JPG", "2024/c.png", "2024/trip/d.webp"]
    assert found.summary() == [
        "5 left out: 3 HEIC, 1 SVG, 1 DNG; pip install pillow-heif pillow-jxl-plugin rawpy reads HEIC, DNG"
    ]
    assert find_images([str(library)]).left_out.total() == 4  # not those deeper


def test_paths_stay_relative_as_they_were_given(library, monkeypatch):
    monkeypatch.chdir(library)
    assert find_images(["."], recursive=True).paths[:3] == ["a.jpg", "b.JPG", "2024/c.png"]
    assert find_images(["2024/"], recursive=True).paths[0] == "2024/c.png"
    assert find_images(["*.jpg", "a.jpg", "./2024"]).paths == ["a.jpg", "2024/c.png"]
    assert find_images(["2024/tr*"]).paths == ["2024/trip/d.webp", "2024/trip/e.HEIC"]  # a pattern of folders


def test_what_matches_nothing_is_told_and_the_rest_is_found(library):
    (library / "empty").mkdir()
    found = find_images([str(library / "*.bmp"), str(library / "empty"), str(library / "a.jpg"), "nowhere.jpg"])
    assert found.paths == [str(library / "a.jpg"), "nowhere.jpg"]  # which fails when it is loaded
    assert found.problems == [
        f"{library / '*.bmp'}: no file matches.",
        f"{library / 'empty'}: no images in this folder.",
    ]
    with pytest.raises(UsageError, match="an empty path"):
        find_images(["a.jpg", ""])


def test_folders_that_are_linked_in_a_circle_are_read_once(library):
    (library / "2024" / "trip" / "up").symlink_to(library)
    (library / "2024" / "again").symlink_to(library / "2024" / "trip")
    (library / "loop.jpg").symlink_to("loop.jpg")
    found = find_images([str(library)], recursive=True)
    assert len(found.paths) == 5
    assert sum("d.webp" in path for path in found.paths) == 1


def test_a_folder_that_may_not_be_read_is_told(library, monkeypatch):
    listdir = os.listdir

    def guarded(folder):  # as the system does, but for the superuser
        if str(folder).endswith("2024"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", guarded)
    found = find_images([str(library)], recursive=True)
    assert names(found, library) == ["a.jpg", "b.JPG"]
    assert found.problems == [f"{library / '2024'} can't be read: Permission denied."]
