from functools import partial

import pytest
from huggingface_hub import constants, get_session

from hf_gru_captioner import Captioner
from hf_gru_captioner.hub import fetch

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "notes/model.md": b"long",
    "other.bin": b"pickle",
}


@pytest.fixture
def publish(hub, monkeypatch):
    """Publishes files on the Hub as me/captioner, with a short timeout for its clients."""

    def shorten(request):
        request.extensions["timeout"] = dict.fromkeys(request.extensions["timeout"], 0.2)

    hooks = get_session().event_hooks["request"]
    hooks.append(shorten)
    monkeypatch.setattr("hf_gru_captioner.hub.timeout.READ_TIMEOUT", 0.2)
    yield partial(hub.publish, "me/captioner")
    hooks.remove(shorten)


@pytest.fixture
def published(publish, checkpoint):
    publish({path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_that_are_wanted_are_fetched_of_one_commit(publish):
    first = publish(FILES)
    publish({**FILES, "config.json": b"{ }"})
    wanted = {name: FILES[name] for name in ("config.json", "model.safetensors")}
    folder = fetch("me/captioner", ["*.json", "model.safetensors"], revision=first)
    assert contents(folder) == wanted
    assert folder.name == first
    assert contents(fetch("me/captioner", ["*.json"])) == {"config.json": b"{ }"}


def test_what_is_in_the_cache_is_taken_when_the_hub_is_away_and_a_part_is_not(hub, publish, monkeypatch):
    publish(FILES)
    folder = fetch("me/captioner", ["*.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("me/captioner", ["*.json"]) == folder
    with pytest.raises(FileNotFoundError, match="nor complete in the cache, and HF_HUB_OFFLINE is set"):
        fetch("me/captioner", ["*.json", "model.safetensors"])


@pytest.mark.parametrize("repo_id", ["me/nothing", "not/a/name", "./here", "someone else's"])
def test_what_is_not_there_is_said(hub, repo_id):
    with pytest.raises(FileNotFoundError, match=f"^{repo_id} is neither a folder nor "):
        fetch(repo_id, ["*.json"])


def test_a_revision_that_is_not_there_is_said(publish):
    publish(FILES)
    with pytest.raises(FileNotFoundError, match="me/captioner has no revision old"):
        fetch("me/captioner", ["*.json"], revision="old")


@pytest.mark.parametrize("how", [500, "cut", "half", "stall"])
@pytest.mark.parametrize("path", ["GET /api/models/me/captioner", "GET .*/tree/", "/resolve/.*/model.safetensors"])
def test_a_hub_that_breaks_is_said_and_then_nothing_is_missing(hub, publish, path, how):
    publish(FILES)
    hub.fail(path, how, times=40)
    with pytest.raises(OSError, match="me/captioner can't be downloaded from the Hub: try again"):
        fetch("me/captioner", ["*.json", "model.safetensors"])
    hub.failures.clear()
    assert set(contents(fetch("me/captioner", ["*.json", "model.safetensors"]))) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "processor_config.json", "tokenizer.json"])
def test_settings_that_the_hub_does_not_give_are_not_made_up(hub, published, checkpoint, photo, name):
    hub.fail(f"/resolve/.*/{name}", 500, times=40)
    with pytest.raises(OSError, match="me/captioner can't be downloaded from the Hub"):
        Captioner.from_pretrained("me/captioner")
    hub.failures.clear()
    assert Captioner.from_pretrained("me/captioner")(photo) == Captioner.from_pretrained(checkpoint)(photo)


def test_a_model_of_the_hub_goes_by_its_name_there(published, checkpoint):
    for name in ("me/captioner", str(checkpoint)):
        model = Captioner.from_pretrained(name).model
        assert (model.name_or_path, model.config.name_or_path) == (name, name)


def test_of_a_model_of_another_kind_only_the_configuration_is_fetched(hub, publish):
    publish({**FILES, "config.json": b'{"model_type": "bert"}'})
    with pytest.raises(ValueError, match="me/captioner is not a GRU captioner but a model of type 'bert'"):
        Captioner.from_pretrained("me/captioner")
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]
