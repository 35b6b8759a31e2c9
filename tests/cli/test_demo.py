import shutil
from pathlib import Path

import pytest

from hf_gru_captioner import web
from hf_gru_captioner.cli import main


@pytest.fixture
def demo(checkpoint, tmp_path, monkeypatch):
    """Runs `gru-captioner demo` beside the folders `runs/a/checkpoint` and so on -> what would be served."""
    for folder in ("runs/a/checkpoint", "runs/b/checkpoint", "runs/c", "old/a/checkpoint", "a"):
        shutil.copytree(checkpoint, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr(web, "serve", lambda pool, load_image, **shown: served.append((pool, shown)))

    def demo(*arguments):
        assert main(["demo", *arguments]) == 0
        return served.pop()

    return demo


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["runs/a/checkpoint"], ["checkpoint"]),
        (["runs/a/checkpoint", "./runs/a/checkpoint/"], ["checkpoint"]),
        (["runs/a/checkpoint", "runs/b/checkpoint"], ["a", "b"]),
        (["runs/a/checkpoint", "old/a/checkpoint"], ["runs", "old"]),
        (["runs/a/checkpoint", "runs/b/checkpoint", "old/a/checkpoint"], ["runs/a", "b", "old/a"]),
        (["runs/a/checkpoint", "runs/b/checkpoint", "a"], ["a", "b", "a (3)"]),
        (["runs/c", "c"], ["c", "c (2)"]),  # the second is on the Hub
    ],
)
def test_every_checkpoint_has_a_name_of_its_own(demo, folders, names):
    pool, shown = demo(*folders)
    assert pool.names == tuple(names)
    assert shown["about"].count("The model") == len(names)
    assert [shown["train_from"](name) for name in names] == folders[: len(names)]


def test_the_current_folder_has_a_name(demo, monkeypatch):
    monkeypatch.chdir("runs/a")
    monkeypatch.chdir("checkpoint")
    assert demo(".")[0].names == ("checkpoint",)


@pytest.mark.parametrize(
    ("host", "shown_path"), [("127.0.0.1", "'runs/a b'"), ("localhost", "'runs/a b'"), ("0.0.0.0", "'a b'")]
)
def test_the_command_for_corrections_names_the_path_on_this_machine_alone(demo, host, shown_path):
    Path("a").rename("runs/a b")
    assert demo("runs/a b", "--host", host)[1]["train_from"]("a b") == shown_path


def test_the_shipped_checkpoint_needs_no_name_in_the_command(demo):
    pool, shown = demo()
    assert shown["train_from"](pool.names[0]) is None
