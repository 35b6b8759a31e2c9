import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from packaging.requirements import Requirement

from hf_gru_captioner.captioner import SHIPPED_CHECKPOINT
from hf_gru_captioner.hub import demo_folder, example_images, files_of_space, push

ROOT = Path(__file__).parents[2]
CARD = {"README.md": b"# a captioner", "examples/a.jpg": b"a picture"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # that the Hub knows


def requirements(lines):
    return {str(Requirement(line)) for line in lines if line and line[0] not in "#-"}


def test_a_space_needs_what_the_package_needs_and_gradio():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, wanted in (("requirements", project["dependencies"]), ("requirements-torch", extras["torch"])):
        assert requirements((ROOT / "demo" / f"{name}.txt").read_text().splitlines()) == requirements(wanted)
    (gradio,) = (Requirement(each) for each in extras["demo"])
    assert metadata_load(ROOT / "demo" / "README.md")["sdk_version"] in gradio.specifier


def test_the_header_is_one_that_the_hub_takes():
    header = metadata_load(ROOT / "demo" / "README.md")
    assert header["sdk"] == "gradio"
    assert (ROOT / "demo" / header["app_file"]).is_file()
    assert {header["colorFrom"], header["colorTo"]} <= COLORS
    assert len(header["short_description"]) <= 60
    assert re.fullmatch(r"\d+\.\d+\.\d+", header["sdk_version"])


def test_the_demo_is_found_when_it_is_asked_for_and_an_installation_without_it_says_so(monkeypatch, tmp_path):
    assert demo_folder() == ROOT / "demo"
    assert example_images() == sorted((ROOT / "demo" / "examples").glob("*.jpg"))
    monkeypatch.setattr("hf_gru_captioner.hub.space.DEMO_FOLDERS", (tmp_path, tmp_path / "demo"))
    assert example_images() == []
    with pytest.raises(FileNotFoundError, match=r"there is no demo \(app\.py\) in .*install the package"):
        demo_folder()


def test_a_space_is_pushed_and_pushed_again_but_not_over_something_else(hub, checkpoint):
    files = files_of_space(checkpoint, CARD)
    push(files, "me/demo", kind="space", message="first")
    push(files, "me/demo", kind="space", message="second")
    sent = hub.repository("me/demo", "space").files()
    assert sent.keys() == files.keys()
    assert {"app.py", "README.md", "requirements.txt", "checkpoint/model.safetensors"} <= sent.keys()
    assert sent["checkpoint/README.md"] == b"# a captioner"  # which the page promises
    assert sent["checkpoint/examples/a.jpg"] == b"a picture"
    assert not [name for name in sent if "__pycache__" in name or "pretrained/" in name]
    push({"app.py": b"print()"}, "me/other", kind="space", message="first")
    with pytest.raises(ValueError, match="contains something else, not a Space of this demo"):
        push(files, "me/other", kind="space", message="second")


def test_the_license_of_a_space_is_that_of_its_weights(checkpoint):
    for folder, name in ((SHIPPED_CHECKPOINT, "cc-by-nc-4.0"), (checkpoint, "other")):
        header = files_of_space(folder, CARD)["README.md"].decode()
        assert f'\nlicense: "{name}"\n' in header
        assert header.count("\nlicense: ") == 1


@pytest.mark.parametrize("text", ["mit\nsdk: docker", "mit\n---\n# else", "\\1 \\q", 'a "quoted" one', "a: {b"])
def test_a_license_says_nothing_else_in_the_header_of_a_space(checkpoint, tmp_path, text):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "license": text}))
    (tmp_path / "README.md").write_bytes(files_of_space(checkpoint, CARD)["README.md"])
    expected = metadata_load(ROOT / "demo" / "README.md")
    assert metadata_load(tmp_path / "README.md") == {**expected, "license": text}


@pytest.mark.parametrize(("precision", "needs_torch"), [("float32", False), ("int8", True), (None, True)])
def test_a_space_takes_pytorch_only_where_the_checkpoint_has_no_graphs_that_do_without(
    checkpoint, precision, needs_torch
):
    if precision is not None:
        (checkpoint / "onnx").mkdir(exist_ok=True)
        (checkpoint / "onnx" / "graphs.json").write_text(json.dumps({"precision": precision}))
    text = files_of_space(checkpoint, CARD)["requirements.txt"].decode()
    assert ("\ntorch>=" in text) == ("\n--extra-index-url " in text) == needs_torch
    assert "\nonnxruntime>=" in text


@pytest.mark.slow
def test_a_space_runs_as_it_was_pushed(checkpoint, tmp_path):
    for name, content in files_of_space(checkpoint, CARD).items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    # -S leaves out the editable install: the package is that of the Space
    code = f"import runpy, sys; sys.path[1:1] = ['.', *{libraries!r}]; runpy.run_path('app.py', run_name='__main__')"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "GRADIO_SERVER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code], cwd=tmp_path / "space", env=environment, stdout=log, stderr=log
        )
        try:
            config = wait_for(f"http://127.0.0.1:{port}/config", process)
            assert config is not None, (tmp_path / "log").read_text()[-3000:]
        finally:
            process.kill()
            process.wait()
    assert "/caption" in {f"/{each['api_name']}" for each in config["dependencies"]}
    shown = json.dumps(config)
    assert "astronaut.jpg" in shown


def wait_for(address, process):
    for _ in range(600):
        try:
            with urllib.request.urlopen(address) as answer:
                return json.load(answer)
        except OSError:
            if process.poll() is not None:
                return None
            time.sleep(0.1)
    return None
