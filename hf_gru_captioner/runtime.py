"""Runs the graphs of `export` on ONNX Runtime or OpenVINO: NumPy arrays in, NumPy arrays out, and no torch."""

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .checking import check_tokenizer, read_json
from .model.image_loading_gru_captioner import ImageSource, load_image
from .search import Step, StepOutput

MAX_SIDE = 2048  # pixels that photos are scaled to; more is a slip of the keyboard, or meant to take all memory

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class EncodedPhotos(NamedTuple):
    """What the decoder needs to know of `B` photos.

    Attributes:
        regions: As the vision encoder gives them, `(B, P, D)`.
        keys, values: `(B, P, H)`.
        states: Of both GRUs before the start token, `(2, B, H)`.
    """

    regions: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    states: np.ndarray


class Graphs:
    """A captioner's encoder and decode step, with all that goes with them: how photos are prepared, the words.

    Args:
        folder: Where `gru-captioner export` wrote them.
        backend: `"onnxruntime"` or `"openvino"`.
        num_threads: That one graph works with; as many as OMP_NUM_THREADS or the machine says when not given.

    Raises:
        FileNotFoundError: No graphs in the folder.
        ModuleNotFoundError: The backend isn't installed.
        ValueError: The graphs are damaged.
    """

    can_search = True

    def __init__(self, folder: str | Path, backend: str, num_threads: int | None = None):
        folder = Path(folder)
        if not (folder / "graphs.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no graphs: gru-captioner export CHECKPOINT --output {folder} makes them."
            )
        import tokenizers

        load = BACKENDS[backend]
        num_threads = num_threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        try:
            self.settings = _read_settings(folder / "graphs.json")
            self.weights: str = self.settings["weights"]
            height, width = self.settings["image_size"]
            self._image_size = (height, width)
            check_tokenizer(read_json(folder / "tokenizer.json"))
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._encoder, self._step = (
                load(_graph(folder, name, backend), num_threads) for name in ("encoder", "step")
            )
        except (ModuleNotFoundError, FileNotFoundError):
            raise
        except Exception as error:  # each library has its own for a damaged file
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the graphs in {folder} are damaged ({type(error).__name__}: {reason}): export them anew."
            ) from error

    @property
    def has_attention(self) -> bool:
        return self.settings["has_attention"]

    def defaults(self) -> dict[str, Any]:
        """Settings of generate() that the checkpoint was saved with."""
        return self.settings["generation"]

    def decode_tokens(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(map(int, tokens)), skip_special_tokens=skip_special_tokens)

    def load_image(self, source: ImageSource) -> Image.Image:
        """One photo, upright, RGB and at the encoder's size."""
        return load_image(source, size=self._image_size, resample=self.settings["resample"])

    def encode(self, images: Sequence[ImageSource]) -> EncodedPhotos:
        photos = np.stack([np.asarray(self.load_image(image)) for image in images])  # (B, height, width, 3)
        return EncodedPhotos(*self._encoder({"photos": photos}))

    def begin(self, encoded: EncodedPhotos) -> tuple[np.ndarray, Step]:
        """First states `(2, B, H)` and the decode step of encoded photos."""
        num_images = len(encoded.keys)

        def step(tokens: np.ndarray, states: np.ndarray) -> StepOutput:
            inputs = {
                "tokens": tokens.reshape(num_images, -1),
                "states": states.reshape(2, num_images, -1, states.shape[-1]),
                "keys": encoded.keys,
                "values": encoded.values,
            }
            log_probabilities, new_states, *attention = self._step(inputs)
            num_rows = len(tokens)
            return StepOutput(
                log_probabilities.reshape(num_rows, -1),
                new_states.reshape(2, num_rows, -1),
                attention[0].reshape(num_rows, -1) if attention else None,
            )

        return encoded.states, step


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    kinds = {"weights": str, "image_size": list, "resample": int, "has_attention": bool, "generation": dict}
    for name, kind in kinds.items():
        if not isinstance(settings[name], kind):
            raise ValueError(f"{name} in {path.name} is no {kind.__name__}")
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in settings["image_size"]):
        raise ValueError(f"image_size in {path.name} is two sides of 1 to {MAX_SIDE} pixels")
    return settings


def _graph(folder: Path, name: str, backend: str) -> Path:
    endings = {"onnxruntime": ["onnx"], "openvino": ["xml", "onnx"]}[backend]
    for ending in endings:
        if (path := folder / f"{name}.{ending}").is_file():
            return path
    raise FileNotFoundError(f"{folder} has no {name}.{endings[0]}, which {backend} runs: export it in that format.")


def _load_onnxruntime(path: Path, num_threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # A thread that waits by spinning takes the core from whoever loads photos or chooses words: half the speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


_making_the_core = threading.Lock()


@cache
def _openvino_core():
    """One for all graphs of the process, never deleted.

    Each gives its thread a stack for signals (https://github.com/openvinotoolkit/openvino/pull/11894) and sets the one
    before again when it is deleted, which may be gone: the next signal, Ctrl-C for one, would then end the process.
    """
    import openvino

    return openvino.Core()


def _load_openvino(path: Path, num_threads: int) -> Run:
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


BACKENDS = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino}
