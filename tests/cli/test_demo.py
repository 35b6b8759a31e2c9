import shutil
import socket
from pathlib import Path

import pytest

from hf_gru_captioner import Captioner, web
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


@pytest.fixture
def refusal(capsys, monkeypatch):
    """Runs `gru-captioner demo`, which must fail before a captioner is loaded -> its last line."""

    def load(*_, **__):
        raise AssertionError("a captioner was loaded before the error was found")

    monkeypatch.setattr(Captioner, "from_pretrained", load)

    def refusal(*arguments):
        assert main(["demo", *map(str, arguments)]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return refusal


def test_a_port_in_use_is_said(refusal):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refusal("--port", port)
    assert said.endswith(
        f"--port {port} is in use: choose another, or leave --port out for the next free one from 7860 on."
    )


@pytest.mark.parametrize("port", [0, -1, 65536, 10**9])
def test_what_is_no_port_is_said(refusal, port):
    assert refusal(f"--port={port}").endswith(f"--port {port}: a port is a number from 1 to 65535.")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "localhost:7860", "256.1.1.1"])
def test_an_address_of_another_machine_is_said(refusal, host):
    assert f"--host {host} is not an address of this machine: 127.0.0.1 is for this machine alone" in refusal(
        "--host", host
    )


def test_example_images_are_files_or_folders_of_them(demo, make_photo):
    for name in ("b/2.png", "b/1.jpg", "a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        make_photo().save(name)
    Path("b/notes.txt").write_text("text")
    examples = demo("runs/a/checkpoint", "--images", "a.png", "b")[1]["examples"]
    assert examples == [Path("a.png"), Path("b/1.jpg"), Path("b/2.png")]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (["nope.jpg"], "--images nope.jpg: there is no such file."),
        (["good.png", "text.jpg"], "--images text.jpg: This is not a picture, or it is damaged."),
        (["empty"], "--images: empty: no images in this folder."),
        (["no*.png"], "--images: no*.png: no file matches."),
        (["top"], "--images: top: its photos are in folders inside it: name one of those."),
        (["many"], "--images: 51 photos, but the page has room for 50: name some."),
    ],
)
def test_what_is_no_example_image_is_said(refusal, make_photo, tmp_path, monkeypatch, images, said):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "many", "top/inside"):
        Path(folder).mkdir(parents=True)
    make_photo().save("good.png")
    make_photo().save("top/inside/a.png")
    for number in range(51):
        Path(f"many/{number}.png").write_bytes(b"")
    Path("text.jpg").write_text("text")
    assert said in refusal("--images", *images)
