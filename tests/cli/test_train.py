"""`gru-captioner features` and `train`, end to end from a folder of photos to captions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.cli.training_options import read_config
from hf_gru_captioner.data import RegionCache
from hf_gru_captioner.training import run as training_run
from hf_gru_captioner.training import run_folder
from hf_gru_captioner.training.assembly import Assembly
from hf_gru_captioner.training.config import ValidationConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def options(dataset_folder, save_encoder, tmp_path):
    """Options for a run on a few photos with a tiny encoder."""
    save_encoder(tmp_path / "encoder")
    return {
        "data.source": dataset_folder,
        "data.cache_folder": tmp_path / "cache",
        "tokenizer.min_count": 1,
        "model.encoder": tmp_path / "encoder",
        "model.hidden_size": 16,
        "model.embedding_size": 12,
        "optimization.epochs": 2,
        "optimization.images_per_step": 2,
        "optimization.checkpoint_precision": "float32",
        "optimization.mixed_precision": "no",  # auto might choose another each time, and Accelerate has one a process
        "validation.num_beams": 2,
        "validation.max_new_tokens": 9,
        "validation.shown": 2,
        "output_dir": tmp_path / "run",
    }


def arguments_of(options) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def run(command, options, capsys) -> tuple[int, str, list[str]]:
    code = main([command, *arguments_of(options)])
    output = capsys.readouterr()
    return code, output.out, [line for line in output.err.splitlines() if line.startswith("gru-captioner")]


@pytest.mark.slow
def test_features_then_cross_entropy_then_self_critical_training(options, make_dataset, capsys, monkeypatch, tmp_path):
    assert "\nto be written: 0.00 GB" in run("features", {**options, "dry_run": True}, capsys)[1]
    assert not (tmp_path / "cache").exists()
    code, output, _ = run("features", options, capsys)
    assert code == 0
    assert "6 images, whole, mirrored: 9 regions of width 96" in output
    assert len(list((tmp_path / "cache").iterdir())) == 3  # training photos, mirrored ones, validation photos
    monkeypatch.setattr(RegionCache, "_encode_missing", None)  # nothing is left to be encoded

    first = {**options, "tracker": "tensorboard", "validation.no_repeat_ngram_size": 2}
    code, output, _ = run("train", first, capsys)
    assert code == 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "attention",
        "checkpoint",
        "config.yaml",
        "curves.png",
        "hf_gru_captioner",  # tensorboard's
        "history.jsonl",
        "run.lock",  # empty; no one holds it any more
        "run.sha256",
        "state",
    }
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["hidden_size"] == 16
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == [1, 2]
    assert ["epoch", "loss", "CIDEr-D", "BLEU-4", "minutes"] in [line.split() for line in output.splitlines()]
    assert sorted(path.name for path in (folder / "attention" / "epoch-02").iterdir()) == [
        "0.png",
        "1.png",
        "captions.txt",
    ]
    assert Image.open(folder / "attention" / "epoch-02" / "0.png").size[1] > 200
    captioner = Captioner.from_pretrained(folder / "checkpoint")
    assert captioner.model.generation_config.num_beams == captioner.defaults()["no_repeat_ngram_size"] == 2
    caption = captioner(make_dataset(1)[0]["image"], min_new_tokens=3)
    assert len(caption.words) >= 3
    assert not set(caption.words) & {"<unk>", "<pad>", "<s>"}

    second = {
        **options,
        "objective": "self_critical",
        "model.checkpoint": folder / "checkpoint",
        "output_dir": tmp_path / "scst",
    }
    assert run("train", second, capsys)[0] == 0
    history = [json.loads(line) for line in (tmp_path / "scst" / "history.jsonl").read_text().splitlines()]
    assert all(record["reward"] >= 0 for record in history)
    assert Captioner.from_pretrained(tmp_path / "scst" / "checkpoint").defaults()["no_repeat_ngram_size"] == 2  # kept
    before, after = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("run", "scst"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved
    assert not any(name.startswith("encoder.vision") for name in moved)


def start(options, script="train.py", launcher=()) -> subprocess.Popen:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "scripts" / script), *arguments_of(options)],
        env={**settings, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_make_the_same_features_as_one(options, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start({**options, "data.cache_folder": tmp_path / "of-two"}, "features.py", launcher)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-2000:]
    assert main(["features", *arguments_of(options)]) == 0
    of_one = {path.relative_to(tmp_path / "cache"): path.read_bytes() for path in (tmp_path / "cache").rglob("*.bin")}
    of_two = {path.relative_to(tmp_path / "of-two"): path.read_bytes() for path in (tmp_path / "of-two").rglob("*.bin")}
    assert len(of_one) == 3
    assert of_two == of_one


@pytest.mark.slow
@pytest.mark.parametrize("encoder_learns", [False, True])
def test_a_run_killed_with_signal_9_ends_with_the_same_checkpoint(options, tmp_path, encoder_learns):
    options = {**options, "optimization.epochs": 6, "optimization.state_steps": 1, "validation.shown": 0}
    if encoder_learns:
        options |= {"optimization.encoder_learning_rate": 1e-4, "optimization.encoder_first_layer": "layer3"}
    assert start(options).wait(timeout=300) == 0

    killed = {**options, "output_dir": tmp_path / "killed"}
    process = start(killed)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "state" / "step-00000007").exists():  # of 18 steps
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = start(killed)
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors[-2000:]
    assert "resuming after step" in output
    kept = [
        load_file(folder / "checkpoint" / "model.safetensors") for folder in (tmp_path / "run", tmp_path / "killed")
    ]
    assert kept[0].keys() == kept[1].keys()
    assert all(kept[0][name].equal(kept[1][name]) for name in kept[0])


def test_a_dry_run_estimates_and_writes_nothing(options, capsys, tmp_path):
    code, output, _ = run("train", {**options, "dry_run": True}, capsys)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in output.splitlines() if " " in line)
    assert lines["steps"] == "2 epochs of 3 = 6"
    assert lines["images"] == "6 for training, 3 for validation"
    assert lines["model"].startswith("0.38 M parameters, 0.01 M")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_other_options_do_not_go_into_the_folder_of_a_run(options, capsys, tmp_path):
    assert run("train", {**options, "optimization.epochs": 1}, capsys)[0] == 0
    code, _, errors = run("train", {**options, "optimization.epochs": 1, "model.dropout": 0.2}, capsys)
    assert code == 2
    assert "holds a run with other options (--model.dropout was 0.5, is 0.2): name another output_dir" in errors[0]
    history = (tmp_path / "run" / "history.jsonl").read_text()
    elsewhere = {**options, "optimization.epochs": 1, "optimization.state_steps": 7, "validation.shown": 0}
    assert run("train", elsewhere, capsys)[0] == 0  # nothing that changes the weights: the run is found finished
    assert (tmp_path / "run" / "history.jsonl").read_text() == history
    (tmp_path / "run" / "config.yaml").unlink()
    code, _, errors = run("train", elsewhere, capsys)
    assert code == 2
    assert "run has a checkpoint but no config.yaml: name another output_dir" in errors[0]


@pytest.fixture
def fresh_state():
    """Resets Accelerate's precision, which is fixed per process, before a run and after the test."""
    yield AcceleratorState._reset_state
    AcceleratorState._reset_state()


def test_a_run_goes_on_in_the_precision_that_it_began_with(options, fresh_state, capsys, monkeypatch, tmp_path):
    settings = {**options, "optimization.epochs": 1, "optimization.mixed_precision": "auto"}
    fresh_state()
    monkeypatch.setattr(training_run, "fastest_precision", lambda device: ("bf16", "bf16, which is said here"))
    code, output, _ = run("train", settings, capsys)
    assert (code, "precision       bf16, which is said here" in output) == (0, True)
    assert "mixed_precision: bf16" in (tmp_path / "run" / "config.yaml").read_text()
    monkeypatch.setattr(training_run, "fastest_precision", lambda device: ("no", "fp32"))
    fresh_state()
    code, output, _ = run("train", settings, capsys)
    assert (code, "precision       bf16, as before" in output) == (0, True)
    fresh_state()
    code, _, errors = run("train", {**settings, "optimization.mixed_precision": "no"}, capsys)
    assert (code, "--optimization.mixed-precision was bf16, is no" in errors[0]) == (2, True)


def test_what_was_learned_from_other_photos_is_not_replaced(options, make_dataset, capsys, tmp_path):
    options = {**options, "optimization.epochs": 1}
    assert run("train", options, capsys)[0] == 0
    folder = tmp_path / "run"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rows = make_dataset(5).select_columns(["image", "captions"])
    rows.to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    code, _, errors = run("train", {**options, "optimization.epochs": 2}, capsys)
    assert code == 2
    checkpoint = folder / "checkpoint"
    assert f"name another output_dir, with --model.checkpoint {checkpoint} to start from what it has" in errors[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    elsewhere = {**options, "output_dir": tmp_path / "other", "model.checkpoint": checkpoint}
    assert run("train", elsewhere, capsys)[0] == 0


def test_photos_may_be_added_before_anything_is_learned(bare, make_dataset, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("hf_gru_captioner.training.trainer.CaptionTrainer._train_step", interrupt)
        assert bare()[0] == 130
    rows = make_dataset(8).select_columns(["image", "captions"])
    rows.to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    code, output, _ = bare()
    assert code == 0
    assert "images          8 for training" in output


def test_each_best_checkpoint_is_published(options, hub, capsys, tmp_path):
    published = {**options, "push_to_hub": "me/captioner", "optimization.epochs": 1}
    code, output, _ = run("train", published, capsys)
    assert code == 0
    repository = hub.repository("me/captioner")
    assert f"published: {hub.address}/me/captioner/commit/{repository.branches['main']}" in output
    checkpoint = tmp_path / "run" / "checkpoint"
    assert repository.files()["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert b"# captioner" in repository.files()["README.md"]


def test_training_goes_on_when_it_cannot_publish(options, hub, capsys, tmp_path):
    hub.fail("POST .*/commit/", 500, times=99)
    code, output, _ = run("train", {**options, "push_to_hub": "me/captioner"}, capsys)
    assert code == 0
    assert "not published: the Hub refused, and nothing was published: status 500" in output
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2


def test_streamed_photos_are_learned_from(options, capsys, tmp_path):
    streamed = {**options, "data.streaming": True, "data.steps_per_epoch": 2, "optimization.images_per_step": 2}
    assert run("train", streamed, capsys)[0] == 0
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "x"], "data.source"),
        (
            ["--data.source", "x", "--output_dir", "y", "--optimization.epoch", "3"],
            "Did you mean --optimization.epochs?",
        ),
        (["--data.source", "x", "--output_dir", "y", "--objective", "soft"], "objective"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data.source", "./nowhere", "--output_dir", "y"], "./nowhere"),
        (["--data.source", "x", "--output_dir", "y", "--objective", "self_critical"], "its folder in --model.check"),
    ],
)
def test_mistakes_in_the_options_end_in_one_line(capsys, arguments, message):
    assert main(["train", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  source: x\n  mirro: true\noutput_dir: y\n", "Did you mean data.mirror?"),
        ("data:\n  source: x\noutput_dir: y\noptimisation:\n  epochs: 3\n", "Did you mean optimization.epochs?"),
    ],
)
def test_unknown_options_in_a_file_are_answered_with_the_nearest(capsys, tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "recipe.yaml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_recipe_is_made_of_known_options_and_says_what_to_expect(recipe):
    from hf_gru_captioner.cli.training_options import read_config

    config = read_config(["--config", str(ROOT / "configs" / recipe)], "train", "")
    assert config.output_dir.startswith("runs/")
    comment = [line for line in (ROOT / "configs" / recipe).read_text().splitlines() if line.startswith("#")]
    assert "minutes" in " ".join(comment)
    assert "CIDEr" in " ".join(comment)


def test_a_learning_encoder_has_no_features_to_make_ahead(options, capsys):
    code, _, errors = run("features", {**options, "optimization.encoder_learning_rate": 1e-4}, capsys)
    assert code == 2
    assert "nothing to encode in advance" in errors[0]


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lacking_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.language_gru.bias_hh_l0"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def non_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["decoder.language_gru.bias_hh_l0"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("command", ["train", "features"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (pickled, "is damaged or its files"),
        (lacking_a_weight, "lacks weights: 1"),
        (non_finite, "not finite|non-finite"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "not a GRU captioner"),
    ],
)
def test_a_checkpoint_to_go_on_from_is_looked_at_as_one_to_caption_with(
    options, checkpoint, capsys, command, damage, said
):
    options = {**options, "model.checkpoint": checkpoint, "dry_run": True}
    damage(checkpoint)
    code, _, errors = run(command, options, capsys)
    assert code == 2
    assert re.search(said, errors[-1])
    with pytest.raises(ValueError, match=said):
        Captioner.from_pretrained(checkpoint)


@pytest.mark.parametrize("command", ["train", "features"])
def test_an_encoder_of_pickled_weights_is_refused(options, capsys, command):
    pickled(options["model.encoder"])
    code, _, errors = run(command, {**options, "dry_run": True}, capsys)
    assert code == 2
    assert "no safetensors weights" in errors[-1]


def test_going_on_keeps_the_checkpoint_and_takes_the_dropout_of_the_run(options, checkpoint):
    settings = {**options, "model.checkpoint": checkpoint, "model.dropout": 0.25}
    config = read_config(arguments_of(settings), "train", "")
    assembly = Assembly(config, Accelerator(cpu=True))
    model = assembly.model
    assert (model.config.dropout, model.decoder.dropout.p) == (0.25, 0.25)
    weights = load_file(checkpoint / "model.safetensors")
    assert all(value.equal(model.state_dict()[name]) for name, value in weights.items())


def test_an_encoder_of_a_folder_goes_by_the_folders_name(options, tmp_path):
    config = read_config(arguments_of(options), "train", "")
    assembly = Assembly(config, Accelerator(cpu=True))
    assembly.model.save_pretrained(tmp_path / "saved")
    assembly.processor.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["encoder_config"]["_name_or_path"] == "encoder"
    for path in (tmp_path / "saved").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_folder_that_another_run_holds_is_left_alone(options, capsys, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    folder = options["output_dir"]
    with run_folder.hold(folder):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        code, _, said = run("train", options, capsys)
        assert code == 2
        assert f"{folder} is held by another run, process {os.getpid()} on " in said[0]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def bare(checkpoint, dataset_folder, monkeypatch, tmp_path, capsys):
    """Runs `gru-captioner train SOURCE` with a tiny checkpoint in place of the shipped one."""
    monkeypatch.setattr("hf_gru_captioner.training.recipe.SHIPPED_CHECKPOINT", checkpoint)
    monkeypatch.setattr("hf_gru_captioner.training.recipe.STEPS", 8)
    monkeypatch.setattr("hf_gru_captioner.training.recipe.EPOCHS", 2)
    monkeypatch.setattr("hf_gru_captioner.training.recipe.PASSES", 2)
    monkeypatch.chdir(tmp_path)

    def run(*options, source=dataset_folder) -> tuple[int, str, str]:
        common = ("--data.cache-folder", str(tmp_path / "cache"), "--optimization.mixed-precision", "no")
        code = main(["train", str(source), *common, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()[-1] if captured.err else ""

    return run


def test_a_source_alone_is_enough_and_more_epochs_go_on(bare, tmp_path):
    code, output, _ = bare()
    assert code == 0
    assert "images          6 for training, 3 for validation" in output
    assert "epoch 2 of 2   loss " in output
    assert "Only 3 images: neither the scores nor their intervals say anything reliable." in output
    assert output.count("      people: ") == 3
    folder = tmp_path / "runs" / "set"
    assert f"next: gru-captioner caption photo.jpg --checkpoint {Path('runs/set/checkpoint')}" in output
    assert "<html" in (folder / "report.html").read_text()
    scores = json.loads((folder / "checkpoint" / "scores.json").read_text())["scores"]
    assert scores[0]["settings"] == "tok:simple|refs:2.0|images:3|reflen:closest"
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert options["model"]["extend_vocabulary"]
    weights = (folder / "checkpoint" / "model.safetensors").read_bytes()
    history = (folder / "history.jsonl").read_text().splitlines()

    code, output, _ = bare()  # is finished
    assert code == 0
    assert "nothing to do   all 2 epochs are finished; to continue, increase --optimization.epochs" in output
    assert "features        all written" in output
    assert "training        under a minute for the 0 remaining steps" in output
    assert (folder / "checkpoint" / "model.safetensors").read_bytes() == weights
    assert (folder / "history.jsonl").read_text().splitlines() == history
    code, output, _ = bare("--epochs", "3")
    assert code == 0
    assert "epoch 3 of 3   loss " in output
    assert (folder / "history.jsonl").read_text().splitlines()[:2] == history
    assert len((folder / "history.jsonl").read_text().splitlines()) == 3


def test_options_are_called_as_they_are_typed(tmp_path, caplog):
    from hf_gru_captioner.cli.training_options import options_as_typed
    from hf_gru_captioner.errors import UsageError

    error = "x: raise data.max_skipped (model.encoder = a/data.max_skipped, objective)"
    for argv, said in (
        (["my.csv"], "x: raise --data.max-skipped (--model.encoder = a/data.max_skipped, objective)"),
        (["--config", "a.yaml"], error),
        (["--config=a.yaml", "--data.max_skipped=0.5"], error.replace("raise data.max_s", "raise --data.max-s")),
    ):
        with pytest.raises(ValueError, match="raise") as raised, options_as_typed(argv):
            raise UsageError(error)
        assert str(raised.value) == said
    with pytest.raises(FileNotFoundError, match="nowhere"), options_as_typed(["my.csv"]):  # stays of its kind
        raise FileNotFoundError("nowhere")


def test_of_a_photo_that_cannot_be_read_the_option_is_named_as_typed(make_photo, capsys, tmp_path):
    for number in range(3):
        make_photo(number).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text("image,caption\n0.png,a dog\n1.png,a cat\n2.png,a cow\n")
    assert main(["train", str(tmp_path / "t.csv"), f"--output-dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2.png (row 4: not an image that Pillow knows)" in error
    assert "This exceeds --data.max-skipped=0.01: repair the source, or raise --data.max-skipped to" in error


def test_a_folder_of_a_run_on_another_source_is_refused(bare, tmp_path):
    assert bare()[0] == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "set").rename(tmp_path / "other" / "set")
    code, _, error = bare(source=tmp_path / "other" / "set")
    assert code == 2
    assert f"contains a run on {tmp_path / 'set'}: name another output_dir" in error


def test_an_interrupted_run_says_how_to_go_on(bare, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_gru_captioner.training.trainer.CaptionTrainer._train_step", interrupt)
    code, output, _ = bare()
    assert code == 130
    assert "stopped before the first state was saved: the same command starts again" in output


def test_an_interrupted_run_with_a_state_goes_on_from_it(bare, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    assert bare()[0] == 0
    monkeypatch.setattr("hf_gru_captioner.training.trainer.CaptionTrainer._train_step", interrupt)
    code, output, _ = bare("--epochs", "3")
    assert code == 130
    assert f"the same command resumes from the newest state in {Path('runs/set/state')}" in output


def test_captions_of_a_teacher_are_said_to_be_the_teachers(bare, make_photo, tmp_path):
    rows = []
    for number in range(8):
        make_photo(number).save(tmp_path / f"{number}.png")
        rows.append({"path": f"{number}.png", "caption": "a dog runs", "teacher": "big/one", "teacher_revision": "1"})
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output, _ = bare(source="labelled.jsonl")
    assert code == 0
    assert "captions of validation images, and what big/one wrote" in output
    assert "      teacher: a dog runs" in output
    assert "people" not in output


def test_a_caption_that_is_a_reference_in_other_letters_counts_as_exact():
    from hf_gru_captioner.cli.train import _exact
    from hf_gru_captioner.evaluation.caption_set import CaptionSet

    references = [["A dog runs.", "a cat"], ["two dogs"], ["a cat"]]
    assert _exact(CaptionSet.from_text(["a dog runs", "a dog", "a cat"], references, "simple")) == 2


def test_nothing_that_would_be_sent_names_a_folder_of_this_machine(bare, save_encoder, tmp_path):
    secret = tmp_path / "somebody"
    save_encoder(secret / "encoder")
    sizes = ("--model.encoder", str(secret / "encoder"), "--model.hidden-size", "16", "--model.embedding-size", "12")
    assert bare(*sizes, "--output-dir", str(secret / "run"))[0] == 0
    for path in (secret / "run" / "checkpoint").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"somebody" not in content, path.name
            assert str(tmp_path).encode() not in content, path.name


@pytest.mark.parametrize("is_main", [True, False])
def test_new_words_are_said_by_the_main_process_alone(options, checkpoint, caplog, is_main):
    caplog.set_level("INFO")
    settings = {**options, "model.checkpoint": checkpoint, "model.extend_vocabulary": True}
    accelerator = SimpleNamespace(is_main_process=is_main, local_main_process_first=nullcontext, device="cpu")
    _ = Assembly(read_config(arguments_of(settings), "train", ""), accelerator).model
    assert ("new words" in caplog.text) == is_main


def test_a_group_without_options_in_the_file_has_the_defaults(tmp_path):
    (tmp_path / "options.yaml").write_text("data: {source: photos}\noutput_dir: out\nvalidation:\n  # num_beams: 5\n")
    config = ["--config", str(tmp_path / "options.yaml")]
    assert read_config(config, "train", "").validation == ValidationConfig()
    assert read_config([*config, "--validation.num-beams", "7"], "train", "").validation == ValidationConfig(
        num_beams=7
    )
