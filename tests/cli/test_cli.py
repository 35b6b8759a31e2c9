import errno
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.cli.shell import guarded


@pytest.fixture
def photos(make_photo, tmp_path):
    """A folder of three photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(["a.png", "b.JPG", "c.webp"]):
        make_photo(seed).save(folder / name)
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture
def run(checkpoint, capsys):
    """Runs `gru-captioner caption` with the tiny checkpoint -> exit code, lines of output, lines of errors."""

    def run(*arguments):
        capsys.readouterr()  # what the test has printed so far
        code = main(["caption", "--checkpoint", str(checkpoint), *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run


def test_files_folders_and_patterns_are_captioned_in_order_each_once(run, photos, checkpoint):
    captioner = Captioner.from_pretrained(checkpoint)
    expected = [f"{photos / name}: {captioner(photos / name).text}" for name in ("a.png", "b.JPG", "c.webp")]
    assert run(photos) == (0, expected, [])
    assert run(photos / "*.png", photos / "b.JPG", photos) == (0, expected, [])
    assert run(photos / "*", "--batch-size", 1)[1][:2] == expected[:2]


def test_json_has_one_object_a_line(run, photos, checkpoint):
    (photos / "d.jpg").write_text("not a photo")
    code, lines, errors = run(photos, "--json")
    rows = [json.loads(line) for line in lines]
    assert code == 2
    assert errors == []
    assert [set(row) for row in rows] == [{"path", "caption", "score"}] * 3 + [{"path", "error"}]
    caption = Captioner.from_pretrained(checkpoint)(photos / "a.png")
    assert rows[0]["caption"] == caption.text
    assert rows[0]["score"] == pytest.approx(caption.score, abs=1e-4)
    assert "d.jpg is not an image" in rows[3]["error"]


def test_a_photo_that_cannot_be_read_is_reported_and_the_rest_go_on(run, photos):
    content = (photos / "b.JPG").read_bytes()
    (photos / "b.JPG").write_bytes(content[: len(content) // 2])
    code, lines, errors = run(photos)
    assert code == 2
    assert len(lines) == 2
    assert len(errors) == 1
    assert "b.JPG can't be read" in errors[0]


def test_several_captions_come_best_first(run, photos):
    code, lines, _ = run(photos / "a.png", "--num-captions", 3, "--num-beams", 4, "--json")
    scores = [json.loads(line)["score"] for line in lines]
    assert code == 0
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_attention_pictures_are_drawn(run, photos, tmp_path):
    code, _, _ = run(photos, "--attention", tmp_path / "drawn" / "here")
    assert code == 0
    drawn = sorted((tmp_path / "drawn" / "here").iterdir())
    assert [path.name for path in drawn] == [f"{name}.attention.png" for name in ("a.png", "b.JPG", "c.webp")]
    assert Image.open(drawn[0]).size[0] > 300


def test_photos_of_the_same_name_keep_a_picture_each(run, photos, make_photo, tmp_path):
    (tmp_path / "others").mkdir()
    make_photo(9).save(tmp_path / "others" / "a.png")
    assert run(photos / "a.png", tmp_path / "others", "--attention", tmp_path / "drawn")[0] == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"a.png.attention.png", "a.png.2.attention.png"}


def test_a_checkpoint_without_attention_has_nothing_to_draw(run, photos, make_model, checkpoint, tmp_path):
    make_model(attention_type="none").save_pretrained(checkpoint)
    code, _, errors = run(photos, "--attention", tmp_path / "drawn")
    assert code == 2
    assert "no attention to draw" in errors[0]
    assert not (tmp_path / "drawn").exists()


def test_folders_inside_a_folder_are_no_photos(run, photos):
    (photos / "more.jpg").mkdir()
    assert run(photos)[0] == 0


def test_file_names_that_no_terminal_can_show_are_captioned(photos, checkpoint):
    os.rename(photos / "a.png", os.fsencode(photos) + b"/\xff.png")
    command = [sys.executable, "-m", "hf_gru_captioner.cli", "caption", "--checkpoint", str(checkpoint), str(photos)]
    for flags in ([], ["--json"]):
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, check=True)
        assert len(process.stdout.splitlines()) == 3
        assert "udcff" in process.stdout


def test_addresses_with_a_question_mark_are_no_patterns(run):
    code, _, errors = run("http://127.0.0.1:9/photo.jpg?size=1")
    assert code == 2
    assert "photo.jpg?size=1 can't be fetched" in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/nowhere.jpg"], "nowhere.jpg: no such file"),
        (["{folder}/notes.txt"], "notes.txt is not an image"),
        ([""], "an empty path"),
        (["http://[::1/x.jpg"], "can't be fetched"),
        (["~nobody-of-that-name/x.jpg"], "no such file"),
        (["{folder}/*.bmp"], "no file matches"),
        (["{empty}"], "no images in this folder"),
        (["{folder}", "--num-captions", "5", "--num-beams", "2"], "add --num-beams 5"),
        (["{folder}", "--checkpoint", "{empty}"], "is not a checkpoint"),
        (["{folder}", "--checkpoint", "{empty}/nowhere"], "neither a folder nor a model"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(run, photos, tmp_path, arguments, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    code, lines, errors = run(*(each.format(folder=photos, empty=empty) for each in arguments))
    assert (code, lines) == (2, [])
    assert len(errors) == 1
    assert message in errors[0]


def test_a_vocabulary_that_does_not_fit_ends_in_one_line(run, photos, checkpoint):
    config = json.loads((checkpoint / "tokenizer.json").read_text())
    last = max(config["model"]["vocab"], key=config["model"]["vocab"].get)
    del config["model"]["vocab"][last]
    (checkpoint / "tokenizer.json").write_text(json.dumps(config))
    code, _, errors = run(photos)
    assert code == 2
    assert len(errors) == 1
    assert "they are not of one checkpoint" in errors[0]


@pytest.mark.parametrize(("code", "is_told"), [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EACCES, False)])
def test_who_has_no_room_is_told_what_to_do(capsys, code, is_told):
    def command(_):
        raise OSError(code, os.strerror(code), "scores.json")

    assert guarded(command, None) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gru-captioner: ")
    assert os.strerror(code) in line
    assert ("Make room and run the same command again" in line) == is_told


def test_a_missing_extra_is_named_with_the_way_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["train", "--data.source", "x", "--output_dir", "y"]) == 2
    assert 'accelerate is not installed: pip install "hf_gru_captioner[train]"' in capsys.readouterr().err
