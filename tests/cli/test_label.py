import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gru_captioner.cli import main
from hf_gru_captioner.data import load_captions
from hf_gru_captioner.data.teachers import teachers_of

NUM_PHOTOS = 9
KILLED = """
import os, signal, sys
from hf_gru_captioner.cli import main
from hf_gru_captioner.labelling.teacher import OurTeacher
write, calls = OurTeacher.write, []
def write_twice(self, images, names, num_captions):
    if names[0]:  # not what the teacher is tried out with
        calls.append(names)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, images, names, num_captions)
OurTeacher.write = write_twice
main(sys.argv[1:])
"""


@pytest.fixture
def folder(make_photo, tmp_path, monkeypatch):
    """A working directory with photos; the run is killed with two photos of the third batch still to come."""
    (tmp_path / "photos").mkdir()
    for number in range(NUM_PHOTOS):
        make_photo(number).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    """A teacher that writes six words for each photo."""
    folder, model = tmp_path / "checkpoint", make_model()
    model.generation_config.update(max_new_tokens=6, num_beams=2, suppress_tokens=[0, 1, 2, 3])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def label(checkpoint):
    def run(*arguments, output="captions.jsonl"):
        return main(["label", "photos", "--teacher", str(checkpoint), "--output", output, *arguments])

    return run


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_file_of_captions_is_written_that_training_reads(folder, label, checkpoint, capsys):
    assert label("--num-captions", "3") == 0
    rows = rows_of("captions.jsonl")
    assert [row["path"] for row in rows[::3]] == [f"photos/{number}.png" for number in range(NUM_PHOTOS)]
    assert len(rows) == 3 * NUM_PHOTOS
    assert {row["teacher"] for row in rows} == {"checkpoint"}
    output = capsys.readouterr().out
    assert f"written: captions.jsonl, captions of {NUM_PHOTOS} of {NUM_PHOTOS} photos by checkpoint (sha256:" in output
    assert "next: gru-captioner train captions.jsonl" in output
    loaded = [load_captions("captions.jsonl", split) for split in ("train", "validation")]
    assert sum(map(len, loaded)) == NUM_PHOTOS
    assert {len(captions) for rows in loaded for captions in rows["captions"]} == {3}
    assert loaded[0][0]["image"].size == (40, 30)
    assert teachers_of("captions.jsonl") == [{"name": "checkpoint", "revision": rows[0]["teacher_revision"]}]


def test_after_a_kill_the_same_command_ends_with_the_file_of_an_undisturbed_run(folder, label, checkpoint, capsys):
    settings = ["--num-captions", "3", "--batch-size", "2"]
    command = ["label", "photos", "--teacher", str(checkpoint), "--output", "captions.jsonl", *settings]
    process = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not Path("captions.jsonl").exists()
    assert label(*settings) == 0
    assert f"resuming: 4 of {NUM_PHOTOS} photos have captions" in capsys.readouterr().err
    assert label(*settings, output="undisturbed.jsonl") == 0
    assert Path("captions.jsonl").read_bytes() == Path("undisturbed.jsonl").read_bytes()
    assert len(rows_of("captions.jsonl")) == 3 * NUM_PHOTOS
    assert sorted(path.name for path in folder.glob("captions.jsonl*")) == ["captions.jsonl"]


def test_photos_without_captions_are_counted_and_named_and_tried_again(folder, label, make_photo, capsys):
    Path("photos/4.png").write_bytes(b"damaged")
    assert label() == 2
    error = capsys.readouterr().err
    assert f"1 of {NUM_PHOTOS} photos have no caption:\n  photos/4.png is not an image" in error
    assert "photos/4.png" not in {row["path"] for row in rows_of("captions.jsonl")}
    before = Path("captions.jsonl").read_bytes()
    assert label() == 2
    assert Path("captions.jsonl").read_bytes() == before
    make_photo(4).save("photos/4.png")
    assert label() == 0
    assert [row["path"] for row in rows_of("captions.jsonl")] == [f"photos/{n}.png" for n in range(NUM_PHOTOS)]


def test_captions_of_other_settings_are_kept_unless_told_otherwise(folder, label, capsys):
    assert label() == 0
    before = rows_of("captions.jsonl")
    assert label("--num-captions", "2") == 2
    error = capsys.readouterr().err
    assert f"has captions of {NUM_PHOTOS} of these photos by teacher checkpoint" in error
    assert "add --overwrite" in error
    assert rows_of("captions.jsonl") == before
    assert label("--num-captions", "2", "--overwrite") == 0
    assert len(rows_of("captions.jsonl")) == 2 * NUM_PHOTOS


def test_a_file_elsewhere_finds_its_photos_too(folder, label):
    assert label(output="out/captions.csv") == 0
    assert len(load_captions("out/captions.csv", "train")) + len(load_captions("out/captions.csv", "validation")) == 9
    assert teachers_of("out/captions.csv")[0]["name"] == "checkpoint"
    assert teachers_of("out")[0]["name"] == "checkpoint"


def test_usage_errors_are_one_line(folder, label, capsys):
    assert label(output="captions.parquet") == 2
    assert label("--teacher", "photos") == 2
    assert label("--top-p", "0") == 2
    os.mkdir("empty")
    assert main(["label", "empty", "--teacher", "x", "--output", "captions.jsonl"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "captions.parquet: name a file that ends in .jsonl or .csv, which train takes.",
        "photos is not a captioner: it has no config.json.",
        "top-p must be above 0 and at most 1, found 0.",
        "empty: no images in this folder.",
        "no photo to label.",
    ]
    assert not Path("captions.jsonl").exists()


def test_a_student_is_scored_against_its_teacher(folder, label, checkpoint, capsys):
    assert label("--num-captions", "2") == 0
    capsys.readouterr()
    options = ["--checkpoint", str(checkpoint), "--metrics", "bleu", "--tokenizer", "simple", "--bootstrap", "0"]
    tables = []
    for source in ("--references", "--data"):
        assert main(["score", source, "captions.jsonl", "--split", "train", *options, "--output", source[2:]]) == 0
        tables.append(capsys.readouterr().out.partition("written")[0])
    assert tables[0] == tables[1]
    assert "BLEU-1" in tables[0]
