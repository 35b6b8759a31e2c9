"""What runs a captioner, behind one interface, and the registry of what can.

A backend encodes images and runs the decoder a word at a time; beam search, text and scores are the same for all. To
add one that runs exported graphs, write its loader here (a graph's file -> a function of its inputs) and name it in
`GRAPH_RUNTIMES`. Nothing heavy is imported here: the command line reads the registry before it knows the command.
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

AUTO = "auto"  # the first of the others that can
PYTORCH = "torch"  # the one backend that needs no graphs
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"

Run = Callable[[dict[str, "np.ndarray"]], list["np.ndarray"]]  # inputs by name -> outputs in order
Weights = Mapping[str, "np.ndarray"]  # float32, by name


class EncodedImages(NamedTuple):
    """What the decoder needs to know of `B` images.

    Attributes:
        regions: As the vision encoder gives them, `(B, P, D)`.
        keys, values: `(B, P, H)`.
        states: Of both GRUs before the start token, `(2, B, H)`.
    """

    regions: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    states: np.ndarray


class Backend(Protocol):
    """Encodes images and decodes words; what it returns of `encode` is handed to its own `begin`."""

    @property
    def name(self) -> str:
        """One of [`BACKENDS`]."""

    @property
    def can_search(self) -> bool:
        """Whether [`beam_search`] writes the same captions with it as generate() does."""

    @property
    def has_attention(self) -> bool:
        """Whether its decode step says where the model looked."""

    def defaults(self) -> dict[str, Any]:
        """Settings of generate() that the checkpoint was saved with."""

    def decode_tokens(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Token ids -> text."""

    def encode_words(self, text: str) -> list[int]:
        """Text -> token ids, without those that begin or end a caption.

        Raises:
            ValueError: A word that the checkpoint doesn't know.
        """

    def load_image(self, source: ImageSource) -> Image.Image:
        """One image, upright, RGB and as small as the encoder takes it."""

    def encode(self, images: Sequence[ImageSource]) -> Any:
        """Images -> what the decoder needs to know of them."""

    def begin(self, encoded: Any) -> tuple[np.ndarray, Step]:
        """Encoded images -> first states `(2, B, H)` and the decode step."""


@dataclass(frozen=True)
class GraphRuntime:
    """A library that runs graphs.

    Attributes:
        load: Path of a graph, a number of threads, and the weights of a graph without its own or None -> the function
            that runs it.
        extra: The extra of this package that installs it; empty for what any installation has.
        suffixes: Endings of the files that it runs, those that load soonest first.
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
    # A thread that waits by spinning takes the core from those that load images or choose words: half the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray], weights: Weights | None = weights) -> list[np.ndarray]:  # which it refers to
        outputs: list[np.ndarray] = session.run(None, inputs)
        return outputs

    return run


EXTERNAL = "weights"  # the file that a graph without weights says they are in
_making_the_core = threading.Lock()


@cache
def _openvino_core() -> Any:
    """One for all graphs of the process, never deleted.

    Each gives its thread a stack for signals (https://github.com/openvinotoolkit/openvino/pull/11894) and sets the one
    before again when it is deleted, which may be gone: the next signal, Ctrl-C for one, would then end the process.
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
    # Half precision, which OpenVINO takes where the processor has it, would give other captions.
    settings = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    with _making_the_core:
        core = _openvino_core()
    model = core.compile_model(path, "CPU", settings)
    lock = threading.Lock()  # a compiled model has one place for its inputs

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with lock:
            return list(model(inputs).values())

    return run


GRAPH_RUNTIMES = {
    ONNXRUNTIME: GraphRuntime(_load_onnxruntime, "", (".onnx",)),
    OPENVINO: GraphRuntime(_load_openvino, "openvino", (".xml", ".onnx")),
}
BACKENDS = (PYTORCH, *GRAPH_RUNTIMES)


def encode_known(text: str, encode: Callable[[str], Sequence[int]], unknown: int | None) -> list[int]:
    """Text -> token ids.

    Raises:
        ValueError: A word that the tokenizer doesn't know.
    """
    tokens = list(map(int, encode(text)))
    if unknown is not None and unknown in tokens:
        word = next((word for word in text.split() if unknown in encode(word)), text)
        raise ValueError(f"a caption can't begin with {word!r}: the checkpoint doesn't know the word.")
    return tokens
