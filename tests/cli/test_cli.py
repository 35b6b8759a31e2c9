import errno
import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from hf_gru_captioner import Captioner, __version__
from hf_gru_captioner.checkpoint import names_damaged
from hf_gru_captioner.cli import main, training_options
from hf_gru_captioner.cli.examples import EXAMPLES
from hf_gru_captioner.cli.shell import guarded
from hf_gru_captioner.cli.training_options import OFTEN_SET, read_config
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.training.config import RECOMMENDED, SourceConfig, option_types

ROOT = Path(__file__).parents[2]


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
    assert [set(row) for row in rows] == [{"path", "caption", "score", "backend"}] * 3 + [{"path", "error"}]
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
    assert "they are not from the same checkpoint" in errors[0]


@pytest.mark.parametrize(("code", "is_told"), [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EACCES, False)])
def test_who_has_no_room_is_told_what_to_do(capsys, code, is_told):
    def command(_):
        raise OSError(code, os.strerror(code), "scores.json")

    assert guarded(command, None) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gru-captioner: ")
    assert os.strerror(code) in line
    assert ("Make room and run the same command again" in line) == is_told


@pytest.mark.parametrize(("text", "told"), [("", ""), ("8 GB wanted", " (8 GB wanted)")])
def test_lack_of_memory_is_not_called_damage(capsys, text, told):
    def fail(arguments):
        with names_damaged("the checkpoint a"):
            raise MemoryError(*filter(None, [text]))

    assert guarded(fail, None) == 2
    assert capsys.readouterr().err == f"gru-captioner: there is not enough memory{told}\n"


@pytest.mark.parametrize("number", ["0", "100000", "many"])
@pytest.mark.parametrize("command", ["caption a.jpg", "score --data a", "label a --output a.jsonl"])
def test_a_number_of_beams_that_would_exhaust_memory_is_refused(capsys, command, number):
    with pytest.raises(SystemExit):
        main([*command.split(), "--num-beams", number])
    assert f"--num-beams: must be a whole number from 1 to 1,000, found '{number}'" in capsys.readouterr().err


def test_what_the_package_logs_is_printed_while_a_command_runs(capsys):
    logger = logging.getLogger("hf_gru_captioner.training.trainer")

    def command(_):
        logger.info("resuming after step %d", 7)
        logger.warning("a state is skipped")
        return 0

    assert guarded(command, None) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("resuming after step 7\n", "warning: a state is skipped\n")
    logger.info("nobody asked for it")
    assert capsys.readouterr() == ("", "")


def test_a_missing_extra_is_named_with_the_way_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["train", "--data.source", "x", "--output_dir", "y"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gru-captioner: accelerate is not installed: ")
    assert said.endswith("[train]'\n")


def help_of(command, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"gru-captioner {__version__}\n"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("trian", "unknown command 'trian': did you mean train?"),
        ("feature", "unknown command 'feature': did you mean features?"),
        ("xyz", f"unknown command 'xyz': the commands are {', '.join(EXAMPLES)}."),
    ],
)
def test_an_unknown_command_is_answered_in_one_line(capsys, command, line):
    assert main([command, "--help"]) == 2
    assert capsys.readouterr().err == f"gru-captioner: {line}\n"


@pytest.mark.parametrize("command", EXAMPLES)
def test_each_help_ends_with_examples(capsys, command):
    _, _, end = help_of(command, capsys).partition("\nexamples:\n")
    lines = [line.strip() for line in end.strip().splitlines()]
    assert lines == list(EXAMPLES[command])
    assert 2 <= len(lines) <= 3


@pytest.mark.parametrize("example", [each for examples in EXAMPLES.values() for each in examples])
def test_the_examples_are_accepted_as_they_stand(monkeypatch, example):
    """The full command line is parsed; only the command itself is not run."""
    taken = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("hf_gru_captioner.cli.guarded", lambda command, arguments: taken.append(arguments) or 0)
    words = shlex.split(example)
    words = words[words.index("scripts/train.py") :] if words[0] == "accelerate" else words
    command = "train" if words[0] == "scripts/train.py" else words[1]
    arguments = words[1:] if words[0] == "scripts/train.py" else words[2:]
    assert main([command, *arguments]) == 0
    if command == "train" and not arguments[0].startswith("-"):  # a source alone, whose folder is found by its name
        arguments = ["--data.source", arguments[0], "--output-dir", "runs/captions", *arguments[1:]]
    if command in ("train", "features"):
        assert read_config(arguments, command, "").output_dir.startswith("runs/")
    else:
        assert callable(taken[0].run)


def test_every_command_of_the_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert set(commands) - {"COMMAND"} == set(EXAMPLES)


def test_several_sources_are_json_on_the_command_line_and_a_list_in_yaml(tmp_path):
    sources = [SourceConfig("a"), SourceConfig("b", repeat=0.5, captions_per_epoch=2)]
    text = '[{"path": "a"}, {"path": "b", "repeat": 0.5, "captions_per_epoch": 2}]'
    assert read_config(["--data.source", text, "--output-dir", "x"], "train", "").data.source == sources
    (tmp_path / "options.yaml").write_text(f"data: {{source: {text}}}\noutput_dir: x\n")
    assert read_config(["--config", str(tmp_path / "options.yaml")], "train", "").data.source == sources
    for wrong in ('[{"path": "a", "repeats": 2}]', '[{"path": "a", "repeat": "x"}]', '{"path": "a"}', '[{"path": "a"'):
        with pytest.raises(UsageError, match=r"path, images, .*repeat, weight, captions_per_epoch, validate; found"):
            read_config(["--data.source", wrong, "--output-dir", "x"], "train", "")


SHORT = ["--data.source", "x", "--output-dir", "runs/x"]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--dry-run", *SHORT], "dry_run", True),
        ([*SHORT, "--dry-run"], "dry_run", True),
        ([*SHORT, "--dry-run", "true"], "dry_run", True),
        ([*SHORT, "--dry_run=false"], "dry_run", False),
        ([*SHORT, "--data.mirror", "false", "--data.allow-urls"], "data.allow_urls", True),
        ([*SHORT, "--data.mirror", "false", "--data.allow-urls"], "data.mirror", False),
        ([*SHORT, "--optimization.images-per-step", "7"], "optimization.images_per_step", 7),
        ([*SHORT, "--optimization.images_per_step=7"], "optimization.images_per_step", 7),
        ([*SHORT, "--validation.length-penalty", "-1"], "validation.length_penalty", -1.0),
        (["--data.source=my-photos/a-b_c.csv", "--output_dir", "x"], "data.source", "my-photos/a-b_c.csv"),
    ],
)
def test_options_of_train_have_dashes_and_boolean_ones_need_no_value(arguments, name, value):
    config = read_config(arguments, "train", "")
    group, _, option = name.rpartition(".")
    assert getattr(getattr(config, group) if group else config, option) == value


def test_the_command_line_overrides_the_file_whose_names_have_underscores(tmp_path):
    (tmp_path / "options.yaml").write_text("data: {source: x}\noutput_dir: y\noptimization: {images_per_step: 5}\n")
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output-dir", "z", "--dry-run"]
    config = read_config(arguments, "train", "")
    assert (config.output_dir, config.optimization.images_per_step, config.dry_run) == ("z", 5, True)


def test_an_unknown_option_of_train_is_answered_in_the_documented_form(capsys):
    assert main(["train", *SHORT, "--optimization.image-per-step", "3"]) == 2
    assert "Did you mean --optimization.images-per-step?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "features"])
def test_the_help_of_train_lists_first_what_most_people_set(capsys, command):
    text = help_of(command, capsys)
    first, _, rest = text.partition("\nall other options:\n")
    _, _, often = first.partition("\nmost people set:\n")
    expected = ["--config", *(training_options._flag(name) for name in OFTEN_SET)]
    expected.insert(expected.index("--optimization.epochs"), "--epochs")
    assert [name.rstrip(",") for name in often.split() if name.startswith("--")] == expected
    listed = [word.lstrip("[") for line in rest.splitlines() for word in line.split()[:1] if word.startswith("--")]
    flags = {training_options._flag(name) for name in option_types()}
    assert set(listed) == flags - {training_options._flag(name) for name in OFTEN_SET}
    assert not [flag for flag in listed if "_" in flag]


def test_the_help_of_train_says_what_each_option_is_and_its_default(capsys):
    text = " ".join(help_of("train", capsys).split())
    chosen = "with SOURCE chosen from the data"
    assert f"--optimization.epochs EPOCHS Passes over the images, each with all of its captions. (10; {chosen})" in text
    assert f"less often in the training captions become unknown. (5; {chosen}) --tokenizer.vocab-size" in text
    assert text.count(chosen) == len(RECOMMENDED)
    assert "each 60 to 100 % of its area; each adds a cache. (0) --data.color-jitter" in text
    assert "--dry-run [true|false] Print sizes, steps, and estimates of time and disk space, then stop. (false)" in text
    assert text.count("(required without SOURCE)") == 2
    texts = training_options._texts()
    assert all(texts[name] for name in option_types())


def test_the_help_of_features_tells_of_no_source_since_it_takes_none(capsys):
    text = " ".join(help_of("features", capsys).split())
    assert "with SOURCE" not in text
    assert "Passes over the images, each with all of its captions. (10) --opt" in text
    assert text.count("(required)") == 2


def test_the_help_of_train_loads_nothing_heavy_and_takes_less_than_two_seconds():
    code = (
        "import sys, time\n"
        "from hf_gru_captioner.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy', 'PIL', 'jsonargparse'}\n"
        "print(sorted(heavy & set(sys.modules)), time.process_time())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, _, seconds = output.splitlines()[-1].rpartition(" ")
    assert loaded == "[]"
    assert float(seconds) < 2  # of the processor: others may work beside it


def test_warnings_of_the_package_are_a_line_each_and_said_once(capsys):
    from hf_gru_captioner.cli import shell

    def warn(_):
        for line in (1, 2):
            warnings.warn_explicit("row 3\nis empty", UserWarning, str(shell.PACKAGE / "data" / "x.py"), line)
        return 0

    assert shell.guarded(warn, None) == 0
    errors = capsys.readouterr().err
    assert errors == "warning: row 3 is empty\n"
