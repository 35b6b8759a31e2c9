"""caption --output and --write: an output file that stays correct and survives kills, and texts beside photos."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas
import pyarrow.parquet
import pyexiv2
import pytest

from hf_gru_captioner.captioner import Captioner
from hf_gru_captioner.cli import main

ENDINGS = ("jsonl", "csv", "parquet")


@pytest.fixture
def photos(tmp_path, make_photo):
    """Eight photos in nested folders, and a file that is not a photo."""
    folder = tmp_path / "photos"
    for number in range(9):
        file = folder / ("" if number < 4 else "deep" if number < 7 else "deep/er") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        make_photo(number).save(file)
    (folder / "deep" / "4.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def command(photos, checkpoint):
    settings = checkpoint / "generation_config.json"
    config = json.loads(settings.read_text())
    config["suppress_tokens"] = [config["eos_token_id"]]  # no caption is empty
    settings.write_text(json.dumps(config))
    return ["caption", str(photos), "--recursive", "--checkpoint", str(checkpoint), "--batch-size", "2"]


@pytest.fixture
def captioned(monkeypatch):
    """Names of the photos that were loaded to be captioned."""
    names = []
    load = Captioner.load_image
    monkeypatch.setattr(Captioner, "load_image", lambda self, path: names.append(Path(path).name) or load(self, path))
    return names


def read(path: Path) -> list[dict]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [{name: cell for name, cell in row.items() if cell is not None} for row in rows]


def texts(rows: list[dict]) -> list[tuple]:
    return [(row["path"], row.get("caption"), row.get("error")) for row in rows]


def test_the_file_holds_what_would_be_printed_and_of_which_photo_and_checkpoint(command, tmp_path, capsys, checkpoint):
    file = tmp_path / "new" / "captions.jsonl"
    assert main([*command, "--num-captions", "2", "--json"]) == 2
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*command, "--num-captions", "2", "--output", str(file)]) == 2
    assert f"written: {file}, 9 images, 1 of them could not be read" in capsys.readouterr().out
    rows = read(file)
    told = [{name: row.pop(name) for name in ("photo_version", "made_by")} for row in rows]
    assert rows == printed
    size = os.path.getsize(rows[0]["path"])
    assert told[0]["photo_version"].startswith(f"{size} bytes, 20")
    fingerprint = Captioner.from_pretrained(checkpoint).fingerprint
    assert told[0]["made_by"] == f"checkpoint {fingerprint}, num_beams 2, num_captions 2"
    assert [path.name for path in file.parent.iterdir()] == ["captions.jsonl"]


def test_all_kinds_of_files_hold_the_same(command, tmp_path):
    for ending in ENDINGS:
        main([*command, "--output", str(tmp_path / f"captions.{ending}")])
    first, *others = [texts(read(tmp_path / f"captions.{ending}")) for ending in ENDINGS]
    assert len(first) == 9
    assert others == [first, first]
    assert (tmp_path / "captions.csv").read_bytes().startswith("\ufeffpath,caption,score,error,".encode())


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_has_a_row_for_each_photo_even_if_there_is_none_of_them(
    checkpoint, make_photo, tmp_path, monkeypatch, capsys, ending
):
    monkeypatch.chdir(tmp_path)
    command = ["caption", "a.png", "b.png", "--checkpoint", str(checkpoint), "--output", f"captions.{ending}"]
    assert main([*command, "--write", "txt", "--dry-run"]) == 2
    assert not Path(f"captions.{ending}").exists()
    capsys.readouterr()
    assert main(command) == 2
    rows = read(Path(f"captions.{ending}"))
    assert [row["path"] for row in rows] == ["a.png", "b.png"]
    assert all(row["path"] in row["error"] for row in rows)
    assert "2 images, 2 of them could not be read" in capsys.readouterr().out
    make_photo().save("b.png")
    assert main(command) == 2
    assert ["error" in row for row in read(Path(f"captions.{ending}"))] == [True, False]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_second_run_tries_again_what_failed_and_what_has_changed(
    command, photos, tmp_path, make_photo, capsys, captioned, ending
):
    file = tmp_path / f"captions.{ending}"
    main([*command, "--output", str(file)])
    first = read(file)
    captioned.clear()
    assert main([*command, "--output", str(file)]) == 2
    assert captioned == ["4.png"]
    assert read(file) == first
    make_photo(4).save(photos / "deep" / "4.png")
    make_photo(77).save(photos / "2.png")
    captioned.clear()
    assert main([*command, "--output", str(file)]) == 0
    assert sorted(captioned) == ["2.png", "4.png"]
    assert "7 of 9 images are captioned; changed since then: 1; tried again: 1" in capsys.readouterr().err
    rows = read(file)
    assert [row["path"] for row in rows] == [row["path"] for row in first]
    assert "error" not in rows[4]
    assert rows[2]["photo_version"] != first[2]["photo_version"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_corrections_and_columns_of_people_stay(command, photos, tmp_path, ending):
    (photos / "deep" / "4.png").unlink()
    file = tmp_path / f"captions.{ending}"
    main([*command, "--output", str(file)])
    rows = [row | {"labels": f"label {number}", "split": "train"} for number, row in enumerate(read(file))]
    rows[1]["caption"] = "my, own"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":  # as a spreadsheet of another country saves it
        with file.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert main([*command, "--output", str(file)]) == 0
    again = read(file)
    assert texts(again) == texts(rows)
    assert [row["labels"] for row in again] == [f"label {number}" for number in range(8)]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--num-captions", "2"], "num_captions 2"),
        (["--num-beams", "1"], "num_beams 1"),
        (["--prefix", "x: "], 'prefix "x: "'),
        (["--begin", "a dog"], 'begin "a dog"'),
    ],
)
def test_captions_of_other_settings_are_refused_or_made_again(command, tmp_path, capsys, options, named):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    before = file.read_bytes()
    capsys.readouterr()
    assert main([*command, *options, "--output", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has captions of 8 of these images by checkpoint" in line
    assert named in line
    assert "add --overwrite" in line
    assert file.read_bytes() == before
    assert list(tmp_path.glob("captions*")) == [file]
    assert main([*command, *options, "--output", str(file), "--overwrite"]) == 2
    assert all(named in row["made_by"] for row in read(file))
    assert len(read(file)) == (17 if named == "num_captions 2" else 9)


def test_captions_of_another_checkpoint_are_noticed(command, checkpoint, make_model, tmp_path, capsys):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    config = (checkpoint / "generation_config.json").read_text()
    make_model(seed=1).save_pretrained(checkpoint)
    (checkpoint / "generation_config.json").write_text(config)
    assert main([*command, "--output", str(file)]) == 2
    assert "by checkpoint" in capsys.readouterr().err


def test_photos_of_an_earlier_command_stay(command, photos, tmp_path):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    first = read(file)
    other = photos.parent / "other.png"
    other.write_bytes((photos / "0.png").read_bytes())
    command[1] = str(other)
    assert main([*command, "--output", str(file)]) == 0
    assert read(file)[: len(first)] == first
    assert [row["path"] for row in read(file)[len(first) :]] == [str(other)]


def test_drawings_that_are_missing_are_drawn(command, photos, tmp_path, captioned):
    file, drawings = tmp_path / "captions.jsonl", tmp_path / "drawn"
    options = ["--output", str(file), "--attention", str(drawings)]
    main([*command, "--output", str(file)])
    main([*command, *options])
    assert len(list(drawings.iterdir())) == 8
    (drawings / "2.png.attention.png").unlink()
    captioned.clear()
    main([*command, *options])
    assert sorted(captioned) == ["2.png", "4.png"]
    assert (drawings / "2.png.attention.png").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.txt", None, "Take .jsonl, .csv or .parquet"),
        ("folder.csv", "", "is a folder: name a file in it"),
        ("notes.jsonl", "mine\nall mine\n", "line 1: not a line of captions"),
        ("notes.csv", "mine\nall mine\n", "line 2: not a line of captions"),
        ("notes.csv", "path,caption\na.jpg,a,b\n", "line 2: more cells than columns"),
        ("notes.csv", b"path,caption\na.jpg,\xff\n", "is not a CSV in UTF-8"),
        ("notes.parquet", "mine", "is not a Parquet file"),
    ],
)
def test_what_is_no_file_of_captions_is_refused_before_work_begins(
    command, tmp_path, capsys, monkeypatch, name, content, message
):
    file = tmp_path / name
    if content == "":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr("hf_gru_captioner.inference.prefetch.caption_all", None)
    assert main([*command, "--output", str(file)]) == 2
    assert message in capsys.readouterr().err
    if content:
        assert file.read_bytes() == (content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("captions.jsonl", {"score": "abc"}, "captions.jsonl, line 2: the score must be a number, found 'abc'"),
        ("captions.jsonl", {"caption": 5}, "captions.jsonl, line 2: the caption must be text, found 5"),
        ("captions.jsonl", {"made_by": ["x"]}, "captions.jsonl, line 2: the made_by must be text, found ['x']"),
        ("captions.csv", {"score": "abc"}, "captions.csv, line 3: the score must be a number, found 'abc'"),
        ("captions.parquet", {"score": "abc"}, "captions.parquet, row 2: the score must be a number, found 'abc'"),
    ],
)
def test_a_damaged_row_is_named(command, photos, tmp_path, capsys, name, line, message):
    file = tmp_path / name
    row = {"path": str(photos / "0.png"), "caption": "a dog"}
    rows = [row, {**row, **line}]
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    elif file.suffix == ".csv":
        pandas.DataFrame(rows).to_csv(file, index=False)
    else:
        pandas.DataFrame(rows).to_parquet(file)
    content = file.read_bytes()
    assert main([*command, "--output", str(file), "--min-score", "-1"]) == 2
    assert message in capsys.readouterr().err
    assert file.read_bytes() == content


def test_nulls_are_as_good_as_nothing(command, photos, tmp_path, capsys, captioned):
    file = tmp_path / "captions.jsonl"
    row = {"path": str(photos / "0.png"), "caption": "a dog", "score": None, "error": None, "made_by": None}
    file.write_text(json.dumps(row | {"label": None}) + "\n")
    assert main([*command, "--output", str(file), "--min-score", "-1"]) == 2
    assert "0.png" not in captioned
    assert read(file)[0] == {"path": row["path"], "caption": "a dog", "label": None}


def test_a_file_that_another_command_writes_is_refused(command, tmp_path, capsys):
    from hf_gru_captioner.library.caption_file import CaptionFile

    other = CaptionFile(tmp_path / "captions.jsonl")
    try:
        assert main([*command, "--output", str(tmp_path / "captions.jsonl")]) == 2
        assert "another command writes" in capsys.readouterr().err
    finally:
        other.close()
    assert main([*command, "--output", str(tmp_path / "captions.jsonl")]) == 2
    assert sorted(path.name for path in tmp_path.glob("captions*")) == ["captions.jsonl"]


def test_several_processes_want_a_file(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert "add --output FILE" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_is_a_source_to_train_on(command, tmp_path, monkeypatch, ending):
    from hf_gru_captioner.data import load_captions

    monkeypatch.chdir(tmp_path)  # to which the paths in the file are relative
    command[1] = "photos"
    main([*command, "--output", f"out/captions.{ending}"])
    rows = [row for split in ("train", "validation") for row in load_captions(f"out/captions.{ending}", split)]
    written = {
        row["path"]: row["caption"] for row in read(tmp_path / "out" / f"captions.{ending}") if "error" not in row
    }
    assert {row["image_id"]: row["captions"][0] for row in rows} == written
    assert len(written) == 8
    assert rows[0]["image"].size == (40, 30)


def test_words_around_a_caption_and_at_its_beginning(command, photos, tmp_path, capsys, checkpoint):
    file = tmp_path / "captions.jsonl"
    command[1] = str(photos / "0.png")
    assert main([*command, "--begin", "a dog", "--prefix", "<", "--suffix", ">", "--output", str(file)]) == 0
    expected = Captioner.from_pretrained(checkpoint)(photos / "0.png", begin="a dog").text
    assert expected.startswith("a dog")
    assert [row["caption"] for row in read(file)] == [f"<{expected}>"]
    assert main([*command, "--begin", "a xyzzy"]) == 2
    assert "a caption can't begin with 'xyzzy'" in capsys.readouterr().err


def test_captions_below_a_score_are_listed_and_not_written(command, photos, tmp_path, capsys):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    scores = sorted(row["score"] for row in read(file) if "score" in row)
    border = (scores[2] + scores[3]) / 2
    capsys.readouterr()
    options = ["--min-score", str(border), "--write", "txt"]
    assert main([*command, *options, "--output", str(file)]) == 2  # of captions that it has
    told = capsys.readouterr().err
    assert main([*command, *options]) == 2
    for lines in (told.splitlines(), capsys.readouterr().err.splitlines()):
        start = next(number for number, line in enumerate(lines) if "3 captions score below" in line)
        assert [float(line.split()[0]) for line in lines[start + 1 : start + 4]] == pytest.approx(scores[:3], abs=0.01)
    assert len(list(photos.rglob("*.txt"))) == 5


def test_texts_are_written_beside_photos_and_into_them_once(command, photos, tmp_path, capsys, captioned):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    captions = {row["path"]: row.get("caption") for row in read(file)}
    captioned.clear()
    writes = ["--write", "txt", "--write", "metadata", "--output", str(file)]
    assert main([*command, *writes]) == 2
    assert captioned == ["4.png"]  # the others have captions
    assert "written: captions of 8 images to txt, metadata" in capsys.readouterr().err
    for path, caption in captions.items():
        if caption is not None:
            assert Path(path).with_suffix(".txt").read_text() == f"{caption}\n"
            with pyexiv2.ImageData(Path(path).read_bytes()) as image:
                assert image.read_xmp()["Xmp.dc.description"] == {'lang="x-default"': caption}
    captioned.clear()
    assert main([*command, *writes]) == 2
    assert captioned == ["4.png"]  # although the files of the others have changed since: it was us
    assert "captions of 0 images to txt, metadata, 8 had texts that stay" in capsys.readouterr().err


def test_without_a_file_photos_that_have_texts_are_passed_over(command, photos, capsys, captioned):
    (photos / "0.txt").write_text("mine\n")
    assert main([*command, "--write", "txt"]) == 2
    assert (photos / "0.txt").read_text() == "mine\n"
    assert "0.png" not in captioned
    assert "captions of 7 images to txt, 1 had texts that stay" in capsys.readouterr().err
    assert main([*command, "--write", "txt", "--append"]) == 2
    assert len((photos / "0.txt").read_text().splitlines()) == 2
    assert main([*command, "--write", "txt", "--overwrite"]) == 2
    assert len((photos / "0.txt").read_text().splitlines()) == 1


def test_a_dry_run_shows_what_would_change_and_writes_nothing(command, photos, tmp_path, capsys):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    options = ["--write", "txt", "--write", "xmp", "--output", str(tmp_path / "captions.jsonl"), "--dry-run"]
    assert main([*command, *options]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith(f'{photos}/0.txt: text "')
    assert f'{photos}/0.png.xmp: alternative text "' in shown.out
    assert len(shown.out.splitlines()) == 3 * 8
    assert "would be written: captions of 8 images to txt, xmp" in shown.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_dry_run_shows_the_texts_that_the_file_has(command, photos, tmp_path, capsys, captioned):
    file = tmp_path / "captions.csv"
    main([*command, "--output", str(file)])
    corrected = file.read_text("utf-8-sig").replace(next(iter(read(file)))["caption"], "a lynx", 1)
    file.write_text(corrected, "utf-8-sig")
    part = tmp_path / "captions.csv.part-0"  # of a killed command
    part.write_text(json.dumps([{"path": str(photos / "1.png"), "caption": "an ocelot"}]) + "\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    captioned.clear()
    capsys.readouterr()
    options = [*command, "--write", "txt", "--output", str(file)]
    assert main([*options, "--dry-run"]) == 2
    shown = capsys.readouterr().out.splitlines()
    assert captioned == ["4.png"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    main(options)
    written = {text: text.read_text().rstrip("\n") for text in photos.rglob("*.txt")}
    assert "a lynx" in written.values()
    assert written[photos / "1.txt"] == "an ocelot"
    assert sorted(shown) == sorted(f'{path}: text "{text}"' for path, text in written.items())


def test_a_dry_run_does_not_mix_captions_of_other_settings(command, photos, tmp_path, capsys):
    file = tmp_path / "captions.jsonl"
    main([*command, "--output", str(file)])
    options = [*command, "--write", "txt", "--output", str(file), "--dry-run", "--prefix", "seen: "]
    assert main(options) == 2
    assert "has captions of 8 of these images by checkpoint" in capsys.readouterr().err
    assert main([*options, "--overwrite"]) == 2
    assert 'text "seen: ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run"], "add --write txt, xmp or metadata"),
        (["--append"], "use it with --write txt alone"),
        (["--json", "--output", "a.jsonl"], "--output prints none: omit one"),
        (["--json", "--write", "txt", "--dry-run"], "--dry-run prints none: omit one"),
        (["--append", "--write", "xmp"], "use it with --write txt alone"),
    ],
)
def test_options_that_do_nothing_here_are_refused(command, capsys, options, message):
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_twice_each_photo_is_captioned_exactly_once(command, photos, make_photo, tmp_path, monkeypatch, ending):
    (photos / "deep" / "4.png").unlink()
    for number in range(400):
        folder = photos / f"{number % 7}" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        make_photo(number).save(folder / f"{number}.png")
    file = tmp_path / f"captions.{ending}"
    chance = random.Random(0)
    arguments = [sys.executable, "-m", "hf_gru_captioner.cli", *command, "--output", str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for border in (60, 200):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while process.poll() is None and num_written(file) < border:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = parts_of(file)
        assert 0 < len(kept) < 408
        assert not file.exists()  # and no half of it
    begun = []
    load = Captioner.load_image
    monkeypatch.setattr(Captioner, "load_image", lambda self, path: begun.append(path) or load(self, path))
    assert main([*command, "--output", str(file)]) == 0
    assert len(begun) == 408 - len(kept)
    assert not kept.keys() & set(begun)
    rows = read(file)
    assert {row["path"]: row.get("caption", "") for row in rows if row["path"] in kept} == kept
    assert set(Counter(row["path"] for row in rows).values()) == {1}
    assert len(rows) == 408
    assert [path.name for path in tmp_path.glob("captions*")] == [file.name]
    alone = tmp_path / f"alone.{ending}"
    main([*command, "--output", str(alone)])
    assert read(alone) == rows


KILLED = """
import os, signal, sys
from hf_gru_captioner.cli import main
from hf_gru_captioner.library import caption_file

write_whole, caption_file.ROWS_AT_ONCE = caption_file._write_whole, 2

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def write(file, index, photos):
    if sys.argv[1] == "written":
        write_whole(file, index, photos)
        kill()
    rows, asked = index.rows, []
    index.rows = lambda photo: asked.append(photo) or rows(photo) if len(asked) < int(sys.argv[1]) else kill()
    write_whole(file, index, photos)

caption_file._write_whole = write
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_killed_while_the_file_is_put_together_nothing_is_lost_or_captioned_again(command, tmp_path, captioned, ending):
    """In the middle of its rows (Parquet needs a first pass for column names), and before its parts are deleted."""
    file = tmp_path / f"captions.{ending}"
    arguments = [*command, "--output", str(file)]
    for moment, is_there in (("6" if ending == "jsonl" else "15", False), ("written", True)):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, moment, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert file.exists() == is_there
    before = read(file)
    assert len(before) == 9
    assert main(arguments) == 2
    assert captioned == ["4.png"]  # which is no picture
    assert texts(read(file)) == texts(before)
    assert [path.name for path in tmp_path.glob("captions*")] == [file.name]


def parts_of(file: Path) -> dict[str, str]:
    """Path and caption of the photos in its parts; a truncated line has no line end."""
    lines = [line for part in file.parent.glob(f"{file.name}.part-*") for line in part.read_bytes().splitlines(True)]
    rows = [json.loads(line)[0] for line in lines if line.endswith(b"\n")]
    return {row["path"]: row["caption"] for row in rows}


def num_written(file: Path) -> int:
    return sum(part.read_bytes().count(b"\n") for part in file.parent.glob(f"{file.name}.part-*"))
