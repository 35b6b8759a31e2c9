"""Runs the graphs of `export` on ONNX Runtime or OpenVINO: NumPy arrays in, NumPy arrays out, and no torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoint_limits import MAX_SIDE, check_tokenizer, read_json
from ..errors import MissingExtraError, needs_extra, reason_of
from ..files import GRAPHS_SETTINGS
from ..model.image_loading_gru_captioner import ImageSource, load_image
from .backend import GRAPH_RUNTIMES, EncodedImages
from .beam_search import Step, StepOutput


class GraphBackend:
    """A captioner's encoder and decode step, with all that goes with them: how images are prepared, the words.

    Args:
        folder: Where `gru-captioner export` wrote them.
        backend: `"onnxruntime"` or `"openvino"`.
        num_threads: That one graph works with; as many as OMP_NUM_THREADS or the machine says when not given.

    Raises:
        FileNotFoundError: No graphs in the folder.
        MissingExtraError: The backend isn't installed.
        ValueError: The graphs are damaged.
    """

    can_search = True

    def __init__(self, folder: str | Path, backend: str, num_threads: int | None = None):
        folder = Path(folder)
        if not (folder / GRAPHS_SETTINGS).is_file():
            raise FileNotFoundError(
                f"{folder} has no graphs: gru-captioner export CHECKPOINT --output {folder} makes them."
            )
        import tokenizers

        runtime = GRAPH_RUNTIMES[backend]
        num_threads = num_threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        try:
            self.settings = _read_settings(folder / GRAPHS_SETTINGS)
            self.weights: str = self.settings["weights"]
            height, width = self.settings["image_size"]
            self._image_size = (height, width)
            check_tokenizer(read_json(folder / "tokenizer.json"))
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            with needs_extra(runtime.extra):
                self._encoder, self._step = (
                    runtime.load(_graph(folder, name, backend), num_threads) for name in ("encoder", "step")
                )
        except (MissingExtraError, FileNotFoundError):
            raise
        except Exception as error:  # each library has its own for a damaged file
            raise ValueError(f"the graphs in {folder} are damaged ({reason_of(error)}): export them again.") from error

    @property
    def has_attention(self) -> bool:
        return bool(self.settings["has_attention"])

    def defaults(self) -> dict[str, Any]:
        """Settings of generate() that the checkpoint was saved with."""
        return dict(self.settings["generation"])

    def decode_tokens(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(map(int, tokens)), skip_special_tokens=skip_special_tokens)

    def encode_words(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def load_image(self, source: ImageSource) -> Image.Image:
        """One image, upright, RGB and at the encoder's size."""
        return load_image(source, size=self._image_size, resample=self.settings["resample"])

    def encode(self, images: Sequence[ImageSource]) -> EncodedImages:
        pixels = np.stack([np.asarray(self.load_image(image)) for image in images])  # (B, height, width, 3)
        return EncodedImages(*self._encoder({"images": pixels}))

    def begin(self, encoded: EncodedImages) -> tuple[np.ndarray, Step]:
        """First states `(2, B, H)` and the decode step of encoded images."""
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
    settings: dict[str, Any] = read_json(path)
    kinds = {"weights": str, "image_size": list, "resample": int, "has_attention": bool, "generation": dict}
    for name, kind in kinds.items():
        if not isinstance(settings[name], kind):
            raise ValueError(f"{name} in {path.name} is not a {kind.__name__}")
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in settings["image_size"]):
        raise ValueError(f"image_size in {path.name} is two sides of 1 to {MAX_SIDE} pixels")
    return settings


def _graph(folder: Path, name: str, backend: str) -> Path:
    suffixes = GRAPH_RUNTIMES[backend].suffixes
    for suffix in suffixes:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise FileNotFoundError(f"{folder} has no {name}{suffixes[0]}, which {backend} runs: export it in that format.")
