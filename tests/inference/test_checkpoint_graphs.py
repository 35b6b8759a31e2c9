"""The graphs in a checkpoint, which contain no weights and work with any weights of its architecture."""

import collections
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_gru_captioner import Captioner
from hf_gru_captioner.captioner import SHIPPED_CHECKPOINT
from hf_gru_captioner.cli import main
from hf_gru_captioner.inference import export
from hf_gru_captioner.inference.backend import GRAPH_RUNTIMES, GraphRuntime
from hf_gru_captioner.inference.graphs import (
    GraphBackend,
    GraphsError,
    WeightsError,
    architecture_of,
    read_graphs_settings,
    read_weights,
)
from hf_gru_captioner.training.checkpoints import CheckpointGraphs, save_whole

SHIPPED_GRAPHS = SHIPPED_CHECKPOINT / "onnx"


@pytest.fixture(scope="module")
def with_graphs(make_model, draw_weights, processor, tmp_path_factory):
    """A tiny checkpoint with its graphs."""
    folder = tmp_path_factory.mktemp("graphs") / "checkpoint"
    model = draw_weights(make_model(), seed=3)
    model.generation_config.update(max_new_tokens=6, num_beams=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    export.add_graphs(folder, model, processor)
    return folder


@pytest.fixture
def copied(with_graphs, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(with_graphs, folder)
    return folder


@pytest.fixture
def photos(make_photo):
    return [make_photo(seed, width=60 + seed, height=50) for seed in range(4)]


def same(found, expected):
    assert [each.words for each in found] == [each.words for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_shipped_graphs_are_of_the_shipped_weights_and_light():
    settings = read_graphs_settings(SHIPPED_GRAPHS)
    assert settings["architecture"] == architecture_of(SHIPPED_CHECKPOINT)
    weights = read_weights(SHIPPED_CHECKPOINT / "model.safetensors", settings["tensors"])
    for name, of_graph in weights.items():
        graph = onnx.load(SHIPPED_GRAPHS / f"{name}.onnx", load_external_data=False).graph
        external = {each.name: tuple(each.dims) for each in graph.initializer if each.external_data}
        assert external == {name: values.shape for name, values in of_graph.items()}
        own = sum(np.prod(each.dims, dtype=int) for each in graph.initializer if not each.external_data)
        assert own < 100  # how images are scaled, and shapes
    assert sum(path.stat().st_size for path in SHIPPED_GRAPHS.iterdir()) < 500_000


@pytest.mark.slow
def test_shipped_graphs_write_the_captions_of_torch(make_photo):
    photos = [make_photo(seed, width=300, height=200) for seed in range(6)]
    graphs, by_torch = Captioner.from_pretrained(), Captioner.from_pretrained(backend="torch")
    assert (graphs.backend_for(), by_torch.backend_for()) == ("onnxruntime", "torch")
    same(graphs(photos), by_torch(photos))
    same(graphs(photos, num_beams=1), by_torch(photos, num_beams=1))


def test_the_runtime_fuses_and_folds_what_it_is_given_at_load(tmp_path):
    weights = read_weights(SHIPPED_CHECKPOINT / "model.safetensors", read_graphs_settings(SHIPPED_GRAPHS)["tensors"])
    operations = {}
    for name, of_graph in weights.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in of_graph.values()]
        options.add_external_initializers(list(of_graph), values)
        onnxruntime.InferenceSession(SHIPPED_GRAPHS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        graph = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph
        operations[name] = collections.Counter(node.op_type for node in graph.node)
    assert operations["encoder"]["Conv"] == 49
    assert not operations["encoder"].keys() & {"BatchNormalization", "Clip"}  # part of the convolutions
    products = sum(operations["step"][kind] for kind in ("Gemm", "MatMul", "FusedMatMul"))
    assert products == 8  # none for the words' table


def test_captions_are_those_of_torch_whatever_the_weights(copied, make_model, draw_weights, photos):
    same(Captioner.from_pretrained(copied)(photos), Captioner.from_pretrained(copied, backend="torch")(photos))
    before = [caption.text for caption in Captioner.from_pretrained(copied)(photos)]
    other = draw_weights(make_model(), seed=8)
    other.generation_config.update(max_new_tokens=6, num_beams=3)
    other.save_pretrained(copied)
    graphs = Captioner.from_pretrained(copied)
    assert graphs.backend_for() == "onnxruntime"
    same(graphs(photos), Captioner.from_pretrained(copied, backend="torch")(photos))
    assert [caption.text for caption in graphs(photos)] != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read(copied, photos, dtype):
    path = copied / "model.safetensors"
    tensors = {name: each.to(dtype) if each.is_floating_point() else each for name, each in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    same(Captioner.from_pretrained(copied)(photos), Captioner.from_pretrained(copied, backend="torch")(photos))


@pytest.mark.slow
def test_openvino_reads_them_too(with_graphs, photos):
    same(
        Captioner.from_pretrained(with_graphs, backend="openvino")(photos),
        Captioner.from_pretrained(with_graphs, backend="torch")(photos),
    )


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"num_attention_heads": 4}),
        ("config.json", {"hidden_size": 32}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.1, 0.2, 0.3]}}),
    ],
)
def test_graphs_of_another_architecture_are_told_from_its_own(copied, file, change):
    own = architecture_of(copied)
    change_json(copied / file, **change)
    assert architecture_of(copied) != own


def test_where_a_checkpoint_comes_from_changes_nothing(copied):
    own = architecture_of(copied)
    change_json(copied / "config.json", transformers_version="9.9", license="mit", dropout=0.3, dtype="float16")
    config = json.loads((copied / "config.json").read_text())
    config["encoder_config"]["_name_or_path"] = "elsewhere"
    (copied / "config.json").write_text(json.dumps(config))
    assert architecture_of(copied) == own


def test_graphs_of_another_architecture_are_left_alone_with_a_warning(copied, photo, caplog):
    change_json(copied / "config.json", num_attention_heads=4)  # as many weights of the same shapes
    captioner = Captioner.from_pretrained(copied)
    assert captioner.backend_for() == "torch"
    assert "match the architecture of" in caplog.text
    assert f"gru-captioner export {copied}" in captioner.not_graphs
    assert captioner(photo).words == Captioner.from_pretrained(copied, backend="torch")(photo).words
    with pytest.raises(GraphsError, match="match the architecture of"):
        Captioner.from_pretrained(copied, backend="onnxruntime")


def test_what_does_not_run_on_graphs_runs_on_torch_and_why_is_said(copied, checkpoint, monkeypatch, caplog):
    for settings in ({"dtype": "float16"}, {"dtype": torch.bfloat16}, {"device": "meta"}):
        with monkeypatch.context() as patched:
            patched.setattr(Captioner, "_try_out", lambda self, name: None)
            captioner = Captioner.from_pretrained(copied, **settings)
        assert captioner.backend_for() == "torch"
        assert "float32 on the CPU" in captioner.not_graphs
    without = Captioner.from_pretrained(checkpoint)
    assert (without.backend_for(), "has no graphs" in without.not_graphs) == ("torch", True)
    change_json(copied / "onnx" / "graphs.json", precision="int8")
    in_8_bits = Captioner.from_pretrained(copied)
    assert (in_8_bits.backend_for(), "captions may differ" in in_8_bits.not_graphs) == ("torch", True)
    assert Captioner.from_pretrained(copied, backend="onnxruntime").backend_for() == "onnxruntime"
    change_json(copied / "onnx" / "graphs.json", precision="float32")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    not_installed = Captioner.from_pretrained(copied)
    assert (not_installed.backend_for(), not_installed.not_graphs) == ("torch", "onnxruntime is not installed")
    assert not caplog.text  # that is as it should be, and no matter for a warning


def test_settings_that_the_search_does_not_know_go_to_generate(with_graphs, photos):
    graphs, by_torch = Captioner.from_pretrained(with_graphs), Captioner.from_pretrained(with_graphs, backend="torch")
    settings = {"repetition_penalty": 1.5, "num_beams": 2}
    assert graphs.backend_for(**settings) == "onnxruntime+torch"
    same(graphs(photos, **settings), by_torch(photos, **settings))


def test_a_caption_streams_by_graphs_as_by_torch(with_graphs, photo):
    streams = []
    for backend, settings in (
        ("auto", {}),
        ("torch", {}),
        ("torch", {"early_stopping": True}),
    ):
        captioner, texts = Captioner.from_pretrained(with_graphs, backend=backend), []
        ((caption,),) = captioner.decode(captioner.encode([photo]), report=texts.append, num_beams=1, **settings)
        assert texts[-1] == caption.text
        streams.append(texts)
    assert streams[0] == streams[1] == streams[2]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda bias: torch.full_like(bias, torch.nan), "not finite"),
        (lambda bias: bias.long(), "not floating-point"),
        (lambda bias: None, "is missing"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_damaged_weights_are_refused(copied, damage, reason, backend):
    path = copied / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.bias"] = damage(weights["lm_head.bias"])
    save_file({name: each for name, each in weights.items() if each is not None}, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"the weights in .* are damaged: lm_head\.bias .*{reason}"):
        Captioner.from_pretrained(copied, backend=backend)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="can't be read"):
        Captioner.from_pretrained(copied, backend=backend)


def test_weights_of_another_shape_are_refused(copied):
    path = copied / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.bias": weights["lm_head.bias"][:-1].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(GraphsError, match="dimensions do not match"):
        Captioner.from_pretrained(copied, backend="onnxruntime")
    with pytest.raises(ValueError, match=r"the checkpoint .* is damaged"):  # nor does torch take them
        Captioner.from_pretrained(copied)


def test_graphs_without_weights_are_not_a_checkpoint(with_graphs):
    with pytest.raises(GraphsError, match="have no weights of their own"):
        Captioner.from_pretrained(with_graphs / "onnx")


def test_graphs_too_take_missing_special_token_ids_from_the_model(copied, photo):
    expected = Captioner.from_pretrained(copied, backend="onnxruntime")(photo, max_new_tokens=6, num_beams=2)
    settings = json.loads((copied / "generation_config.json").read_text())
    for missing in (["decoder_start_token_id"], ["decoder_start_token_id", "bos_token_id", "eos_token_id"], None):
        (copied / "generation_config.json").unlink()
        if missing is not None:
            kept = {name: value for name, value in settings.items() if name not in missing}
            (copied / "generation_config.json").write_text(json.dumps(kept))
        captioner = Captioner.from_pretrained(copied, backend="onnxruntime")
        caption = captioner(photo, max_new_tokens=6, num_beams=2)
        assert (caption.text, caption.words) == (expected.text, expected.words)
        assert captioner.backend_for(max_new_tokens=6) == "onnxruntime"


@pytest.mark.parametrize(("number", "expected"), [("4,2", 4), (" 3 ", 3), ("many", 7), ("", 7)])
def test_the_first_of_several_numbers_of_threads_counts(copied, monkeypatch, number, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    monkeypatch.setattr("hf_gru_captioner.inference.graphs.os.cpu_count", lambda: 7)
    asked = []
    runtime = GraphRuntime(lambda path, num_threads, weights: asked.append(num_threads), "", (".onnx",))
    monkeypatch.setitem(GRAPH_RUNTIMES, "onnxruntime", runtime)
    GraphBackend(copied / "onnx", "onnxruntime", checkpoint=copied)
    assert asked == [expected] * 2


def test_only_light_libraries_are_imported_for_a_caption(photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    code = (
        "import sys; from hf_gru_captioner.cli import main\n"
        "assert main(['caption', sys.argv[1], '--json', '--verbose']) == 0\n"
        "heavy = 'accelerate datasets gradio huggingface_hub timm torch torchvision transformers'\n"
        "print(sorted(set(heavy.split()) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "photo.png"], capture_output=True, text=True, check=True
    )
    record, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert json.loads(record)["backend"] == "onnxruntime"
    assert done.stderr == "backend: onnxruntime\n"


def test_a_wrong_name_is_said_before_anything_is_loaded(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Captioner, "from_pretrained", None)  # which would fail
    names = [str(tmp_path / "no.jpg"), str(tmp_path / "nor this.jpg")]
    assert main(["caption", *names]) == 2
    assert capsys.readouterr().err.splitlines() == [f"gru-captioner: {name}: no such file." for name in names]
    assert main(["caption", names[0], "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"path": names[0], "error": f"{names[0]}: no such file."}


@pytest.mark.writes_graphs
def test_graphs_of_a_run_are_exported_once_and_fit_every_checkpoint(
    make_model, draw_weights, processor, tmp_path, photos, monkeypatch
):
    model = draw_weights(make_model(), seed=1)
    model.generation_config.update(max_new_tokens=5)
    graphs = CheckpointGraphs(model, processor)
    save_whole(tmp_path / "checkpoint", model, processor, graphs)
    monkeypatch.setattr(export, "add_graphs", None)  # which would fail
    model = draw_weights(model, seed=2).to(torch.float16)
    save_whole(tmp_path / "checkpoint", model, processor, graphs)
    found = Captioner.from_pretrained(tmp_path / "checkpoint")
    assert found.backend_for() == "onnxruntime"
    same(found(photos), Captioner(model.float(), processor)(photos))


@pytest.mark.writes_graphs
def test_a_checkpoint_is_whole_without_graphs_and_why_is_said(model, processor, tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level("INFO")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxscript", None)
        save_whole(tmp_path / "checkpoint", model, processor, CheckpointGraphs(model, processor))
        assert "onnxscript is not installed" in caplog.text
        main(["push", str(tmp_path / "checkpoint"), "me/captioner"])
        assert "onnxscript is not installed" in capsys.readouterr().out

    def fail(*_):
        raise RuntimeError("this encoder can't be exported")

    monkeypatch.setattr(export, "add_graphs", fail)
    save_whole(tmp_path / "checkpoint", model, processor, CheckpointGraphs(model, processor))
    assert "only runs on PyTorch: RuntimeError: this encoder can't be exported" in caplog.text
    main(["push", str(tmp_path / "checkpoint"), "me/captioner"])
    assert "RuntimeError: this encoder can't be exported" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint" / "onnx").exists()
    assert Captioner.from_pretrained(tmp_path / "checkpoint").backend_for() == "torch"


@pytest.mark.writes_graphs
def test_what_is_pushed_has_graphs_of_its_own(copied, hub, photo, capsys):
    change_json(copied / "onnx" / "graphs.json", architecture="another")
    assert main(["push", str(copied), "me/captioner", "--license", "mit"]) == 0
    assert f"written: {copied / 'onnx'}" in capsys.readouterr().out
    assert {"onnx/encoder.onnx", "onnx/step.onnx", "onnx/graphs.json"} <= set(hub.repository("me/captioner").files())
    captioner = Captioner.from_pretrained("me/captioner")
    assert captioner.backend_for() == "onnxruntime"
    assert captioner(photo).text == Captioner.from_pretrained(copied, backend="torch")(photo).text
