"""Images in, captions out: the API behind the command line, the demo and the scorer.

torch is imported only when needed: graphs run without it.
"""

import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from hashlib import sha256
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from PIL import Image

from .checkpoint import SHIPPED_CHECKPOINT, Source, load_checkpoint, load_graphs, names_damaged
from .checkpoint_limits import check_generation, check_search_settings
from .errors import needs_extra
from .files import WEIGHTS, sha256_of
from .inference.backend import AUTO, BACKENDS, ONNXRUNTIME, OPENVINO, PYTORCH, Backend, EncodedImages
from .inference.beam_search import Hypothesis, beam_search
from .inference.graphs import GraphBackend, GraphsError, NoGraphsError, read_graphs_settings
from .model.image_loading_gru_captioner import ImageSource, is_one_image

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from .inference.pytorch import PyTorchBackend
    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor

FLOAT32 = "float32"  # precision at which graphs give the same captions as torch

_logger = logging.getLogger(__name__)

# Arguments of generate() that change its inputs or outputs, not how it decodes.
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

# Generation settings that [`beam_search`] supports, or that don't affect decoding.
SEARCH_KNOWS = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "length_penalty",
    "max_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "pad_token_id",
    "suppress_tokens",
    "transformers_version",
    "use_cache",
}

# Settings that have no effect unless set.
OFF_UNLESS_TRUE = {
    "do_sample",
    "early_stopping",
    "min_length",
    "min_new_tokens",
    "output_attentions",
    "output_hidden_states",
}


@dataclass(frozen=True)
class Caption:
    """A caption, its score, and where the model looked at each word.

    Args:
        text: The caption.
        score: Its log-probability in nats, end token included and a given beginning excluded, divided by
            `length ** length_penalty`, as ranked by beam search. Closer to 0 is better; comparable between captions of
            the same image.
        words: Its tokens, as text.
        log_probabilities: Log-probability of each word given the words before it, in nats.
        attention: Attention weights of each word over the grid of regions, `(words, rows, columns)`, averaged over
            heads; they sum to 1 for each word. None if the model has no attention, or if its regions are no grid of
            the image.
        alternatives: For each word, the likeliest tokens at its position with their probabilities, which may include
            the word itself; empty unless requested.
    """

    text: str
    score: float
    words: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    attention: np.ndarray | None = field(compare=False, repr=False)
    alternatives: tuple[tuple[tuple[str, float], ...], ...] = field(default=(), compare=False, repr=False)


class Captioner:
    """Captions images.

    Args:
        model: A captioner; it is put into evaluation mode.
        processor: Its processor.

    Raises:
        ValueError: Processor and model differ in vocabulary size, by more than padding.
    """

    _backend: Backend
    source: Source | None = None
    """Where it was loaded from, with the commit if on the Hub."""
    not_graphs: str = ""
    """Why `backend="auto"` chose PyTorch over the graphs."""
    _are_regions_a_grid = True  # as far as known

    def __init__(self, model: "GRUCaptionerForConditionalGeneration", processor: "GRUCaptionerProcessor"):
        from .inference.pytorch import PyTorchBackend

        self._pytorch = self._backend = PyTorchBackend(model, processor)

    @property
    def model(self) -> "GRUCaptionerForConditionalGeneration":
        model: GRUCaptionerForConditionalGeneration = self._pytorch.model
        return model

    @property
    def processor(self) -> "GRUCaptionerProcessor":
        return self._pytorch.processor

    def backend_for(self, num_captions: int = 1, **generation: Any) -> str:
        """The backend used with these settings: `"onnxruntime"`, `"torch"`, or both, `"onnxruntime+torch"`, when
        generate() does the decoding."""
        settings = {**self._backend.defaults(), **generation}
        searches = self._backend.can_search and _search_settings(settings, num_captions) is not None
        return self._backend.name if searches or self._backend.name == PYTORCH else f"{self._backend.name}+{PYTORCH}"

    @property
    def name(self) -> str:
        """Folder or Hub id that it was loaded from; empty if it was not."""
        return self.source.name if self.source else ""

    @property
    def weights_sha256(self) -> str:
        """Hexadecimal SHA-256 of the weights file that it was loaded from, or that whole graphs were exported from."""
        if self.source is None:
            raise ValueError("this captioner was not loaded from a checkpoint.")
        of_graphs: str | None = getattr(self._backend, "settings", {}).get("weights")
        return of_graphs or sha256_of(self.source.folder(WEIGHTS) / WEIGHTS)

    def defaults(self) -> dict[str, Any]:
        """The checkpoint's generation settings."""
        return self._backend.defaults()

    @property
    def has_attention(self) -> bool:
        """Whether captions come with attention weights."""
        return self._backend.has_attention and self._are_regions_a_grid

    @property
    def num_beams(self) -> int:
        """The default number of beams."""
        return self._backend.defaults().get("num_beams") or 1

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify a checkpoint: a hash of its weights and generation settings.

        The same for all backends of a checkpoint except int8 graphs, whose captions may differ.
        """
        settings = {
            name: value
            for name, value in self._backend.defaults().items()
            if value is not None and name not in ("transformers_version", "use_cache", "num_beams")
        }
        graphs = getattr(self._backend, "settings", {})
        described = json.dumps([self.weights_sha256, graphs.get("precision", "float32"), settings], sort_keys=True)
        return sha256(described.encode()).hexdigest()[:12]

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | PathLike[str] | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: "str | torch.device" = "cpu",
        dtype: "str | torch.dtype" = "float32",
        backend: str = AUTO,
        graphs: str | PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> "Captioner":
        """
        Args:
            checkpoint: Folder or Hub id; by default the checkpoint that ships with the package. May also be a folder
                of whole graphs.
            revision, token: As in `AutoModel.from_pretrained`.
            device: Device that torch runs on.
            dtype: The model's dtype there, whatever the file's; `"auto"` for the file's.
            backend: `"onnxruntime"` or `"openvino"` for the graphs, which give the same captions as `"torch"`, faster
                and without importing it. What only generate() supports, such as sampling, still runs on torch.
                `"auto"` is ONNX Runtime if it is installed, the checkpoint has float32 graphs and no other device or
                dtype is requested; else torch.
            graphs: Folder of the graphs; by default `onnx` in the checkpoint's folder.
            num_threads: Threads for the graphs; by default OMP_NUM_THREADS or the number of cores.

        Raises:
            FileNotFoundError: No such folder or Hub repository.
            OSError: The Hub failed, timed out or closed the connection.
            ValueError: Not a checkpoint of a GRU captioner, a damaged one, an unknown backend or dtype, or graphs that
                don't match the checkpoint.
            MissingExtraError: The backend isn't installed.
        """
        source = Source(fspath(checkpoint or SHIPPED_CHECKPOINT), revision, token)
        graphs = None if graphs is None else fspath(graphs)
        if backend not in (AUTO, *BACKENDS):
            raise ValueError(f"the backend must be one of {', '.join((AUTO, *BACKENDS))}, found {backend!r}.")
        captioner: Captioner | None = None
        not_graphs = ""
        if backend == AUTO:
            captioner, not_graphs = _graph_captioner_if_possible(source, graphs, num_threads, str(device), str(dtype))
        elif backend != PYTORCH:
            captioner = _GraphCaptioner(source, graphs, backend, num_threads)
        if captioner is None:
            with needs_extra("torch"):
                captioner = cls(*load_checkpoint(source, device, dtype))
            commit = getattr(captioner.model.config, "_commit_hash", None)
            captioner.source, captioner.not_graphs = replace(source, revision=commit or source.revision), not_graphs
        captioner._try_out(source.name)
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

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        num_captions: int | None = None,
        batch_size: int = 16,
        begin: str = "",
        **generation: Any,
    ) -> Caption | list[Caption] | list[list[Caption]]:
        """
        Args:
            images: An image of any kind that `load_image` takes (path, URL, `data:` URI, bytes, open file, dict of
                `datasets`, PIL image, array or tensor), or a list of them.
            num_captions: Captions per image, best first; if given, each image gets a list. Beam search gives at most
                `num_beams`, sampling (`do_sample=True, num_beams=1`) any number.
            batch_size: Images per batch.
            begin: Words that each caption starts with and continues, such as `"a photo of"`.
            generation: Generation settings, e.g. `num_beams=1`; the others come from the checkpoint's
                generation_config.

        Returns:
            One [`Caption`] per image, or a list of `num_captions` of them.

        Raises:
            ValueError: An image can't be read, a number is below 1, or a word in `begin` is not in the vocabulary.
            TypeError: An argument of generate() that is not a setting.
        """
        if batch_size < 1 or (num_captions is not None and num_captions < 1):
            raise ValueError(f"batch_size and num_captions must be at least 1, found {batch_size} and {num_captions}.")
        refused = sorted(set(generation) & NOT_SETTINGS)
        if refused:
            raise TypeError(f"Captioner doesn't accept {refused[0]}: call captioner.model.generate() for that.")
        is_one = is_one_image(images)
        sources: list[Any] = [images] if is_one else [*cast(Sequence[Any], images)]
        captions: list[list[Caption]] = []
        for start in range(0, len(sources), batch_size):
            encoder_outputs = self.encode(sources[start : start + batch_size])
            captions += self.decode(encoder_outputs, num_captions or 1, begin=begin, **generation)
        results = captions if num_captions is not None else [image_captions[0] for image_captions in captions]
        return results[0] if is_one else results

    def load_image(self, source: ImageSource) -> Image.Image:
        """Loads an image, upright, RGB and scaled down to the encoder's input size: the I/O part of [`encode`]."""
        return self._backend.load_image(source)

    def encode(self, images: Sequence[ImageSource]) -> "ModelOutput | EncodedImages":
        """Images -> encoder outputs, for [`decode`]."""
        return self._backend.encode(images)

    def decode(
        self,
        encoded: "ModelOutput | EncodedImages",
        num_captions: int = 1,
        num_alternatives: int = 0,
        report: Callable[[str], None] | None = None,
        begin: str = "",
        **generation: Any,
    ) -> list[list[Caption]]:
        """Encoder outputs -> `num_captions` captions per image, best first, with `num_alternatives` for each word.

        The captions equal generate()'s. Our own search, which is faster, is used where it supports the settings.
        For a single image without beams, `report` is called with the text so far after each word. Each caption
        continues the words of `begin`, which count neither towards its score nor towards `max_new_tokens`.
        """
        prefix = self._backend.encode_words(begin) if begin else []
        streamed = None
        if report is not None:

            def streamed(tokens: list[int]) -> None:
                report(self._backend.decode_tokens([*prefix, *tokens]))

        settings = {**self._backend.defaults(), **generation}
        check_search_settings(settings)
        if unused := self._backend.unused_tokens:
            settings["suppress_tokens"] = [*(settings.get("suppress_tokens") or ()), *unused]
            generation = generation | {"suppress_tokens": settings["suppress_tokens"]}
        search_settings = _search_settings(settings, num_captions) if self._backend.can_search else None
        if search_settings is not None:
            states, step = self._backend.begin(encoded)
            hypotheses = beam_search(
                step,
                states,
                num_captions=num_captions,
                num_alternatives=num_alternatives,
                report=streamed,
                begin=prefix,
                **search_settings,
            )
        else:
            hypotheses = self._pytorch.generate(
                self._for_pytorch(encoded), num_captions, num_alternatives, generation, streamed, prefix
            )
        ends, length_penalty = _end_tokens(settings), settings.get("length_penalty")
        length_penalty = 1.0 if length_penalty is None else length_penalty
        captions = [[self._caption(each, ends, length_penalty, len(prefix)) for each in beams] for beams in hypotheses]
        if search_settings is not None:
            return captions  # in the order of the search, which is robust to rounding
        return [sorted(image_captions, key=lambda caption: -caption.score) for image_captions in captions]

    def mean_log_probabilities(
        self, images: Sequence[ImageSource], captions: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Scores given captions of images with the decoder, in a single batch.

        Args:
            images: Images.
            captions: Any number of captions for each image.

        Returns:
            For each image the mean log-probability per token of each caption, in nats, end token included; closer to 0
            is better. Minus infinity for a caption with a word outside the vocabulary.

        Raises:
            ValueError: An image can't be read, or the numbers of images and lists of captions differ.
        """
        if len(images) != len(captions):
            raise ValueError(f"found {len(images)} images but captions of {len(captions)}.")
        if not images:
            return []
        return self._pytorch.mean_log_probabilities(self._for_pytorch(self.encode(images)), captions)

    def _for_pytorch(self, encoded: Any) -> "ModelOutput":
        return encoded

    def _try_out(self, name: str) -> None:
        """Captions a grey image, so that settings that don't match the weights fail now, not in the middle of a job.

        Raises:
            ValueError: It fails; the message names the checkpoint.
        """
        check_generation(self._backend.defaults(), name)
        with names_damaged(f"the checkpoint {name}"):
            caption = self(Image.new("RGB", (32, 32), "grey"), max_new_tokens=1)
        self._are_regions_a_grid = caption.attention is not None
        if not math.isfinite(caption.score):
            raise ValueError(f"the checkpoint {name} is damaged: its token probabilities are not finite.")

    def _caption(self, hypothesis: Hypothesis, ends: list[int], length_penalty: float, prefix_length: int) -> Caption:
        tokens = hypothesis.tokens.tolist()
        log_probabilities = hypothesis.log_probabilities.tolist()
        num_words = len(tokens) - (tokens[-1] in ends)
        attention = hypothesis.attention  # (tokens, P)
        if attention is not None:
            grid = _grid(attention.shape[-1], self._backend.image_size)
            attention = None if grid is None else attention.reshape(-1, *grid)[:num_words]  # (words, rows, columns)
        return Caption(
            text=self._backend.decode_tokens(tokens),
            score=math.fsum(log_probabilities[prefix_length:]) / (len(tokens) - prefix_length) ** length_penalty,
            words=tuple(self._backend.decode_tokens([token]) for token in tokens[:num_words]),
            log_probabilities=tuple(log_probabilities[:num_words]),
            attention=attention,
            alternatives=tuple(self._alternatives(hypothesis, num_words)) if hypothesis.alternatives.shape[1] else (),
        )

    def _alternatives(self, hypothesis: Hypothesis, num_words: int) -> Iterator[tuple[tuple[str, float], ...]]:
        """For each word, the text and probability of its alternatives."""
        probabilities = np.exp(hypothesis.alternative_log_probabilities)
        for tokens, values in zip(
            hypothesis.alternatives[:num_words].tolist(), probabilities[:num_words].tolist(), strict=True
        ):
            texts = (self._backend.decode_tokens([token], skip_special_tokens=False) for token in tokens)
            yield tuple(zip(texts, values, strict=True))


class _GraphCaptioner(Captioner):
    """Captions images with graphs; the checkpoint is loaded in torch only for what graphs can't do."""

    _backend: GraphBackend
    source: Source

    def __init__(self, source: Source, graphs: str | None, backend: str, num_threads: int | None):
        self._backend, commit = load_graphs(source, backend, graphs, num_threads)
        self.source = replace(source, revision=commit or source.revision)

    @property
    def precision(self) -> str:
        """`"float32"` or `"int8"`."""
        return str(self._backend.settings["precision"])

    @cached_property
    def _pytorch(self) -> "PyTorchBackend":  # type: ignore[override]
        with needs_extra("torch"):
            from .inference.pytorch import PyTorchBackend

            return PyTorchBackend(*load_checkpoint(self.source))

    def _for_pytorch(self, encoded: EncodedImages) -> "ModelOutput":
        import torch

        from .model.modeling_gru_captioner import GRUCaptionerEncoderOutput

        regions, keys, values, _ = map(torch.from_numpy, encoded)
        return GRUCaptionerEncoderOutput(
            last_hidden_state=regions, projected_regions=(keys, values, values.mean(dim=1))
        )


def _graph_captioner_if_possible(
    source: Source, graphs: str | None, num_threads: int | None, device: str, dtype: str
) -> tuple[_GraphCaptioner | None, str]:
    """A captioner on ONNX Runtime, or None and the reason. Graphs that were requested explicitly must load."""
    if graphs is not None or source.is_graphs:
        settings = read_graphs_settings(Path(graphs or source.name))
        runtime = OPENVINO if settings["format"] == OPENVINO else ONNXRUNTIME
        return _GraphCaptioner(source, graphs, runtime, num_threads), ""
    if device != "cpu" or dtype.removeprefix("torch.") != FLOAT32:
        return None, f"graphs run in float32 on the CPU, but {dtype} on {device} was requested"
    if importlib.util.find_spec(ONNXRUNTIME) is None:
        return None, "onnxruntime is not installed"
    try:
        captioner = _GraphCaptioner(source, None, ONNXRUNTIME, num_threads)
    except NoGraphsError as error:
        return None, str(error)
    except GraphsError as error:
        _logger.warning("PyTorch is used instead of graphs: %s", error)
        return None, str(error)
    precision = captioner.precision
    if precision != FLOAT32:
        return None, f"the checkpoint's graphs are {precision}, whose captions may differ (--backend onnxruntime)"
    return captioner, ""


@cache
def _grid(num_regions: int, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of an encoder's regions.

    Args:
        num_regions: The number of regions.
        image_size: Height and width of its images, which it divides into squares, rounding both up or both down.

    Returns:
        The grid closest to the images' shape, or None if there is none.
    """
    if image_size is None:
        return None
    height, width = image_size
    grids = []
    for rows in range(1, num_regions + 1):
        columns, rest = divmod(num_regions, rows)
        if rest:
            continue
        exact = height / rows, width / columns  # sides of a region if it is not rounded, in pixels
        rounds_down = max(height / (rows + 1), width / (columns + 1)) < min(exact)
        rounds_up = max(exact) < min(_side(height, rows - 1), _side(width, columns - 1))
        if rounds_down or rounds_up:
            grids.append((abs(math.log(exact[0] / exact[1])), rows, columns))
    return min(grids)[1:] if grids else None


def _side(pixels: int, parts: int) -> float:
    """The side of one of several equal parts; of none, infinity."""
    return pixels / parts if parts else math.inf


def _search_settings(settings: dict[str, Any], num_captions: int) -> dict[str, Any] | None:
    """Arguments of beam_search() equivalent to these generation settings; None if it doesn't support them."""
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
        "no_repeat_ngram_size": settings.get("no_repeat_ngram_size") or 0,
    }


def _end_tokens(settings: dict[str, Any]) -> list[int]:
    """Ids of the end tokens; generate() takes one or a list."""
    ends = settings.get("eos_token_id")
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
