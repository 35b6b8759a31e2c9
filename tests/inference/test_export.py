"""A checkpoint exported as graphs: the same outputs in every runtime."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import CLIPImageProcessor

from hf_gru_captioner import Captioner, GRUCaptionerProcessor, web
from hf_gru_captioner.captioner import SHIPPED_CHECKPOINT
from hf_gru_captioner.cli import main
from hf_gru_captioner.inference.backend import GRAPH_RUNTIMES, GraphRuntime
from hf_gru_captioner.inference.export import export_graphs
from hf_gru_captioner.inference.graphs import GraphBackend

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
def test_a_folder_of_whole_graphs_is_scored_and_served_like_its_checkpoint(
    exported, make_dataset, tmp_path, monkeypatch
):
    graphs, checkpoint = Captioner.from_pretrained(exported), Captioner.from_pretrained()
    assert graphs.weights_sha256 == checkpoint.weights_sha256
    assert graphs.fingerprint == checkpoint.fingerprint
    make_dataset(3).to_parquet(tmp_path / "validation.parquet")
    command = ["score", "--data", str(tmp_path), "--checkpoint", str(exported), "--output", str(tmp_path / "out")]
    assert main([*command, "--metrics", "cider", "--tokenizer", "simple"]) == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["checkpoint_sha256"] == checkpoint.weights_sha256
    served = []
    monkeypatch.setattr(web, "serve", lambda pool, load_image, **shown: served.append(pool.names))
    assert main(["demo", str(exported)]) == 0
    assert served == [("graphs",)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graphs_take_any_number_of_photos_and_beams(exported, make_photo, backend):
    graphs = GraphBackend(exported, backend, 1)
    photos = [make_photo(seed, width=224, height=224) for seed in range(5)]
    together, alone = graphs.encode(photos), graphs.encode(photos[3:4])
    for one, all_of_them in zip(alone[:3], together[:3], strict=True):
        np.testing.assert_allclose(one[0], all_of_them[3], atol=1e-4)
    states, step = graphs.begin(together)
    tokens = np.array([7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
    output = step(tokens, states.repeat(2, axis=1))
    of_one, step_of_one = graphs.begin(alone)
    row = step_of_one(tokens[6:7], of_one)
    np.testing.assert_allclose(output.log_probabilities[6], row.log_probabilities[0], atol=1e-4)
    np.testing.assert_allclose(output.states[:, 6], row.states[:, 0], atol=1e-4)
    np.testing.assert_allclose(output.attention.sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_graphs_beside_a_checkpoint_are_found_on_the_hub_and_torch_is_where_they_are_not_enough(hub, exported, photo):
    files = {path.name: path.read_bytes() for path in SHIPPED_CHECKPOINT.iterdir() if path.is_file()}
    hub.publish("me/captioner", files | {f"onnx/{path.name}": path.read_bytes() for path in exported.iterdir()})
    graphs = Captioner.from_pretrained("me/captioner", backend="onnxruntime")
    assert graphs(photo).text == Captioner.from_pretrained()(photo).text
    hub.publish("me/captioner", {})  # another commit since then is not the one that the graphs are of
    assert graphs(photo, repetition_penalty=1.5).text == Captioner.from_pretrained()(photo, repetition_penalty=1.5).text


INTERRUPTED = """
import gc, os, signal, sys
from hf_gru_captioner import Captioner
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background would ignore it
for _ in range(2):
    captioner = Captioner.from_pretrained(sys.argv[1], backend=sys.argv[2])
    captioner(sys.argv[3])
    del captioner
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_whose_captioners_are_gone_can_be_interrupted(exported, photos, tmp_path, backend):
    photos[0].save(tmp_path / "photo.png")
    command = [sys.executable, "-c", INTERRUPTED, exported, backend, tmp_path / "photo.png"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "interrupted\n"


@pytest.mark.slow
def test_what_the_search_does_not_know_still_works(exported, photos):
    captioner = Captioner.from_pretrained()
    graphs = Captioner.from_pretrained(backend="onnxruntime", graphs=exported)
    settings = {"repetition_penalty": 1.5}
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
def test_a_graph_that_answers_otherwise_is_not_kept(make_model, processor, tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(b"")
    monkeypatch.setattr("hf_gru_captioner.inference.export.MAX_DIFFERENCE", -1.0)
    with pytest.raises(ArithmeticError, match=r"encoder\.onnx: regions is off"):
        export_graphs(make_model(), processor, tmp_path / "graphs", tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_folder_of_something_else_is_not_written_over(make_model, processor, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="contains no graphs"):
        export_graphs(make_model(), processor, tmp_path, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("change", range(1, 12))
def test_a_kill_leaves_the_graphs_that_were_there_or_the_new_ones(make_model, processor, tmp_path, monkeypatch, change):
    monkeypatch.setattr(
        "hf_gru_captioner.inference.export._graphs", lambda *_: []
    )  # what is slow and not the matter here
    folder, weights = tmp_path / "graphs", tmp_path / "weights"
    weights.write_bytes(b"old")
    model = make_model()
    export_graphs(model, processor, folder, weights)
    whole, old = {"graphs.json", "tokenizer.json"}, (folder / "graphs.json").read_bytes()
    weights.write_bytes(b"new")
    changes = []

    class Kill(BaseException):
        pass

    with monkeypatch.context() as patched, contextlib.suppress(Kill):
        for name in ("rename", "unlink", "rmdir", "mkdir"):
            change_name = getattr(os, name)

            def do(*arguments, change_name=change_name, **settings):
                changes.append(change_name)
                if len(changes) >= change:  # nor does a process that is dead tidy up
                    raise Kill
                return change_name(*arguments, **settings)

            patched.setattr(os, name, do)
        export_graphs(model, processor, folder, weights)
    assert not folder.exists() or {path.name for path in folder.iterdir()} == whole
    export_graphs(model, processor, folder, weights)
    assert {path.name for path in folder.iterdir()} == whole
    assert (folder / "graphs.json").read_bytes() != old
    assert {path.name for path in tmp_path.iterdir()} == {"graphs", "weights"}


def test_a_processor_that_crops_has_no_graphs(make_model, processor, tmp_path):
    cropping = GRUCaptionerProcessor(CLIPImageProcessor(size={"shortest_edge": 96}), processor.tokenizer)
    with pytest.raises(ValueError, match="resized to a fixed size"):
        export_graphs(make_model(), cropping, tmp_path / "graphs", tmp_path / "weights")


def write_photos(photos, folder):
    folder.mkdir()
    for number, photo in enumerate(photos):
        photo.save(folder / f"{number}.png")
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "format"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_int8_graphs_are_small_and_see_nearly_the_same(exported, tmp_path, make_photo, backend, format):  # noqa: A002
    photos = write_photos([make_photo(seed, width=224, height=224) for seed in range(8)], tmp_path / "photos")
    folder = tmp_path / "graphs"
    assert main(["export", "--output", str(folder), "--format", format, "--int8", "--images", photos]) == 0
    assert sum(path.stat().st_size for path in folder.iterdir()) < 0.6 * sum(
        path.stat().st_size for path in exported.iterdir()
    )
    photo = make_photo(9, width=224, height=224)
    found, expected = (GraphBackend(each, backend, 1).encode([photo]) for each in (folder, exported))
    for one, other in zip(found, expected, strict=True):
        difference = np.abs(one - other).mean() / np.abs(other).mean()
        assert 1e-4 < difference < 0.3  # it is another arithmetic, of the same model
    captioner = Captioner.from_pretrained(backend=backend, graphs=folder)
    assert captioner(photo).score == pytest.approx(Captioner.from_pretrained()(photo).score, abs=0.5)


@pytest.mark.slow
def test_a_format_of_openvino_captions_alike_and_is_refused_elsewhere(exported, photos, tmp_path):
    folder = tmp_path / "graphs"
    assert main(["export", "--output", str(folder), "--format", "openvino"]) == 0
    expected = Captioner.from_pretrained(backend="openvino", graphs=exported)(photos)
    assert Captioner.from_pretrained(backend="openvino", graphs=folder)(photos) == expected
    with pytest.raises(FileNotFoundError, match=r"has no encoder\.onnx, which onnxruntime runs"):
        Captioner.from_pretrained(backend="onnxruntime", graphs=folder)


@pytest.mark.slow
def test_an_exported_program_answers_as_the_graphs_do(exported, make_photo, tmp_path):
    folder = tmp_path / "programs"
    assert main(["export", "--output", str(folder), "--format", "exported-program"]) == 0
    photos = np.stack([np.asarray(make_photo(seed, width=256, height=256)) for seed in range(3)])
    found = torch.export.load(folder / "encoder.pt2").module()(torch.from_numpy(photos))
    for one, other in zip(found, GraphBackend(exported, "onnxruntime", 1).encode(list(photos)), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, atol=1e-3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_disk_is_said_by_openvino_too(make_model, processor, tmp_path, monkeypatch):
    class Full:  # writes its weights onto a disk that is always full
        def write_onnx(self, folder):
            node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
            sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [9]) for name in "ac"]
            weight = onnx.numpy_helper.from_array(np.arange(9, dtype=np.float32), "b")
            graph = onnx.helper.make_graph([node], "graph", sides[:1], sides[1:], [weight])
            onnx.save(onnx.helper.make_model(graph), folder / "encoder.onnx")
            (folder / "encoder.bin").symlink_to("/dev/full")

    monkeypatch.setattr("hf_gru_captioner.inference.export._graphs", lambda *_: [Full()])
    (tmp_path / "weights").write_bytes(b"weights")
    with pytest.raises(OSError, match=r"graphs can't be written to .*encoder\.bin.*Make room and run again"):
        export_graphs(make_model(), processor, tmp_path / "graphs", tmp_path / "weights", format="openvino")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.slow
def test_an_exported_program_that_finds_no_room_is_one_line(checkpoint, tmp_path):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    code = f"{limit}; from hf_gru_captioner.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["export", checkpoint, "--format", "exported-program", "--output", tmp_path / "graphs"]
    process = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 2, process.stderr[-1000:]
    assert [line for line in process.stderr.splitlines() if line.startswith("gru-captioner")]
    assert "Traceback" not in process.stderr
    assert not [path for path in tmp_path.iterdir() if path != checkpoint]


def test_int8_wants_photos_and_a_format_that_has_it(capsys, tmp_path, photo):
    assert main(["export", "--int8", "--output", str(tmp_path / "graphs")]) == 2
    assert "add --images FOLDER" in capsys.readouterr().err
    photo.save(tmp_path / "photo.png")
    options = ["--format", "exported-program", "--int8", "--images", str(tmp_path / "photo.png")]
    assert main(["export", "--output", str(tmp_path / "graphs"), *options]) == 2
    assert "choose onnx or openvino for int8" in capsys.readouterr().err
    assert not (tmp_path / "graphs").exists()


@pytest.mark.slow
def test_graphs_alone_caption_without_torch(exported, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    expected = Captioner.from_pretrained()(tmp_path / "photo.png").text
    code = (
        "import sys; from hf_gru_captioner.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(sorted({'torch', 'transformers', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    arguments = ["caption", str(tmp_path / "photo.png"), "--checkpoint", str(exported), "--backend", "onnxruntime"]
    output = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert expected in output


@pytest.mark.parametrize("file", ["graphs.json", "tokenizer.json", "encoder.onnx", "step.onnx"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.slow
def test_a_damaged_file_is_named(exported, tmp_path, file, backend):
    folder = tmp_path / "graphs"
    shutil.copytree(exported, folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:200])
    with pytest.raises(ValueError, match=r"graphs are damaged|the graphs in .* are damaged"):
        Captioner.from_pretrained(backend=backend, graphs=folder)


def test_graphs_of_other_weights_are_refused(exported, checkpoint):
    with pytest.raises(ValueError, match="were exported from other weights"):
        Captioner.from_pretrained(checkpoint, backend="onnxruntime", graphs=exported)


def test_where_there_are_no_graphs_the_way_to_them_is_said(checkpoint, capsys, photo, tmp_path):
    with pytest.raises(FileNotFoundError, match="gru-captioner export"):
        Captioner.from_pretrained(checkpoint, backend="openvino")
    with pytest.raises(ValueError, match="one of auto, torch, onnxruntime, openvino, found 'tpu'"):
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


def test_threads_are_those_asked_for_or_those_of_the_machine(monkeypatch, tmp_path, exported):
    asked = []

    def load(path, num_threads, weights):
        asked.append(num_threads)

    monkeypatch.setitem(GRAPH_RUNTIMES, "onnxruntime", GraphRuntime(load, "onnxruntime", (".onnx",)))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    GraphBackend(exported, "onnxruntime")
    GraphBackend(exported, "onnxruntime", 2)
    assert asked == [3, 3, 2, 2]
