import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, get_session

from hf_gru_captioner import Captioner
from hf_gru_captioner.captioner import SHIPPED_CHECKPOINT
from hf_gru_captioner.cli import main
from hf_gru_captioner.hub import (
    CODE,
    card_of_checkpoint,
    files_of_checkpoint,
    license_of,
    public_name,
    push,
    render_card,
)

FILES = {"config.json": b'{"model_type": "gru_captioner"}', "model.safetensors": bytes(200_000)}


def test_everything_arrives_in_one_commit(hub, checkpoint):
    files = files_of_checkpoint(checkpoint)
    pushed = push({**files, "README.md": b"# hello"}, "me/captioner", message="first")
    repository = hub.repository("me/captioner")
    assert pushed.url.endswith(pushed.revision)
    assert repository.messages[pushed.revision] == "first"
    assert len(repository.commits) == 2  # the Hub's own, empty one, and ours
    assert repository.files() == {name: path.read_bytes() for name, path in files.items()} | {"README.md": b"# hello"}
    assert hub.large_files  # the weights went as LFS files
    assert not repository.private


def test_a_second_push_sends_only_what_is_new(hub):
    push(FILES, "me/captioner", message="first", private=True)
    assert hub.repository("me/captioner").private
    hub.requests.clear()
    push({**FILES, "README.md": b"new"}, "me/captioner", message="second")
    assert not [path for method, path, _ in hub.requests if method == "PUT"]
    assert hub.repository("me/captioner").files()["README.md"] == b"new"


def test_a_branch_and_a_pull_request_leave_the_main_branch_alone(hub):
    push(FILES, "me/captioner", message="first")
    before = hub.repository("me/captioner").branches["main"]
    branch = push({**FILES, "README.md": b"on a branch"}, "me/captioner", message="branch", revision="better")
    proposed = push({**FILES, "README.md": b"proposed"}, "me/captioner", message="pull request", create_pr=True)
    repository = hub.repository("me/captioner")
    assert repository.branches["main"] == before
    assert repository.branches["better"] == branch.revision
    assert repository.files(proposed.revision)["README.md"] == b"proposed"
    assert proposed.url.endswith("/discussions/1")


def test_a_space_is_made_for_gradio(hub):
    push({"app.py": b"", "README.md": b""}, "me/demo", kind="space", message="demo")
    assert hub.repository("me/demo", "space").settings["sdk"] == "gradio"


@pytest.mark.parametrize("revision", ["main", "better"])
def test_a_line_cut_while_sending_leaves_nothing_half(hub, revision):
    first = push(FILES, "me/captioner", message="first")
    hub.fail("PUT /_lfs/", "cut", times=20)
    changed = {**FILES, "model.safetensors": bytes(200_001)}
    with pytest.raises(OSError, match=r"nothing was published in part.*uploads only what is missing"):
        push(changed, "me/captioner", message="second", revision=revision)
    assert hub.repository("me/captioner").branches[revision] == first.revision
    hub.failures.clear()
    second = push(changed, "me/captioner", message="second", revision=revision)
    assert hub.repository("me/captioner").files(second.revision)["model.safetensors"] == bytes(200_001)


def test_a_hub_that_fails_says_so_in_one_line(hub):
    hub.fail("POST .*/commit/", 500, times=20)
    with pytest.raises(OSError, match=r"nothing was published: status 500"):
        push(FILES, "me/captioner", message="first")
    assert hub.repository("me/captioner").files() == {}


@pytest.mark.parametrize("path", ["GET /api/", "POST /api/repos/create", "PUT /_lfs/", "POST .*/commit/"])
def test_a_hub_that_falls_silent_times_out(hub, monkeypatch, path):
    monkeypatch.setattr("hf_gru_captioner.hub.timeout.READ_TIMEOUT", 0.2)
    before = [*get_session().event_hooks["request"]]
    hub.fail(path, "stall", times=20)
    with pytest.raises(OSError, match=r"nothing was published in part.*uploads only what is missing"):
        push(FILES, "me/captioner", message="first")
    assert get_session().event_hooks["request"] == before
    hub.failures.clear()
    pushed = push(FILES, "me/captioner", message="first")
    assert hub.repository("me/captioner").files(pushed.revision) == FILES


def test_a_commit_whose_answer_is_lost_is_not_said_to_have_failed(hub):
    hub.fail("POST .*/commit/", "late", times=20)
    with pytest.raises(OSError, match="nothing was published in part"):
        push(FILES, "me/captioner", message="first")
    assert hub.repository("me/captioner").files() == FILES


def test_missing_permissions_are_explained(hub, monkeypatch):
    with pytest.raises(OSError, match=r"no write permission for someone/captioner"):
        push(FILES, "someone/captioner", message="first")
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(OSError, match=r"no write permission for me/captioner"):
        push(FILES, "me/captioner", message="first")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(OSError, match=r"access token is not valid"):
        push(FILES, "me/captioner", message="first")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match=r"hf auth login"):
        push(FILES, "me/captioner", message="first")
    assert not hub.repositories


def test_without_a_network_the_error_says_so(hub, monkeypatch):
    hub.server.server_close()
    hub.server.shutdown()
    with pytest.raises(OSError, match=r"127\.0\.0\.1.*can't be reached"):
        push(FILES, "me/captioner", message="first")


def test_a_repository_of_something_else_is_not_overwritten(hub):
    push({**FILES, "config.json": b'{"model_type": "bert"}'}, "me/other", message="first")
    with pytest.raises(ValueError, match="contains something else"):
        push(FILES, "me/other", message="second")
    push({"notes.txt": b"mine"}, "me/notes", message="first")
    with pytest.raises(ValueError, match="contains something else"):
        push(FILES, "me/notes", message="second")


def test_a_name_that_the_hub_does_not_have_is_refused(hub):
    for name in ("me/with spaces", "a/b/c", "me/--"):
        with pytest.raises(ValueError, match="not a valid repository name"):
            push(FILES, name, message="first")


def test_an_access_token_never_leaves(hub):
    secret = b"token: hf_" + b"a1" * 17
    with pytest.raises(ValueError, match=r"README\.md contains an access token"):
        push({**FILES, "README.md": secret}, "me/captioner", message="first")
    assert not hub.requests


def test_nothing_but_what_others_need_is_taken_from_a_checkpoint(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "optimizer.pt").write_bytes(b"")
    (folder / "private-notes.txt").write_text("")
    assert set(files_of_checkpoint(folder)) <= {path.name for path in checkpoint.iterdir()}

    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"optimizer\.pt|pytorch_model\.bin, a pickle.*save_pretrained"):
        files_of_checkpoint(folder)
    for path in folder.glob("*.[bp][it]*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors"):
        files_of_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match="is not the folder of a checkpoint"):
        files_of_checkpoint(folder / "nowhere")


def test_a_pushed_checkpoint_is_json_and_safetensors_only(checkpoint):
    for name, path in files_of_checkpoint(checkpoint).items():
        if name.endswith(".json"):
            json.loads(path.read_text())
        else:
            assert name.endswith((".safetensors", ".py"))


@pytest.fixture
def local(checkpoint, tmp_path):
    """A checkpoint with graphs, whose files contain local paths."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["_name_or_path"] = str(tmp_path / "run")
    config["encoder_config"]["_name_or_path"] = "/home/somebody/encoders/tiny_resnet"
    (checkpoint / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "name_or_path": str(tmp_path)}))
    options = {"data.source": "/home/somebody/shards/train-*.tar", "data.images": "C:\\photos\\mine", "objective": ""}
    options |= {
        "model.encoder": "~/.cache/huggingface/hub/models--timm--resnet18/snapshots/0a1b",
        "model.checkpoint": None,
    }
    options |= {"optimization.label_smoothing": 0.1, "optimization.encoder_learning_rate": None}
    options |= {"optimization.images_per_step": 32}
    stage = {"options": options, "photos": 1, "captions": 5, "epoch": 1, "minutes": 1.0, "machine": "a machine"}
    (checkpoint / "training.json").write_text(json.dumps({"stages": [stage]}))
    assert main(["export", str(checkpoint)]) == 0
    return checkpoint


@pytest.mark.parametrize("with_card", [True, False])
def test_what_is_pushed_names_no_folder_of_the_machine(hub, local, tmp_path, photo, with_card):
    photo.save(tmp_path / "photo.jpg")
    if with_card:
        assert main(["card", str(local), "--images", str(tmp_path / "photo.jpg")]) == 0
        assert str(tmp_path) not in (local / "README.md").read_text()
    assert main(["push", str(local), "me/captioner", "--images", str(tmp_path / "photo.jpg")]) == 0
    files = hub.repository("me/captioner").files()
    assert {"config.json", "README.md", "onnx/encoder.onnx", "training.json"} <= files.keys()
    for name, content in files.items():
        for path in (str(tmp_path), "somebody", "site-packages", "\\photos", "snapshots", str(Path.cwd())):
            assert path.encode() not in content, name
    assert json.loads(files["config.json"])["encoder_config"]["_name_or_path"] == "tiny_resnet"
    assert json.loads(files["config.json"])["hidden_size"] == 16
    options = json.loads(files["training.json"])["stages"][0]["options"]
    assert (options["data.source"], options["data.images"]) == ("train-*.tar", "mine")
    assert (options["model.encoder"], options["model.checkpoint"]) == ("timm/resnet18", None)
    card = files["README.md"].decode()
    assert "A vision encoder (tiny_resnet)" in card
    assert 'pipeline(model="me/captioner"' in card


def test_graphs_with_paths_of_the_machine_are_not_pushed(local):
    graph = local / "onnx" / "step.onnx"
    graph.write_bytes(graph.read_bytes() + b'File "/home/somebody/model.py", line 1')
    with pytest.raises(ValueError, match=r"step\.onnx contains paths of the machine.*export the graphs again"):
        files_of_checkpoint(local)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("timm/some.encoder", "timm/some.encoder"),
        ("gpt2", "gpt2"),
        ("/home/me/encoders/tiny", "tiny"),
        ("../tiny/", "tiny"),
        ("~/tiny", "tiny"),
        ("C:\\Users\\me\\tiny", "tiny"),
        ("a/b/tiny", "tiny"),
        ("/c/hub/models--timm--some.encoder/snapshots/0a1b2c", "timm/some.encoder"),
    ],
)
def test_a_path_is_called_by_its_last_part_and_a_hub_id_by_itself(name, public):
    assert public_name(name) == public


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "me" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("me/tiny") == "tiny"


def test_documentation_and_card_name_all_files_that_travel(checkpoint):
    card = str(render_card(checkpoint, "me/captioner"))
    page = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text()
    assert {path.name for path in checkpoint.glob("*.py")} == set(CODE)
    for name in CODE:
        assert f"`{name}`" in card, name
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.json", "onnx/step.onnx", "README.md", "examples/a.jpg"]
)
@pytest.mark.parametrize("space", [False, True])
def test_a_link_that_leads_outside_is_not_followed(hub, checkpoint, tmp_path, capsys, name, space):
    """Someone else's checkpoint may contain links to local files, which a push would publish."""
    private = tmp_path / "private"
    private.write_bytes((checkpoint / name).read_bytes() if (checkpoint / name).exists() else b"---\n---\nmine")
    (checkpoint / "README.md").write_text("# a captioner")
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(private)
    assert main(["push", str(checkpoint), "me/captioner", *(["--space"] if space else [])]) == 2
    assert f"{name} is a link to outside of {checkpoint}: nothing was sent" in capsys.readouterr().err
    assert not hub.requests


def test_a_folder_that_is_a_link_is_not_followed_and_links_inside_are(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text("# a captioner")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"private")
    (checkpoint / "examples").symlink_to(tmp_path / "pictures")
    with pytest.raises(ValueError, match=r"examples/a\.jpg is a link to outside"):
        card_of_checkpoint(checkpoint)
    (checkpoint / "examples").unlink()
    (checkpoint / "training.json").symlink_to("config.json")
    assert "training.json" in files_of_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", ["user/na me", "user/", "/name", "a/b/c", "captioner", "me/--", "me/" + "a" * 100, "me/é"]
)
def test_a_name_that_the_hub_refuses_is_refused_in_the_dry_run_too(checkpoint, tmp_path, capsys, name):
    assert main(["push", str(checkpoint), name, "--dry-run"]) == 2
    assert "is not a valid repository name: it has the form user/name" in capsys.readouterr().err
    arguments = ["--data.source", "nowhere", "--output-dir", str(tmp_path / "run"), "--dry-run"]
    assert main(["train", *arguments, "--push-to-hub", name]) == 2
    assert "is not a valid repository name" in capsys.readouterr().err


@pytest.fixture
def licensed(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "license": "cc-by-nc-4.0"}))
    return checkpoint


def test_the_license_travels_with_the_weights_wherever_they_are_saved(licensed, tmp_path):
    captioner = Captioner.from_pretrained(licensed)
    captioner.model.save_pretrained(tmp_path / "again")
    captioner.processor.save_pretrained(tmp_path / "again")
    assert license_of(tmp_path / "again") == "cc-by-nc-4.0"
    assert ModelCard(str(render_card(tmp_path / "again", "me/captioner"))).data.license == "cc-by-nc-4.0"


def test_the_shipped_weights_keep_their_license_when_they_are_pushed(hub, tmp_path):
    assert main(["push", str(SHIPPED_CHECKPOINT), "me/captioner"]) == 0
    sent = hub.repository("me/captioner").files()
    assert ModelCard(sent["README.md"].decode()).data.license == "cc-by-nc-4.0"
    assert json.loads(sent["config.json"])["license"] == "cc-by-nc-4.0"


def test_weights_are_not_published_under_another_license(hub, licensed, capsys):
    assert main(["push", str(licensed), "me/captioner", "--license", "mit"]) == 2
    assert "are under the license cc-by-nc-4.0, not mit" in capsys.readouterr().err
    for card in ("---\nlicense: mit\n---\n# mine", "# mine"):
        (licensed / "README.md").write_text(card)
        assert main(["push", str(licensed), "me/captioner"]) == 2
        assert "the weights are under cc-by-nc-4.0" in capsys.readouterr().err
    assert not hub.requests
    (licensed / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# mine")
    assert main(["push", str(licensed), "me/captioner"]) == 0


def test_a_space_brings_the_card_of_its_model(hub, licensed):
    assert main(["push", str(licensed), "me/demo", "--space"]) == 0
    sent = hub.repository("me/demo", "space").files()
    assert ModelCard(sent["checkpoint/README.md"].decode()).data.license == "cc-by-nc-4.0"
    assert ModelCard(sent["README.md"].decode()).data.license == "cc-by-nc-4.0"
