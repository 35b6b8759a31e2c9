"""A checkpoint as graphs: the same answers, whatever runs them."""

import numpy as np
import pytest
import torch

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.export import export_graphs
from hf_gru_captioner.runtime import Graphs

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Graphs of the shipped checkpoint."""
    folder = tmp_path_factory.mktemp("export") / "graphs"
    assert main(["export", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def photos(make_photo):
    return [make_photo(seed, width=60 + seed, height=50) for seed in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_captions_are_those_of_torch(exported, photos, backend):
    captioner = Captioner.from_pretrained()
    graphs = Captioner.from_pretrained(backend=backend, graphs=exported)
    for settings in ({"num_captions": 3}, {"num_captions": 1, "num_beams": 1}):
        for found, expected in zip(graphs(photos, **settings), captioner(photos, **settings), strict=True):
            assert [each.text for each in found] == [each.text for each in expected]
            for one, other in zip(found, expected, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)
                np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graphs_take_any_number_of_photos_and_beams(exported, backend):
    graphs = Graphs(exported, backend, 1)
    pixel_values = np.random.default_rng(0).random((5, 3, 224, 224), dtype=np.float32)
    together = graphs.encode(pixel_values)
    alone = graphs.encode(pixel_values[3:4])
    for one, all_of_them in zip(alone[:4], together[:4], strict=True):
        np.testing.assert_allclose(one[0], all_of_them[3], atol=1e-4)
    _, keys, values, _, states = together
    tokens = np.array([7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    output = graphs.step(keys, values)(tokens, states.repeat(2, axis=1))
    row = graphs.step(keys[3:4], values[3:4])(tokens[6:7], states[:, 3:4])
    np.testing.assert_allclose(output.log_probabilities[6], row.log_probabilities[0], atol=1e-4)
    np.testing.assert_allclose(output.states[:, 6], row.states[:, 0], atol=1e-4)
    np.testing.assert_allclose(output.attention.sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_what_the_search_does_not_know_still_works(exported, photos):
    captioner = Captioner.from_pretrained()
    graphs = Captioner.from_pretrained(backend="onnxruntime", graphs=exported)
    settings = {"no_repeat_ngram_size": 1}
    assert [each.text for each in graphs(photos, **settings)] == [each.text for each in captioner(photos, **settings)]


@pytest.mark.slow
def test_a_model_without_attention_is_exported_too(make_model, processor, photos, tmp_path):
    model = make_model(attention_type="none")
    model.generation_config.update(max_new_tokens=5, num_beams=2)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    assert main(["export", str(tmp_path / "checkpoint")]) == 0
    captioner = Captioner.from_pretrained(tmp_path / "checkpoint", backend="onnxruntime")
    expected = Captioner(model, processor)(photos)
    assert [each.words for each in captioner(photos)] == [each.words for each in expected]
    assert captioner(photos[0]).attention is None


@pytest.mark.slow
def test_a_graph_that_answers_otherwise_is_not_kept(make_model, tmp_path, monkeypatch):
    model = make_model()
    (tmp_path / "weights").write_bytes(b"")
    monkeypatch.setattr("hf_gru_captioner.export.MAX_DIFFERENCE", -1.0)
    with pytest.raises(ArithmeticError, match=r"encoder\.onnx: regions is off"):
        export_graphs(model, tmp_path / "graphs", tmp_path / "weights", (96, 96))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_folder_of_something_else_is_not_written_over(make_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no graphs"):
        export_graphs(make_model(), tmp_path, tmp_path / "notes.txt", (96, 96))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_graphs_of_other_weights_are_refused(exported, checkpoint):
    with pytest.raises(ValueError, match="are of other weights"):
        Captioner.from_pretrained(checkpoint, backend="onnxruntime", graphs=exported)


def test_where_there_are_no_graphs_the_way_to_them_is_said(checkpoint, capsys, photo, tmp_path):
    with pytest.raises(FileNotFoundError, match="gru-captioner export"):
        Captioner.from_pretrained(checkpoint, backend="openvino")
    with pytest.raises(ValueError, match="one of torch, onnxruntime, openvino, found 'tpu'"):
        Captioner.from_pretrained(checkpoint, backend="tpu")
    photo.save(tmp_path / "photo.png")
    assert main(["caption", str(tmp_path / "photo.png"), "--checkpoint", str(checkpoint), "--backend", "openvino"]) == 2
    assert "has no graphs: gru-captioner export" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_captions_by_graphs(exported, photo, tmp_path, capsys):
    photo.save(tmp_path / "photo.png")
    graphs = ["--backend", "onnxruntime", "--graphs", str(exported)]
    assert main(["caption", str(tmp_path / "photo.png"), *graphs]) == 0
    assert Captioner.from_pretrained()(tmp_path / "photo.png").text in capsys.readouterr().out


def test_threads_of_torch_are_those_of_the_graphs(monkeypatch, checkpoint):
    asked = []

    class Fake:
        def __init__(self, folder, backend, num_threads):
            asked.append((folder, backend, num_threads))
            raise FileNotFoundError

    monkeypatch.setattr("hf_gru_captioner.captioning.Graphs", Fake)
    with pytest.raises(FileNotFoundError):
        Captioner.from_pretrained(checkpoint, backend="openvino")
    assert asked == [(checkpoint / "onnx", "openvino", torch.get_num_threads())]
