"""Photos in, captions out: what the command line, the demo and the scorer call.

Nothing here imports torch before it is needed: graphs caption without it.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from .checking import MOST_BYTES, check_config, check_files, check_generation, check_length_penalty
from .model.image_loading_gru_captioner import ImageSource, is_one_image
from .runtime import BACKENDS, MAX_SIDE, EncodedPhotos, Graphs
from .search import Found, search

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from .eager import Eager
    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor

# Arguments of generate() that change what it is given or returns, not how it decodes.
NOT_SETTINGS = {
    "inputs",
    "encoder_outputs",
    "decoder_input_ids",
    "input_ids",
    "cache",
    "past_key_values",
    "generation_config",
    "num_return_sequences",
    "return_dict_in_generate",
    "streamer",
}

# Settings of generate() that search() knows, or that have nothing to do with how a caption is written.
SEARCH_KNOWS = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "length_penalty",
    "max_new_tokens",
    "num_beams",
    "pad_token_id",
    "suppress_tokens",
    "transformers_version",
    "use_cache",
}

# Others that change nothing while they are off.
OFF_UNLESS_TRUE = {
    "do_sample",
    "early_stopping",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "output_attentions",
    "output_hidden_states",
}

# What one photo may take of an encoder: half as much again as DINOv2's large one takes at 518 pixels.
MOST_OPERATIONS = 1.5e12
MOST_VALUES = 50_000_000  # in one tensor

WEIGHTS = "model.safetensors"
SHIPPED_CHECKPOINT = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Caption:
    """A caption and what the model thought of it.

    Args:
        text: The caption.
        score: Its log-probability in nats, end token included, divided by `length ** length_penalty`: what beam search
            ranks by. Nearer to 0 is better; comparable between captions of one photo.
        words: Its tokens, as text.
        log_probabilities: Log-probability of each word given those before it, in nats.
        attention: Where the model looked at each word, `(words, rows, columns)` of the grid of regions, the mean over
            heads; each word's sums to 1. None when the model has no attention.
        rivals: Of each word, the likeliest tokens in its place with their probabilities, the word itself among them
            if it is one; empty when they were not asked for.
    """

    text: str
    score: float
    words: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    attention: np.ndarray | None = field(compare=False)
    rivals: tuple[tuple[tuple[str, float], ...], ...] = field(default=(), compare=False)


class Captioner:
    """Captions photos.

    Args:
        model: A captioner; it is put into evaluation mode.
        processor: Its processor.

    Raises:
        ValueError: The processor's vocabulary is not the model's.
    """

    _runtime: "Eager | Graphs"  # which encodes and decodes

    def __init__(self, model: "GRUCaptionerForConditionalGeneration", processor: "GRUCaptionerProcessor"):
        from .eager import Eager

        self._eager = self._runtime = Eager(model, processor)

    @property
    def model(self) -> "GRUCaptionerForConditionalGeneration":
        return self._eager.model

    @property
    def processor(self) -> "GRUCaptionerProcessor":
        return self._eager.processor

    @property
    def has_attention(self) -> bool:
        """Whether captions come with where the model looked."""
        return self._runtime.has_attention

    @property
    def num_beams(self) -> int:
        """Beams of the search when none are asked for."""
        return self._runtime.defaults().get("num_beams") or 1

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | PathLike | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: "str | torch.device" = "cpu",
        dtype: "str | torch.dtype" = "float32",
        backend: str = "torch",
        graphs: str | PathLike | None = None,
        num_threads: int | None = None,
    ) -> "Captioner":
        """
        Args:
            checkpoint: Folder or Hub id; the checkpoint that ships with the package when not given. With a backend of
                graphs also a folder of them alone.
            revision, token: As in `AutoModel.from_pretrained`.
            device: Where torch runs the model.
            dtype: Precision it runs in there, whatever that of the file.
            backend: `"torch"`, or `"onnxruntime"` or `"openvino"` for the graphs of `gru-captioner export`: the same
                captions, sooner, and without importing torch. What only generate() can do, sampling for one, is still
                done by torch.
            graphs: Folder of the graphs; `onnx` in the checkpoint's folder when not given.
            num_threads: That graphs work with; as many as OMP_NUM_THREADS or the machine says when not given.

        Raises:
            FileNotFoundError: Nothing of that name.
            OSError: The Hub failed, fell silent or cut the line.
            ValueError: Not a checkpoint of a GRU captioner, a damaged one, no such backend, or the graphs are of other
                weights.
            ModuleNotFoundError: The backend isn't installed.
        """
        name = fspath(checkpoint or SHIPPED_CHECKPOINT)
        location = {"revision": revision, "token": token}
        if backend != "torch" and backend not in BACKENDS:
            raise ValueError(f"the backend is one of torch, {', '.join(BACKENDS)}, found {backend!r}.")
        if backend == "torch":
            captioner = cls(*_load(name, device, dtype, location))
        else:
            captioner = _GraphCaptioner(name, graphs, backend, num_threads, location)
        captioner._try_out(name)
        return captioner

    @overload
    def __call__(self, images: ImageSource, *, num_captions: None = None, **generation: Any) -> Caption: ...

    @overload
    def __call__(
        self, images: Sequence[ImageSource], *, num_captions: None = None, **generation: Any
    ) -> list[Caption]: ...

    @overload
    def __call__(self, images: ImageSource, *, num_captions: int, **generation: Any) -> list[Caption]: ...

    @overload
    def __call__(
        self, images: Sequence[ImageSource], *, num_captions: int, **generation: Any
    ) -> list[list[Caption]]: ...

    def __call__(self, images, *, num_captions=None, batch_size=16, **generation):
        """
        Args:
            images: One photo (path, address, bytes, PIL image, array or tensor), or a list of them.
            num_captions: How many captions of each photo, the best first; then each photo gives a list. Beam search
                writes at most `num_beams` of them, sampling (`do_sample=True, num_beams=1`) any number.
            batch_size: Photos captioned at once.
            generation: Settings of generate(), e.g. `num_beams=1`; the checkpoint's generation_config has the rest.

        Returns:
            One [`Caption`] a photo, or a list of `num_captions` of them.

        Raises:
            ValueError: An image that can't be read, or a number below 1.
            TypeError: An argument of generate() that is no setting.
        """
        if batch_size < 1 or (num_captions is not None and num_captions < 1):
            raise ValueError(f"batch_size and num_captions are at least 1, found {batch_size} and {num_captions}.")
        refused = sorted(set(generation) & NOT_SETTINGS)
        if refused:
            raise TypeError(f"Captioner takes no {refused[0]}: call captioner.model.generate() for that.")
        is_one = is_one_image(images)
        sources = [images] if is_one else list(images)
        captions: list[list[Caption]] = []
        for start in range(0, len(sources), batch_size):
            encoder_outputs = self.encode(sources[start : start + batch_size])
            captions += self.decode(encoder_outputs, num_captions or 1, **generation)
        results = captions if num_captions is not None else [of_image[0] for of_image in captions]
        return results[0] if is_one else results

    def load_image(self, source: ImageSource) -> Image.Image:
        """One photo, upright, RGB and as small as the encoder takes it: the part of [`encode`] that reads files."""
        return self._runtime.load_image(source)

    def encode(self, images: Sequence[ImageSource]) -> "ModelOutput | EncodedPhotos":
        """Photos -> what the decoder needs to know of them, for [`decode`]."""
        return self._runtime.encode(images)

    def decode(
        self, encoded: "ModelOutput | EncodedPhotos", num_captions: int = 1, num_rivals: int = 0, **generation: Any
    ) -> list[list[Caption]]:
        """Encoded photos -> `num_captions` captions of each, the best first, each word with `num_rivals` rivals.

        They are those of generate(). Where our own search can write them, it does, since it is quicker.
        """
        settings = {**self._runtime.defaults(), **generation}
        check_length_penalty(settings.get("length_penalty"))
        search_settings = _search_settings(settings, num_captions) if self._runtime.can_search else None
        if search_settings is not None:
            states, step = self._runtime.begin(encoded)
            found = search(step, states, num_captions=num_captions, num_rivals=num_rivals, **search_settings)
        else:
            found = self._eager.generate(self._for_eager(encoded), num_captions, num_rivals, generation)
        ends, length_penalty = _end_tokens(settings), settings.get("length_penalty")
        length_penalty = 1.0 if length_penalty is None else length_penalty
        captions = [[self._caption(each, ends, length_penalty) for each in of_image] for of_image in found]
        if search_settings is not None:
            return captions  # in the order of the search, which rounding doesn't change
        return [sorted(of_image, key=lambda caption: -caption.score) for of_image in captions]

    def _for_eager(self, encoded) -> "ModelOutput":
        return encoded

    def _try_out(self, name: str) -> None:
        """Writes a word about a grey photo: settings that don't fit the weights show now, not in the middle of a job.

        Raises:
            ValueError: It can't; names the checkpoint.
        """
        check_generation(self._runtime.defaults(), name)
        try:
            caption = self(Image.new("RGB", (32, 32), "grey"), max_new_tokens=1)
        except Exception as error:  # as in _load
            raise _damaged(name, error) from error
        if not math.isfinite(caption.score):
            raise ValueError(f"the checkpoint {name} is damaged: the probabilities that it writes by are no numbers.")

    def _caption(self, found: Found, ends: list[int], length_penalty: float) -> Caption:
        tokens = found.tokens.tolist()
        log_probabilities = found.log_probabilities.tolist()
        num_words = len(tokens) - (tokens[-1] in ends)
        attention = found.attention
        if attention is not None:
            rows = math.isqrt(attention.shape[-1])
            attention = attention.reshape(len(tokens), rows, -1)[:num_words]  # (words, rows, columns)
        return Caption(
            text=self._runtime.decode_tokens(tokens),
            score=math.fsum(log_probabilities) / len(tokens) ** length_penalty,
            words=tuple(self._runtime.decode_tokens([token]) for token in tokens[:num_words]),
            log_probabilities=tuple(log_probabilities[:num_words]),
            attention=attention,
            rivals=tuple(self._rivals(found, num_words)) if found.rivals.shape[1] else (),
        )

    def _rivals(self, found: Found, num_words: int):
        """Word and probability of each rival, by word."""
        probabilities = np.exp(found.rival_log_probabilities)
        for of_word, values in zip(found.rivals[:num_words].tolist(), probabilities[:num_words].tolist(), strict=True):
            texts = (self._runtime.decode_tokens([token], skip_special_tokens=False) for token in of_word)
            yield tuple(zip(texts, values, strict=True))


class _GraphCaptioner(Captioner):
    """Captions photos by graphs; torch loads the checkpoint only when something asks for what graphs can't do."""

    def __init__(self, name: str, graphs, backend: str, num_threads: int | None, location: dict[str, Any]):
        self._name, self._location = name, location
        if (Path(name) / "graphs.json").is_file():  # graphs alone, without the checkpoint that they were made of
            self._runtime = Graphs(name, backend, num_threads)
            return
        folder = _folder(name, [WEIGHTS] if graphs else [WEIGHTS, "onnx/*"], location)
        self._location = {**location, "revision": folder.name}  # of the Hub's commits; without meaning for a folder
        self._runtime = Graphs(graphs or folder / "onnx", backend, num_threads)
        if self._runtime.weights != hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest():
            raise ValueError(_other_weights(name, graphs or folder / "onnx"))

    @cached_property
    def _eager(self) -> "Eager":  # type: ignore[override]
        from .eager import Eager

        return Eager(*_load(self._name, "cpu", "float32", self._location))

    def _for_eager(self, encoded: EncodedPhotos) -> "ModelOutput":
        import torch

        from .model.modeling_gru_captioner import GRUCaptionerEncoderOutput

        regions, keys, values, _ = map(torch.from_numpy, encoded)
        return GRUCaptionerEncoderOutput(
            last_hidden_state=regions, projected_regions=(keys, values, values.mean(dim=1))
        )


def _search_settings(settings: dict[str, Any], num_captions: int) -> dict[str, Any] | None:
    """Arguments of search() that mean what these settings of generate() mean; None where there are none."""
    unknown = {name for name in settings.keys() - SEARCH_KNOWS if settings[name] or name not in OFF_UNLESS_TRUE}
    num_beams = settings.get("num_beams") or 1
    ends, length_penalty = _end_tokens(settings), settings.get("length_penalty")
    if unknown or not settings.get("max_new_tokens") or num_captions > num_beams or len(ends) != 1:
        return None
    return {
        "start": settings["decoder_start_token_id"],
        "end": ends[0],
        "num_beams": num_beams,
        "max_words": settings["max_new_tokens"],
        "length_penalty": 1.0 if length_penalty is None else length_penalty,
        "suppressed": settings.get("suppress_tokens") or (),
    }


def _end_tokens(settings: dict[str, Any]) -> list[int]:
    """The ids that end a caption; generate() takes one or a list."""
    ends = settings.get("eos_token_id")
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _folder(name: str, files: Sequence[str], location: dict[str, Any]) -> Path:
    """Where such files of a checkpoint are; from the Hub they are fetched."""
    if Path(name).is_dir():
        return Path(name)
    from .hub import fetch

    return fetch(name, files, **location, most_bytes=MOST_BYTES)


def _load(name: str, device, dtype, location: dict[str, Any]):
    """Model and processor of a checkpoint."""
    import torch

    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor

    folder = _folder(name, ["config.json"], location)  # first, since another model may be very large
    check_config(name, folder / "config.json")
    folder = _folder(name, [*MOST_BYTES, WEIGHTS], {**location, "revision": folder.name})  # of the same commit
    try:
        check_files(name, folder)
        processor = GRUCaptionerProcessor.from_pretrained(folder, trust_remote_code=False)
        _check_sides(processor.image_processor)
        _check_sizes(folder, processor.image_size)
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model, loading = GRUCaptionerForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # a damaged file raises whatever the library that reads it stumbles over
        raise _damaged(name, error) from error
    model.name_or_path = model.config.name_or_path = name  # which scores are recorded by, not a folder of the cache
    model.config._commit_hash = None if Path(name).is_dir() else folder.name  # as transformers has it
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"the checkpoint {name} lacks {len(missing)} weights, {missing[0]} for one.")
    for weight, values in model.state_dict().items():
        # the least or the largest tells: nan is both where there is one
        is_checked = values.is_floating_point() and values.numel()
        if is_checked and not all(map(math.isfinite, map(float, values.aminmax()))):
            raise ValueError(f"the checkpoint {name} has weights that are no finite numbers, in {weight} for one.")
    return model.to(device), processor


def _check_sides(image_processor) -> None:
    """Refuses to scale photos to what no memory holds."""
    for setting in ("size", "crop_size", "pad_size"):
        sides = dict(getattr(image_processor, setting, None) or {})
        if not all(side is None or 1 <= side <= MAX_SIDE for side in sides.values()):
            raise ValueError(f"{setting} of its photos is not 1 to {MAX_SIDE} pixels")


def _check_sizes(folder: Path, image_size: tuple[int, int] | None) -> None:
    """Refuses a model that the file of weights is not of, before memory is taken for what the file lacks; and one that
    would take too much time or memory for a photo of that height and width."""
    import torch
    from safetensors import safe_open

    from .model import GRUCaptionerConfig, GRUCaptionerForConditionalGeneration

    if not (weights := folder / WEIGHTS).is_file():
        return
    with torch.device("meta"):  # which has sizes and no memory
        model = GRUCaptionerForConditionalGeneration(GRUCaptionerConfig.from_pretrained(folder))
    wanted = model.state_dict()
    if sum(values.numel() for values in model.buffers()) > MOST_VALUES:  # some are made by rule, not from the file
        raise ValueError("its encoder keeps tables that are too large")
    with safe_open(weights, "np") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, it is no dict
    for key in wanted.keys() & found.keys():
        if found[key] != tuple(wanted[key].shape):
            raise ValueError(f"{key} is {found[key]} in the file and {tuple(wanted[key].shape)} by config.json")
    if sum(values.numel() for values in wanted.values()) > 2 * sum(map(math.prod, found.values())):
        raise ValueError("the file lacks most of its weights")
    if image_size is not None:
        _check_work(model.encoder.vision, image_size)


def _check_work(vision: Any, image_size: tuple[int, int]) -> None:
    """Counts what an encoder without memory would do with one photo."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Largest(TorchDispatchMode):
        values = 0

        def __torch_dispatch__(self, function, types, arguments=(), settings=None):
            results = function(*arguments, **(settings or {}))
            for each in results if isinstance(results, tuple | list) else [results]:
                if isinstance(each, torch.Tensor):
                    self.values = max(self.values, each.numel())
            return results

    photo = torch.empty(1, 3, *image_size, device="meta")
    with torch.no_grad(), Largest() as largest, FlopCounterMode(display=False) as counter:
        try:
            vision.eval()(photo)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):  # else an encoder that goes by the values of its photo: what it did counts
                raise
    if counter.get_total_flops() > MOST_OPERATIONS or largest.values > MOST_VALUES:
        raise ValueError(f"a photo of {image_size[0]} x {image_size[1]} pixels takes its encoder too long or too much")


def _other_weights(name: str, graphs: str | PathLike) -> str:
    if name == fspath(SHIPPED_CHECKPOINT):
        return (
            f"the graphs in {fspath(graphs)} are not of the checkpoint of the package: name the one that they were "
            f"exported from as the checkpoint too (--checkpoint FOLDER), or, to caption by graphs alone, their own "
            f"folder (--checkpoint {fspath(graphs)})."
        )
    return (
        f"the graphs in {fspath(graphs)} are of other weights than those of {name}: name the checkpoint that they were "
        f"exported from, or export them again (gru-captioner export {name} --output {fspath(graphs)})."
    )


def _damaged(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300]
    return ValueError(
        f"the checkpoint {name} is damaged or its files don't fit together ({type(error).__name__}: {reason})."
    )
