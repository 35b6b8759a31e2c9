"""Photos in, captions out: what the command line, the demo and the scorer call."""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput, cached_file

from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from .model.modeling_gru_captioner import GRUCaptionerEncoderOutput
from .model.processing_gru_captioner import IGNORE_INDEX, ImageSource, is_one_image
from .runtime import BACKENDS, Graphs
from .search import Found, Step, StepOutput, search

# Arguments of generate() that change what it is given or returns, not how it decodes.
NOT_SETTINGS = {
    "inputs",
    "encoder_outputs",
    "decoder_input_ids",
    "input_ids",
    "past_key_values",
    "generation_config",
    "num_return_sequences",
    "return_dict_in_generate",
    "streamer",
}

# Fields of a generation_config that search() knows, or that have nothing to do with how a caption is written.
SEARCH_KNOWS = {
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "length_penalty",
    "max_new_tokens",
    "num_beams",
    "pad_token_id",
    "suppress_tokens",
    "transformers_version",
}

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
        graphs: The same model on another runtime, which then encodes, and writes what search() can write.

    Raises:
        ValueError: The processor's vocabulary is not the model's.
    """

    def __init__(
        self,
        model: GRUCaptionerForConditionalGeneration,
        processor: GRUCaptionerProcessor,
        graphs: Graphs | None = None,
    ):
        if len(processor.tokenizer) != model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(processor.tokenizer)} tokens, the model {model.config.vocab_size}: "
                "they are not of one checkpoint."
            )
        self.model = model.eval()
        self.processor = processor
        self.graphs = graphs

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | PathLike | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "torch",
        graphs: str | PathLike | None = None,
    ) -> "Captioner":
        """
        Args:
            checkpoint: Folder or Hub id; the checkpoint that ships with the package when not given.
            revision, token: As in `AutoModel.from_pretrained`.
            device: Where the model runs.
            dtype: Precision it runs in, whatever that of the file.
            backend: `"torch"`, or `"onnxruntime"` or `"openvino"` for the graphs of `gru-captioner export`: the same
                captions, sooner. Their threads are as many as torch's.
            graphs: Folder of the graphs; `onnx` in the checkpoint's folder when not given.

        Raises:
            FileNotFoundError: Nothing of that name.
            ValueError: Not a checkpoint of a GRU captioner, no such backend, or the graphs are of other weights.
            ModuleNotFoundError: The backend isn't installed.
        """
        if backend != "torch" and backend not in BACKENDS:
            raise ValueError(f"the backend is one of torch, {', '.join(BACKENDS)}, found {backend!r}.")
        name = fspath(checkpoint or SHIPPED_CHECKPOINT)
        location = {"revision": revision, "token": token}
        try:
            settings, _ = PreTrainedConfig.get_config_dict(name, **location)
        except OSError as error:
            if Path(name).is_dir():
                raise ValueError(f"{name} is not a checkpoint: its config.json can't be read.") from error
            raise FileNotFoundError(f"{name} is neither a folder nor a model that can be had from the Hub.") from error
        if not settings:
            raise ValueError(f"{name} is not a checkpoint: it has no config.json.")
        if settings.get("model_type") != "gru_captioner":
            raise ValueError(
                f"{name} is not a GRU captioner but a model of type {settings.get('model_type', 'unknown')!r}."
            )
        try:
            processor = GRUCaptionerProcessor.from_pretrained(name, **location)
            model, loading = GRUCaptionerForConditionalGeneration.from_pretrained(
                name, dtype=dtype, use_safetensors=True, output_loading_info=True, **location
            )
        except Exception as error:  # a damaged file or field raises whatever the library that reads it raises
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the checkpoint {name} is damaged or its files don't fit together ({type(error).__name__}: {reason})."
            ) from error
        if loading["missing_keys"]:
            missing = sorted(loading["missing_keys"])
            raise ValueError(f"the checkpoint {name} lacks {len(missing)} weights, {missing[0]} for one.")
        if backend == "torch":
            return cls(model.to(device), processor)
        runtime = Graphs(Path(graphs or Path(name) / "onnx"), backend, torch.get_num_threads())
        weights = cached_file(name, "model.safetensors", **location)
        if runtime.weights != hashlib.sha256(Path(weights).read_bytes()).hexdigest():
            raise ValueError(f"the graphs are of other weights than those of {name}: export them anew.")
        return cls(model, processor, runtime)

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

    @torch.inference_mode()
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

    @torch.inference_mode()
    def encode(self, images: Sequence[ImageSource]) -> ModelOutput:
        """Photos -> what the decoder needs to know of them, for [`decode`]."""
        pixel_values = self.processor(images=images)["pixel_values"].to(self.model.device)
        if self.graphs is None:
            return self.model.get_encoder()(pixel_values)
        regions, keys, values, mean_region, _ = map(torch.from_numpy, self.graphs.encode(pixel_values.numpy()))
        return GRUCaptionerEncoderOutput(last_hidden_state=regions, projected_regions=(keys, values, mean_region))

    @torch.inference_mode()
    def decode(
        self, encoder_outputs: ModelOutput, num_captions: int = 1, num_rivals: int = 0, **generation: Any
    ) -> list[list[Caption]]:
        """Encoded photos -> `num_captions` captions of each, the best first, each word with `num_rivals` rivals.

        They are those of generate(). Where our own search can write them, it does, since it is quicker.
        """
        model = self.model
        settings = self._search_settings(generation, num_captions)
        if settings is not None:
            return self._search(encoder_outputs, num_captions, num_rivals, settings)
        sequences = model.generate(
            encoder_outputs=encoder_outputs,
            num_return_sequences=num_captions,
            **generation,
        )  # (N, 1 + T)
        labels = self._labels(sequences)
        # Attention is not carried through the beams: one forward on the chosen words gives exactly the same.
        output = model(encoder_outputs=encoder_outputs, labels=labels, output_attentions=True)
        log_probabilities = output.logits.float().log_softmax(-1)  # (N, T, V)
        of_words = log_probabilities.gather(-1, labels.clamp(min=0)[..., None])[..., 0]  # (N, T)
        rivals = log_probabilities.topk(num_rivals) if num_rivals else None  # (N, T, rivals)
        attention = output.cross_attentions[0].float().mean(dim=1) if output.cross_attentions else None  # (N, T, P)
        length_penalty = generation.get("length_penalty", model.generation_config.length_penalty)
        length_penalty = 1.0 if length_penalty is None else length_penalty
        captions = [
            self._caption(
                labels[row],
                of_words[row],
                None if attention is None else attention[row],
                None if rivals is None else (rivals.indices[row], rivals.values[row]),
                length_penalty,
            )
            for row in range(len(labels))
        ]
        by_image = [captions[start : start + num_captions] for start in range(0, len(captions), num_captions)]
        return [sorted(of_image, key=lambda caption: -caption.score) for of_image in by_image]

    def _search_settings(self, generation: dict[str, Any], num_captions: int) -> dict[str, Any] | None:
        """Arguments of search() that mean what these settings of generate() mean; None where there are none."""
        model = self.model
        config = copy.copy(model.generation_config)
        if config.update(**generation) or model.device.type != "cpu" or model.dtype != torch.float32:
            return None
        given = {name for name, value in config.to_diff_dict().items() if value}
        num_beams = config.num_beams or 1
        is_one_end = isinstance(config.eos_token_id, int)
        if given - SEARCH_KNOWS or not config.max_new_tokens or num_captions > num_beams or not is_one_end:
            return None
        return {
            "start": config.decoder_start_token_id,
            "end": config.eos_token_id,
            "num_beams": num_beams,
            "max_words": config.max_new_tokens,
            "length_penalty": 1.0 if config.length_penalty is None else config.length_penalty,
            "suppressed": config.suppress_tokens or (),
        }

    def _search(self, encoder_outputs, num_captions: int, num_rivals: int, settings: dict[str, Any]):
        projected_regions = encoder_outputs.projected_regions
        if self.graphs is None:
            step = self._step(projected_regions)
        else:
            keys, values, _ = projected_regions
            step = self.graphs.step(keys.numpy(), values.numpy())
        states = self.model.decoder.first_states(projected_regions[2]).numpy()  # (2, B, H)
        found = search(step, states, num_captions=num_captions, num_rivals=num_rivals, **settings)
        captions = [[self._caption_of(each, settings["length_penalty"]) for each in of_image] for of_image in found]
        return [sorted(of_image, key=lambda caption: -caption.score) for of_image in captions]

    def _step(self, projected_regions) -> Step:
        decoder, lm_head = self.model.decoder, self.model.lm_head

        def step(tokens: np.ndarray, states: np.ndarray) -> StepOutput:
            decoded = decoder(torch.from_numpy(tokens)[:, None], projected_regions, torch.from_numpy(states))
            log_probabilities = lm_head(decoded.output_embeddings[:, 0]).log_softmax(-1)  # (N, V)
            weights = decoded.attention_weights  # (N, 1, A, P)
            attention = None if weights is None else weights[:, 0].mean(dim=1).numpy()  # (N, P)
            return StepOutput(log_probabilities.numpy(), decoded.states.numpy(), attention)

        return step

    def _caption_of(self, found: Found, length_penalty: float) -> Caption:
        rivals = None
        if found.rivals.shape[1]:
            rivals = torch.from_numpy(found.rivals), torch.from_numpy(found.rival_log_probabilities)
        attention = None if found.attention is None else torch.from_numpy(found.attention)
        log_probabilities = torch.from_numpy(found.log_probabilities)
        return self._caption(torch.from_numpy(found.tokens), log_probabilities, attention, rivals, length_penalty)

    def _labels(self, sequences: torch.Tensor) -> torch.Tensor:
        """Generated sequences `(N, 1 + T)` -> labels `(N, T)`: no start token, nothing behind the first end token."""
        labels = sequences[:, 1:]
        ended = (labels == self.model.config.eos_token_id).cumsum(dim=1)
        is_behind_end = (ended - (labels == self.model.config.eos_token_id).long()) > 0
        return labels.masked_fill(is_behind_end, IGNORE_INDEX)

    def _caption(self, labels, log_probabilities, attention, rivals, length_penalty: float) -> Caption:
        token_ids = labels[labels != IGNORE_INDEX]  # (T,), the end token included
        log_probabilities = log_probabilities[: len(token_ids)]
        num_words = int((token_ids != self.model.config.eos_token_id).sum())
        if attention is not None:
            rows = math.isqrt(attention.shape[-1])
            attention = attention[:num_words].unflatten(-1, (rows, -1)).cpu().numpy()  # (words, rows, columns)
        return Caption(
            text=self.processor.decode(token_ids),
            score=log_probabilities.sum().item() / len(token_ids) ** length_penalty,
            words=tuple(self.processor.decode(token_ids[index : index + 1]) for index in range(num_words)),
            log_probabilities=tuple(log_probabilities[:num_words].tolist()),
            attention=attention,
            rivals=() if rivals is None else tuple(self._rivals(rivals[0], rivals[1], num_words)),
        )

    def _rivals(self, tokens, log_probabilities, num_words: int):
        """Tokens and log-probabilities `(T, rivals)` -> word and probability of each, by word."""
        for of_word, values in zip(tokens[:num_words], log_probabilities[:num_words], strict=True):
            texts = (self.processor.decode([token], skip_special_tokens=False) for token in of_word.tolist())
            yield tuple(zip(texts, values.exp().tolist(), strict=True))
