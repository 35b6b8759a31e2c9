"""Runs the graphs of `export` on ONNX Runtime or OpenVINO: NumPy arrays in, NumPy arrays out."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .search import Step, StepOutput

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Graphs:
    """A captioner's encoder and decode step.

    Args:
        folder: Where `gru-captioner export` wrote them.
        backend: `"onnxruntime"` or `"openvino"`.
        num_threads: That one graph works with.

    Raises:
        FileNotFoundError: No graphs in the folder.
        ModuleNotFoundError: The backend isn't installed.
    """

    def __init__(self, folder: str | Path, backend: str, num_threads: int):
        folder = Path(folder)
        if not (folder / "graphs.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no graphs: gru-captioner export CHECKPOINT --output {folder} makes them."
            )
        self.weights = json.loads((folder / "graphs.json").read_text())["weights"]
        load = BACKENDS[backend]
        self._encoder, self._step = (load(folder / f"{name}.onnx", num_threads) for name in ("encoder", "step"))

    def encode(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        """Photos `(B, 3, height, width)` -> regions `(B, P, D)`, keys and values `(B, P, H)`, mean region `(B, H)`,
        first states `(2, B, H)`."""
        return self._encoder({"pixel_values": pixel_values})

    def step(self, keys: np.ndarray, values: np.ndarray) -> Step:
        """The decode step for the photos that these keys and values `(B, P, H)` are of."""
        num_images = len(keys)

        def step(tokens: np.ndarray, states: np.ndarray) -> StepOutput:
            inputs = {
                "tokens": tokens.reshape(num_images, -1),
                "states": states.reshape(2, num_images, -1, states.shape[-1]),
                "keys": keys,
                "values": values,
            }
            log_probabilities, new_states, *attention = self._step(inputs)
            num_rows = len(tokens)
            return StepOutput(
                log_probabilities.reshape(num_rows, -1),
                new_states.reshape(2, num_rows, -1),
                attention[0].reshape(num_rows, -1) if attention else None,
            )

        return step


def _load_onnxruntime(path: Path, num_threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _load_openvino(path: Path, num_threads: int) -> Run:
    import openvino

    # Half precision, which OpenVINO takes where the processor has it, would give other captions.
    settings = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    lock = threading.Lock()  # a compiled model has one place for its inputs

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with lock:
            return list(model(inputs).values())

    return run


BACKENDS = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino}
