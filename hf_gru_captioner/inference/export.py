"""Exports a captioner as two graphs, the encoder and one decoder step; the search loop stays outside.

    encoder.onnx      images -> regions, keys, values, states
    step.onnx         tokens, states, keys, values -> log_probabilities, new_states, attention
    graphs.json       what they were exported from, how images are scaled

Graphs inside a checkpoint hold no weights: they refer to tensors in the checkpoint's own file by name, which are passed
to the runtime at load time. So they depend on the architecture only. Graphs exported to another folder are whole:
with weights, vocabulary (tokenizer.json) and generation settings, they are all that captioning needs. OpenVINO IR has
`.xml` and `.bin` in place of `.onnx`, PyTorch's exported programs have `.pt2`.

Both graphs take any number of images, the step any number of beams. The encoder takes uint8 pixels: its first layer
normalizes them. The runtimes fuse batch norm and activations, and fold constants.

int8: the encoder's convolutions have 8-bit inputs and outputs, with ranges from the calibration set, and per-channel
weights; the step has 8-bit weights and dynamically quantized inputs. Each runtime is fast only with int8 graphs in its
own format.

Letters in shape comments:
    B images    K beams    P regions    H hidden    V vocabulary
"""

import contextlib
import copy
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from ..files import GRAPHS_FOLDER, GRAPHS_SETTINGS, TOKENIZER, WEIGHTS, atomic_folder, sha256_of
from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from .backend import EXTERNAL, GRAPH_RUNTIMES, with_token_ids
from .graphs import architecture_of

FORMATS = ("onnx", "openvino", "exported-program")
MAX_DIFFERENCE = 1e-3  # between the outputs of PyTorch and of a graph

# 7-bit weights: without VNNI (AVX2, older AVX-512) a CPU sums two 8-bit products in 16 bits, which overflow: regions
# were off by 74 %. The CPU that will run the graphs is unknown at export.
REDUCED_RANGE = True


def export_graphs(
    model: GRUCaptionerForConditionalGeneration,
    processor: GRUCaptionerProcessor,
    folder: str | Path,
    weights: str | Path,
    *,
    format: str = "onnx",  # noqa: A002
    calibration: np.ndarray | None = None,
) -> None:
    """Exports a captioner's graphs with their weights to a folder, atomically.

    Args:
        model: A captioner, in float32 on the CPU.
        processor: Its processor.
        folder: Output folder; replaced if it contains graphs.
        weights: The file that the model was loaded from; its hash identifies the graphs.
        format: One of [`FORMATS`].
        calibration: Calibration set for int8 graphs, `(images, height, width, 3)` uint8, like the images to caption.

    Raises:
        FileExistsError: The folder contains something else.
        ArithmeticError: The outputs of a graph differ from the model's.
        OSError: Writing failed; existing graphs are unchanged.
        ValueError: The processor does more than resize images, or the format is unknown.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"the format is one of {', '.join(FORMATS)}, found {format!r}.")
    if format == "exported-program" and calibration is not None:
        raise ValueError("an exported program is written in float32 only: choose onnx or openvino for int8.")
    settings = _settings(model, processor) | {
        "weights": sha256_of(weights),
        "license": getattr(model.config, "license", None) or "other",
        "format": format,
        "precision": "float32" if calibration is None else "int8",
        "generation": _generation(model, processor),
    }
    with _written(folder) as temporary:
        _write_graphs(_graphs(model.eval(), processor), temporary, format, calibration)
        processor.tokenizer.backend_tokenizer.save(str(temporary / TOKENIZER))
        (temporary / GRAPHS_SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def add_graphs(
    checkpoint: str | Path, model: GRUCaptionerForConditionalGeneration, processor: GRUCaptionerProcessor
) -> Path:
    """Adds graphs to a saved checkpoint, atomically; they use the weights in its `model.safetensors`.

    Args:
        checkpoint: The checkpoint's folder.
        model: The captioner that was saved there, in float32 on the CPU, with any weights.
        processor: Its processor.

    Returns:
        The graphs' folder, a few hundred kilobytes in size.

    Raises:
        FileExistsError, ArithmeticError, OSError: As in [`export_graphs`].
        ValueError: The processor does more than resize images.
    """
    from safetensors import safe_open

    checkpoint = Path(checkpoint)
    folder = checkpoint / GRAPHS_FOLDER
    settings = _settings(model, processor) | {
        "architecture": architecture_of(checkpoint),
        "format": "onnx",
        "precision": "float32",
    }
    tensors = model.state_dict(keep_vars=True)
    with safe_open(checkpoint / WEIGHTS, "np") as file:
        saved = {name: tensors[name] for name in file.keys()}  # noqa: SIM118, not a dict
    with _written(folder) as temporary:
        graphs = _graphs(model.eval(), processor, whole=False)
        settings["tensors"] = {graph.name: graph.write_structure(temporary, saved) for graph in graphs}
        (temporary / GRAPHS_SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
    return folder


def _generation(model: GRUCaptionerForConditionalGeneration, processor: GRUCaptionerProcessor) -> dict[str, Any]:
    """Generation settings of whole graphs, which have no config.json."""
    settings = {name: value for name, value in model.generation_config.to_diff_dict().items() if name[0] != "_"}
    if unused := range(len(processor.tokenizer), model.config.vocab_size):
        settings["suppress_tokens"] = [*(settings.get("suppress_tokens") or ()), *unused]
    return with_token_ids(settings, model.config.to_dict())


def _settings(model: GRUCaptionerForConditionalGeneration, processor: GRUCaptionerProcessor) -> dict[str, Any]:
    """Settings that both kinds of graphs record."""
    if processor.image_size is None:
        raise ValueError("graphs need images resized to a fixed size, but this processor crops or pads them.")
    return {
        "image_size": processor.image_size,
        "resample": int(processor.image_processor.resample),
        "has_attention": model.config.attention_type != "none",
    }


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces a graphs folder on success.

    Raises:
        FileExistsError: The folder contains something else.
        OSError: Writing failed.
    """
    if folder.exists() and not (folder / GRAPHS_SETTINGS).is_file():
        raise FileExistsError(f"{folder} exists and contains no graphs: choose another.")
    try:
        with atomic_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        raise OSError(
            f"the graphs can't be written to {folder} ({error}); it is unchanged. Make room and run again."
        ) from error


def _write_graphs(graphs: "list[Graph]", folder: Path, format: str, calibration: np.ndarray | None) -> None:  # noqa: A002
    if format == "exported-program":
        for graph in graphs:
            graph.write_program(folder)
        return
    for graph in graphs:
        graph.write_onnx(folder)
    if calibration is not None:
        _quantize_encoder(folder / "encoder.onnx", calibration)
        (_compress_step if format == "openvino" else _quantize_step)(folder / "step.onnx")
    if format == "openvino":
        _convert_to_openvino(folder)


class Encoder(nn.Module):
    """uint8 images -> encoder outputs and initial decoder states."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: GRUCaptionerForConditionalGeneration, image_processor: Any):
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder
        mean, deviation = torch.zeros(3), torch.ones(3)
        if image_processor.do_normalize:
            mean, deviation = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
        factor = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        self.register_buffer("scale", (factor / deviation)[:, None, None])  # (3, 1, 1)
        self.register_buffer("shift", (-mean / deviation)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # (B, height, width, 3) uint8
        encoded = self.encoder(images.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        keys, values, mean_region = encoded["projected_regions"]  # (B, P, H), (B, P, H), (B, H)
        return encoded["last_hidden_state"], keys, values, self.decoder.first_states(mean_region)


class Step(nn.Module):
    """One decoder step: the decoder's own forward with separate, dynamic image and beam axes.

    The language GRU's only inputs are words, so its input gates are computed once for the whole vocabulary: at export
    if the graph is `whole`, otherwise by the runtime at load time.
    """

    def __init__(self, model: GRUCaptionerForConditionalGeneration, whole: bool):
        super().__init__()
        decoder: Any = copy.copy(model.decoder)  # same weights, different layers
        decoder._modules = dict(decoder._modules)
        self.decoder, self.lm_head = decoder, model.lm_head
        gates = GatesByWord(decoder.embed_tokens, decoder.language_gru)
        decoder.language_gru = OneWordOfGates(decoder.language_gru)
        decoder.embed_tokens = nn.Embedding.from_pretrained(gates.table().detach()) if whole else gates
        decoder.fusion_gru = OneWord(decoder.fusion_gru)

    def forward(self, tokens: Tensor, states: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """`(B, K)`, `(2, B, K, H)`, `(B, P, H)`, `(B, P, H)` -> `(B, K, V)`, `(2, B, K, H)`, `(B, K, P)`."""
        mean_region = values.mean(dim=1)  # (B, H), only its batch size matters: the states are given
        words = tokens.flatten(0, 1)[:, None]  # (B K, 1)
        decoded = self.decoder(words, (keys, values, mean_region), states.flatten(1, 2))
        log_probabilities = self.lm_head(decoded.output_embeddings[:, 0]).log_softmax(dim=-1)  # (B K, V)
        outputs = [log_probabilities.unflatten(0, tokens.shape), decoded.states.unflatten(1, tokens.shape)]
        if decoded.attention_weights is not None:  # (B K, 1, A, P)
            outputs.append(decoded.attention_weights[:, 0].mean(dim=1).unflatten(0, tokens.shape))  # (B, K, P)
        return tuple(outputs)


class OneWord(nn.Module):
    """A single GRU step, written out in operations that the exporter supports."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        self.input, self.state = _linear_layers(gru)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1, E), (1, N, H)
        state = _gru_cell(self.input(inputs[:, 0]), self.state(state[0]), state[0])  # (N, H)
        return state[:, None], state[None]  # (N, 1, H), (1, N, H)


class OneWordOfGates(nn.Module):
    """A single GRU step with precomputed input gates."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        _, self.state = _linear_layers(gru)

    def forward(self, gates: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1, 3 H), (1, N, H)
        state = _gru_cell(gates[:, 0], self.state(state[0]), state[0])  # (N, H)
        return state[:, None], state[None]


class GatesByWord(nn.Module):
    """Words `(N, 1)` -> input gates of a GRU, `(N, 1, 3 H)`."""

    def __init__(self, embeddings: nn.Embedding, gru: nn.GRU):
        super().__init__()
        self.embeddings = embeddings
        self.input, _ = _linear_layers(gru)

    def table(self) -> Tensor:
        """Gates for the whole vocabulary, `(V, 3 H)`."""
        gates: Tensor = self.input(self.embeddings.weight)
        return gates

    def forward(self, words: Tensor) -> Tensor:
        return F.embedding(words, self.table())


def _linear_layers(gru: nn.GRU) -> tuple[nn.Linear, nn.Linear]:
    """A GRU's input layer `(..., E) -> (..., 3 H)` and state layer `(..., H) -> (..., 3 H)`."""
    input_layer = nn.Linear(gru.input_size, 3 * gru.hidden_size)
    state_layer = nn.Linear(gru.hidden_size, 3 * gru.hidden_size)
    weights: Any = dict(gru.named_parameters())
    input_layer.weight, input_layer.bias = weights["weight_ih_l0"], weights["bias_ih_l0"]
    state_layer.weight, state_layer.bias = weights["weight_hh_l0"], weights["bias_hh_l0"]
    return input_layer, state_layer


def _gru_cell(input_gates: Tensor, state_gates: Tensor, state: Tensor) -> Tensor:  # (N, 3 H), (N, 3 H), (N, H)
    """As torch defines it: https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html."""
    reset_i, update_i, new_i = input_gates.chunk(3, dim=-1)
    reset_s, update_s, new_s = state_gates.chunk(3, dim=-1)
    new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_s) * new_s)
    return new + torch.sigmoid(update_i + update_s) * (state - new)  # (N, H)


class Graph:
    """A module to export, with example inputs."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        inputs: dict[str, Tensor],
        outputs: list[str],
        dynamic_shapes: dict[str, Any],
    ):
        self.name, self.module, self.inputs, self.outputs = name, module.eval(), inputs, outputs
        self.dynamic_shapes = dynamic_shapes

    @torch.no_grad()
    def _translate(self, optimize: bool = True) -> Any:
        """The module as an ONNX program, which also holds the exported program."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about names that it changes
            return torch.onnx.export(
                self.module,
                tuple(self.inputs.values()),
                dynamo=True,
                input_names=list(self.inputs),
                output_names=self.outputs,
                dynamic_shapes=self.dynamic_shapes,
                verbose=False,
                optimize=optimize,
            )

    def write_onnx(self, folder: Path) -> None:
        path = folder / f"{self.name}.onnx"
        translated = self._translate()
        _remove_traces(translated.model)
        translated.save(path, external_data=False)
        self._check_onnx(path)

    def write_structure(self, folder: Path, saved: Mapping[str, Tensor]) -> list[str]:
        """Writes the graph without its weights.

        Args:
            folder: Output folder.
            saved: The model's tensors in the checkpoint file, by their names there.

        Returns:
            Names of the tensors that the graph uses, in the order of their offsets in its external data file.
        """
        import onnx_ir

        path = folder / f"{self.name}.onnx"
        name_of = {tensor.data_ptr(): name for name, tensor in saved.items()}  # weights may be tied
        own = self.module.state_dict(keep_vars=True)
        translated = self._translate(optimize=False)
        graph = translated.model.graph
        weights: dict[str, Any] = {}
        for own_name, value in list(graph.initializers.items()):
            name = name_of.get(own[own_name].data_ptr()) if own_name in own else None
            if name is None:
                continue  # the normalization constants stay in the graph
            del graph.initializers[own_name]
            if name in weights:  # tied
                value.replace_all_uses_with(weights[name])
                continue
            value.name, value.const_value = name, None
            graph.inputs.append(value)  # so that nothing that depends on it is folded
            weights[name] = value
        translated.optimize()
        _remove_traces(translated.model)
        graph, offset = translated.model.graph, 0
        used = {value.name: value for value in graph.inputs if value.name in weights and value.uses()}
        for value in [each for each in graph.inputs if each.name in weights]:
            graph.inputs.remove(value)
        for name, value in used.items():
            length = 4 * math.prod(value.shape.numpy())
            value.const_value = onnx_ir.ExternalTensor(
                EXTERNAL, offset, length, onnx_ir.DataType.FLOAT, shape=value.shape, name=name
            )
            graph.initializers[name] = value
            offset += length
        onnx_ir.save(translated.model, path)
        self._check_onnx(path, {name: saved[name].detach().numpy() for name in used})
        return list(used)

    def _check_onnx(self, path: Path, weights: Mapping[str, np.ndarray] | None = None) -> None:
        run = GRAPH_RUNTIMES["onnxruntime"].load(path, 1, weights)
        outputs = run({name: value.numpy() for name, value in self.inputs.items()})
        self._check(path.name, map(torch.from_numpy, outputs))

    def write_program(self, folder: Path) -> None:
        path = folder / f"{self.name}.pt2"
        buffer = io.BytesIO()  # torch's own file writer aborts the process when writing fails
        torch.export.save(self._translate().exported_program, buffer)
        path.write_bytes(buffer.getvalue())
        self._check(path.name, torch.export.load(path).module()(*self.inputs.values()))

    @torch.no_grad()
    def _check(self, file: str, outputs: Iterable[Tensor]) -> None:
        for name, output, expected in zip(self.outputs, outputs, self.module(*self.inputs.values()), strict=True):
            difference = (output - expected).abs().max().item()
            if not difference <= MAX_DIFFERENCE:
                raise ArithmeticError(f"{file}: {name} is off by {difference:.2g}; the graphs were not saved.")


def _remove_traces(model: Any) -> None:
    """Removes stack traces from the nodes, which contain paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()


@torch.no_grad()
def _graphs(
    model: GRUCaptionerForConditionalGeneration, processor: GRUCaptionerProcessor, whole: bool = True
) -> list[Graph]:
    num_images, num_beams = Dim("images", min=1, max=65536), Dim("beams", min=1, max=1024)
    height, width = processor.image_size or (0, 0)  # never None here: checked before
    images = torch.randint(256, (2, height, width, 3), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)  # (B, height, width, 3)
    encoder, step = Encoder(model, processor.image_processor).eval(), Step(model, whole).eval()
    _, keys, values, states = (output.contiguous() for output in encoder(images))
    tokens = torch.full((2, 3), model.config.decoder_start_token_id)
    states = states[:, :, None].repeat(1, 1, 3, 1)  # (2, B, K, H)
    outputs = ["log_probabilities", "new_states", "attention"]
    return [
        Graph(
            "encoder", encoder, {"images": images}, ["regions", "keys", "values", "states"], {"images": {0: num_images}}
        ),
        Graph(
            "step",
            step,
            {"tokens": tokens, "states": states, "keys": keys, "values": values},
            outputs[: 2 if model.config.attention_type == "none" else 3],
            {
                "tokens": {0: num_images, 1: num_beams},
                "states": {1: num_images, 2: num_beams},
                "keys": {0: num_images},
                "values": {0: num_images},
            },
        ),
    ]


def _quantize_encoder(path: Path, calibration: np.ndarray) -> None:
    """Quantizes convolutions, their clipping and additions to 8 bits; regions and keys stay float32."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image[None]}

    fused = path.with_name("fused.onnx")
    with _quiet():
        quant_pre_process(path, fused, skip_symbolic_shape=True)
        quantize_static(
            fused,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Clip", "Add"],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with signed weights: the fast combination on CPUs
            weight_type=QuantType.QInt8,
            reduce_range=REDUCED_RANGE,
        )
    fused.unlink()


def _quantize_step(path: Path) -> None:
    """Quantizes the weights to 8 bits; ONNX Runtime quantizes the inputs of each product at run time."""
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    whole = path.with_name("whole.onnx")
    with _quiet():
        quant_pre_process(path, whole, skip_symbolic_shape=True)
        quantize_dynamic(
            whole, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=REDUCED_RANGE
        )
    whole.unlink()


def _compress_step(path: Path) -> None:
    """Quantizes the weights to 8 bits in the form that is fast in OpenVINO: int8 constants, dequantized on use."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]
    for node in products:
        weight = constants.pop(node.input[1])
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        channel = 0 if is_transposed else 1
        values = numpy_helper.to_array(weight)
        scale = (np.abs(values).max(axis=1 - channel, keepdims=True) / 127).astype(np.float32)
        parts = {"int8": np.rint(values / scale).astype(np.int8), "scale": scale.ravel()}
        parts["zero"] = np.zeros(scale.size, dtype=np.int8)
        for part, each in parts.items():
            graph.initializer.append(numpy_helper.from_array(each, f"{weight.name}.{part}"))
        graph.initializer.remove(weight)
        names = [f"{weight.name}.{part}" for part in parts]
        graph.node.insert(0, helper.make_node("DequantizeLinear", names, [weight.name], axis=channel))
    onnx.save(model, path)


def _convert_to_openvino(folder: Path) -> None:
    import openvino

    for path in (folder / "encoder.onnx", folder / "step.onnx"):
        graph = openvino.convert_model(path)
        try:
            openvino.save_model(graph, path.with_suffix(".xml"), compress_to_fp16=False)
        except RuntimeError as error:  # its only sign of a full disk
            raise OSError(f"{path.with_suffix('.bin')}: {error}") from error
        path.unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the quantizer logs and prints."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.root.setLevel(level)
