import pytest

from hf_gru_captioner.hub import publisher
from hf_gru_captioner.hub.publisher import Publisher


@pytest.fixture
def publish(checkpoint):
    """Publishes a checkpoint and returns what is said."""

    def publish():
        said = []
        publisher = Publisher("me/captioner", said.append)
        publisher(checkpoint)
        publisher.close()
        return said

    return publish


@pytest.mark.parametrize("step", ["files_of_checkpoint", "render_card", "push"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("the client is closed"), "RuntimeError: the client is closed"),
        (OSError("the disk\nis gone"), "the disk is gone"),
        (ValueError("a bad card"), "a bad card"),
        (KeyError("sha"), "KeyError: 'sha'"),
    ],
)
def test_any_error_is_said_and_none_ends_training(publish, monkeypatch, step, error, said):
    def fail(*_, **__):
        raise error

    pushed = []
    monkeypatch.setattr(publisher, "push", lambda *arguments, **_: pushed.append(arguments))
    monkeypatch.setattr(publisher, step, fail)
    assert publish() == [f"not published: {said}"]
    assert not pushed


def test_what_is_published_is_the_checkpoint_of_that_moment(checkpoint, monkeypatch):
    pushed = []
    monkeypatch.setattr(publisher, "push", lambda files, *_, **__: pushed.append(files))
    weights = (checkpoint / "model.safetensors").read_bytes()
    tasks = []
    later = Publisher("me/captioner", [].append)
    monkeypatch.setattr(later._thread, "submit", lambda *task: tasks.append(task))
    later(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"of the next epoch")
    for function, *arguments in tasks:
        function(*arguments)
    assert pushed[0]["model.safetensors"] == weights
    later.close()
