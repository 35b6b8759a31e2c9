"""Runs exported graphs on ONNX Runtime or OpenVINO: NumPy arrays in, NumPy arrays out, no torch."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..checkpoint_limits import MAX_SIDE, check_tokenizer, read_json
from ..errors import MissingExtraError, needs_extra, reason_of
from ..files import (
    CONFIG,
    GENERATION_CONFIG,
    GRAPHS_SETTINGS,
    PROCESSOR_CONFIG,
    PROVENANCE,
    TOKENIZER,
    WEIGHTS,
    sha256_of,
)
from ..model.image_loading_gru_captioner import ImageSource, load_image
from .backend import GRAPH_RUNTIMES, EncodedImages, Run, Weights, encode_known, unused_tokens, with_token_ids
from .beam_search import Step, StepOutput

GRAPHS = ("encoder", "step")
OF_ARCHITECTURE = (  # entries of config.json that the graphs depend on
    *(
        "attention_type",
        "embedding_size",
        "encoder_config",
        "hidden_size",
        "num_attention_heads",
        "tie_word_embeddings",
    ),
    "vocab_size",
)
WIDENED = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}  # by safetensors' names; BF16 is handled separately, NumPy lacks it


class GraphsError(ValueError):
    """The graphs are damaged, or don't match the checkpoint's architecture or weights."""


class WeightsError(ValueError):
    """The weights are damaged."""


class NoGraphsError(FileNotFoundError):
    """There are no graphs, or none that the backend can run."""


class GraphBackend:
    """A captioner's encoder and decoder step as graphs, with its image settings and tokenizer.

    Args:
        folder: Folder of the graphs, written by `gru-captioner export`.
        backend: `"onnxruntime"` or `"openvino"`.
        num_threads: Threads per graph; OMP_NUM_THREADS or the number of cores by default.
        checkpoint: Folder of the checkpoint with the weights, for graphs that have none of their own.

    Raises:
        NoGraphsError: No graphs in the folder.
        MissingExtraError: The backend isn't installed.
        GraphsError: The graphs are damaged, or don't match the checkpoint's architecture.
        WeightsError: The weights are damaged.
    """

    can_search = True

    def __init__(
        self, folder: str | Path, backend: str, num_threads: int | None = None, checkpoint: str | Path | None = None
    ):
        import tokenizers

        folder = Path(folder)

        self.name = backend
        runtime = GRAPH_RUNTIMES[backend]
        num_threads = num_threads or _threads_of_environment() or os.cpu_count() or 1
        try:
            self.settings = read_graphs_settings(folder)
            height, width = self.settings["image_size"]
            self.image_size = (height, width)
            weights: dict[str, Weights] = {}
            config: dict[str, Any] = {}
            source = folder  # of the tokenizer
            if not self.are_whole:
                source = _matching_checkpoint(folder, self.settings, checkpoint)
                weights = read_weights(source / WEIGHTS, self.settings["tensors"])
                path = source / GENERATION_CONFIG
                generation = read_json(path) if path.is_file() else {}
                generation = {name: each for name, each in generation.items() if name[0] != "_"}
                config = read_json(source / CONFIG)
                self.settings["generation"] = with_token_ids(generation, config)
            check_tokenizer(read_json(source / TOKENIZER))
            self._tokenizer = tokenizers.Tokenizer.from_file(str(source / TOKENIZER))
            num_tokens = self._tokenizer.get_vocab_size()
            self.unused_tokens = unused_tokens(num_tokens, config.get("vocab_size", num_tokens))
            with needs_extra(runtime.extra):
                self._encoder, self._step = (
                    runtime.load(_graph(folder, name, backend), num_threads, weights.get(name)) for name in GRAPHS
                )
        except (MemoryError, MissingExtraError, NoGraphsError, GraphsError, WeightsError):
            raise
        except Exception as error:  # each library raises its own for a damaged file
            raise GraphsError(f"the graphs in {folder} are damaged ({reason_of(error)}): export them again.") from error

    @property
    def are_whole(self) -> bool:
        """Whether the graphs contain their weights."""
        return "weights" in self.settings

    @property
    def has_attention(self) -> bool:
        return bool(self.settings["has_attention"])

    def defaults(self) -> dict[str, Any]:
        """The checkpoint's generation settings, with all special token ids."""
        return with_token_ids(self.settings["generation"], {})

    def decode_tokens(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(map(int, tokens)), skip_special_tokens=skip_special_tokens)

    def encode_words(self, text: str) -> list[int]:
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return encode_known(
            text,
            lambda part: self._tokenizer.encode(part, add_special_tokens=False).ids,
            self._tokenizer.token_to_id(unknown) if unknown else None,
        )

    def load_image(self, source: ImageSource) -> Image.Image:
        """Loads an image: upright, RGB, at the encoder's input size."""
        return load_image(source, size=self.image_size, resample=self.settings["resample"])

    def encode(self, images: Sequence[ImageSource]) -> EncodedImages:
        pixels = np.stack([np.asarray(self.load_image(image)) for image in images])  # (B, height, width, 3)
        return EncodedImages(*self._encoder({"images": pixels}))

    def begin(self, encoded: EncodedImages) -> tuple[np.ndarray, Step]:
        """Initial states `(2, B, H)` and the decoder step for encoded images."""
        return encoded.states, _GraphStep(self._step, encoded.keys, encoded.values)


class _GraphStep(NamedTuple):
    """A [`Step`]; keys and values are `(B, P, H)`."""

    run: Run
    keys: np.ndarray
    values: np.ndarray

    def __call__(self, tokens: np.ndarray, states: np.ndarray) -> StepOutput:
        num_images, num_rows = len(self.keys), len(tokens)
        inputs = {
            "tokens": tokens.reshape(num_images, -1),
            "states": states.reshape(2, num_images, -1, states.shape[-1]),
            "keys": self.keys,
            "values": self.values,
        }
        log_probabilities, new_states, *attention = self.run(inputs)
        return StepOutput(
            log_probabilities.reshape(num_rows, -1),
            new_states.reshape(2, num_rows, -1),
            attention[0].reshape(num_rows, -1) if attention else None,
        )

    def of_images(self, images: Sequence[int] | np.ndarray) -> "_GraphStep":
        return _GraphStep(self.run, self.keys[images], self.values[images])


def _threads_of_environment() -> int:
    """OMP_NUM_THREADS, or the first of its numbers, which are for nested levels; 0 if it is not set to a number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def architecture_of(checkpoint: Path) -> str:
    """SHA-256 of what a checkpoint's graphs depend on: its architecture and image preprocessing."""
    config = read_json(checkpoint / CONFIG)
    entries = {name: config.get(name) for name in OF_ARCHITECTURE}
    entries["image_processor"] = read_json(checkpoint / PROCESSOR_CONFIG)["image_processor"]
    return hashlib.sha256(json.dumps(_without_provenance(entries), sort_keys=True).encode()).hexdigest()


def belong(folder: Path, checkpoint: Path) -> bool:
    """Whether graphs belong to a checkpoint: they match its architecture or, if whole, its weights."""
    try:
        settings = read_graphs_settings(folder)
        if "weights" in settings:
            return bool(settings["weights"] == sha256_of(checkpoint / WEIGHTS))
        return bool(settings["architecture"] == architecture_of(checkpoint))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _without_provenance(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_provenance(each) for name, each in content.items() if name not in PROVENANCE}
    return content


def _matching_checkpoint(folder: Path, settings: dict[str, Any], checkpoint: str | Path | None) -> Path:
    if checkpoint is None:
        raise GraphsError(
            f"the graphs in {folder} have no weights of their own: give the checkpoint that contains them, or export "
            "whole ones (gru-captioner export CHECKPOINT --output FOLDER)."
        )
    checkpoint = Path(checkpoint)
    if settings["architecture"] != architecture_of(checkpoint):
        raise GraphsError(
            f"the graphs in {folder} don't match the architecture of {checkpoint}: export them again "
            f"(gru-captioner export {checkpoint})."
        )
    return checkpoint


def read_weights(path: Path, names: dict[str, list[str]]) -> dict[str, Weights]:
    """Float32 tensors of a weights file by name, for each of several lists of names.

    Raises:
        WeightsError: The file is damaged, or a tensor is missing, not floating-point or not finite.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the weights in {path} are damaged and can't be read ({reason_of(error)}).") from error

    def read(name: str) -> np.ndarray:
        if name not in tensors:
            raise WeightsError(f"the weights in {path} are damaged: {name} is missing.")
        kind, shape, data = (tensors[name][key] for key in ("dtype", "shape", "data"))
        if kind == "BF16":  # the upper half of a float32
            values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif kind in WIDENED:
            values = np.frombuffer(data, WIDENED[kind]).astype(np.float32)
        else:
            raise WeightsError(f"the weights in {path} are damaged: {name} is {kind}, not floating-point.")
        if not (np.isfinite(values.min(initial=0)) and np.isfinite(values.max(initial=0))):
            raise WeightsError(f"the weights in {path} are damaged: {name} has values that are not finite.")
        return values.reshape(shape)

    return {graph: {name: read(name) for name in graph_names} for graph, graph_names in names.items()}


def read_graphs_settings(folder: Path) -> dict[str, Any]:
    """The settings recorded with exported graphs.

    Raises:
        NoGraphsError: No graphs in the folder.
        ValueError: The settings are malformed.
    """
    path = folder / GRAPHS_SETTINGS
    if not path.is_file():
        raise NoGraphsError(f"{folder} has no graphs: gru-captioner export CHECKPOINT --output {folder} makes them.")
    settings: dict[str, Any] = read_json(path)
    kinds = {"format": str, "precision": str, "image_size": list, "resample": int, "has_attention": bool}
    kinds |= {"weights": str, "generation": dict} if "weights" in settings else {"architecture": str, "tensors": dict}
    for name, kind in kinds.items():
        if not isinstance(settings[name], kind):
            raise ValueError(f"{name} in {path.name} is not a {kind.__name__}")
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in settings["image_size"]):
        raise ValueError(f"image_size in {path.name} must be two sides of 1 to {MAX_SIDE} pixels")
    return settings


def _graph(folder: Path, name: str, backend: str) -> Path:
    suffixes = GRAPH_RUNTIMES[backend].suffixes
    for suffix in suffixes:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise NoGraphsError(f"{folder} has no {name}{suffixes[0]}, which {backend} runs: export it in that format.")
