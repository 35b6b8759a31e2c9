"""The backend interface and the registry of backends.

A backend encodes images and runs the decoder step by step; beam search, text and scores are shared by all. To add one
that runs exported graphs, write a loader here (path of a graph -> a function of its inputs) and register it in
`GRAPH_RUNTIMES`. Heavy imports are deferred: the command line reads the registry before it parses the command.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..model.image_loading_gru_captioner import ImageSource
    from .beam_search import Step

# transformers' `pad_to_multiple_of` makes vocabularies divisible by 8, 64 or 128, for the sake of tensor cores.
ROUND, MAX_PADDING = 8, 128
AUTO = "auto"  # graphs if possible, else torch
PYTORCH = "torch"  # the one backend that needs no graphs
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"

Run = Callable[[dict[str, "np.ndarray"]], list["np.ndarray"]]  # inputs by name -> outputs in order
Weights = Mapping[str, "np.ndarray"]  # float32, by name


class EncodedImages(NamedTuple):
    """Encoder outputs of `B` images.

    Attributes:
        regions: Features from the vision encoder, `(B, P, D)`.
        keys, values: `(B, P, H)`.
        states: Initial states of both GRUs, `(2, B, H)`.
    """

    regions: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    states: np.ndarray


class Backend(Protocol):
    """Encodes images and decodes words; the result of `encode` is passed to its own `begin`."""

    @property
    def name(self) -> str:
        """One of [`BACKENDS`]."""

    @property
    def can_search(self) -> bool:
        """Whether [`beam_search`] gives the same captions with it as generate()."""

    @property
    def has_attention(self) -> bool:
        """Whether its decoder step returns attention weights."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the images that the encoder sees; None if they vary."""

    @property
    def unused_tokens(self) -> range:
        """Ids of the model that are no token of the tokenizer: a vocabulary may be padded to a round size."""

    def defaults(self) -> dict[str, Any]:
        """The checkpoint's generation settings, with all special token ids."""

    def decode_tokens(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Token ids -> text."""

    def encode_words(self, text: str) -> list[int]:
        """Text -> token ids, without start and end tokens.

        Raises:
            ValueError: A word is not in the vocabulary.
        """

    def load_image(self, source: ImageSource) -> Image.Image:
        """Loads an image: upright, RGB, scaled down to the encoder's input size."""

    def encode(self, images: Sequence[ImageSource]) -> Any:
        """Images -> encoder outputs."""

    def begin(self, encoded: Any) -> tuple[np.ndarray, Step]:
        """Encoder outputs -> initial states `(2, B, H)` and the decoder step."""


@dataclass(frozen=True)
class GraphRuntime:
    """A library that runs graphs.

    Attributes:
        load: Maps the path of a graph, a number of threads and external weights (None if the graph contains its own)
            to a function that runs the graph.
        extra: The extra of this package that installs it; empty if it is always installed.
        suffixes: File suffixes that it can load, the fastest to load first.
    """

    load: Callable[[Path, int, Weights | None], Run]
    extra: str
    suffixes: tuple[str, ...]


def _load_onnxruntime(path: Path, num_threads: int, weights: Weights | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if weights is not None:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in weights.values()]
        options.add_external_initializers(list(weights), values)
    options.intra_op_num_threads = num_threads
    # Spinning threads would take the cores from image loading and beam search, which halves the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray], weights: Weights | None = weights) -> list[np.ndarray]:  # keeps them alive
        outputs: list[np.ndarray] = session.run(None, inputs)
        return outputs

    return run


EXTERNAL = "weights"  # file name that a graph with external weights refers to
_core_lock = threading.Lock()


@cache
def _openvino_core() -> Any:
    """The process's only core, never deleted.

    A core installs a signal stack for its thread (https://github.com/openvinotoolkit/openvino/pull/11894) and restores
    the previous one when deleted. That may no longer exist, and the next signal, such as Ctrl-C, would crash the
    process.
    """
    import openvino

    return openvino.Core()


def _load_openvino(path: Path, num_threads: int, weights: Weights | None) -> Run:
    if weights is not None:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder, (Path(folder) / EXTERNAL).open("wb") as file:
            for each in weights.values():
                file.write(each.data)
            file.flush()
            return _load_openvino(Path(shutil.copy(path, folder)), num_threads, None)
    # By default OpenVINO uses half precision where the CPU supports it, which would change captions.
    settings = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    with _core_lock:
        core = _openvino_core()
    model = core.compile_model(path, "CPU", settings)
    lock = threading.Lock()  # a compiled model has a single input buffer

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with lock:
            return list(model(inputs).values())

    return run


GRAPH_RUNTIMES = {
    ONNXRUNTIME: GraphRuntime(_load_onnxruntime, "", (".onnx",)),
    OPENVINO: GraphRuntime(_load_openvino, "openvino", (".xml", ".onnx")),
}
BACKENDS = (PYTORCH, *GRAPH_RUNTIMES)


def with_token_ids(generation: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings, with special token ids that they lack from the model's configuration.

    Args:
        generation: Settings; generate() starts captions with `bos_token_id` if they have no `decoder_start_token_id`.
        config: Entries of config.json.
    """
    ids = {
        name: _first(generation.get(name), config.get(name))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    start, bos = "decoder_start_token_id", "bos_token_id"
    ids[start] = _first(generation.get(start), generation.get(bos), config.get(start), config.get(bos))
    return {**generation, **{name: value for name, value in ids.items() if value is not None}}


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def unused_tokens(num_tokens: int, vocab_size: int) -> range:
    """Ids of a model with `vocab_size` tokens that its tokenizer of `num_tokens` lacks.

    Raises:
        ValueError: More or others than padding to a round size would add, so the two don't belong together.
    """
    num_unused = vocab_size - num_tokens
    if num_unused < 0 or (num_unused and (num_unused >= MAX_PADDING or vocab_size % ROUND)):
        raise ValueError(
            f"the tokenizer has {num_tokens} tokens, the model {vocab_size}: they are not from the same checkpoint."
        )
    return range(num_tokens, vocab_size)


def encode_known(text: str, encode: Callable[[str], Sequence[int]], unknown: int | None) -> list[int]:
    """Text -> token ids.

    Raises:
        ValueError: A word is not in the tokenizer's vocabulary.
    """
    tokens = list(map(int, encode(text)))
    if unknown is not None and unknown in tokens:
        word = next((word for word in text.split() if unknown in encode(word)), text)
        raise ValueError(f"a caption can't begin with {word!r}: the checkpoint doesn't know the word.")
    return tokens
