"""The PyTorch backend: encoder and decoder step for our own search, and generate() for all other settings."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from ..model.configuration_gru_captioner import IGNORE_INDEX
from ..model.image_loading_gru_captioner import ImageSource
from ..model.modeling_gru_captioner import GRUCaptionerEncoderOutput
from .backend import PYTORCH, encode_known, unused_tokens, with_token_ids
from .beam_search import Hypothesis, Step, StepOutput


class PyTorchBackend:
    """
    Args:
        model: A captioner; it is put into evaluation mode.
        processor: Its processor.

    Raises:
        ValueError: Processor and model differ in vocabulary size, by more than padding.
    """

    name = PYTORCH

    def __init__(self, model: GRUCaptionerForConditionalGeneration, processor: GRUCaptionerProcessor):
        self.unused_tokens = unused_tokens(len(processor.tokenizer), model.config.vocab_size)
        self.model = model.eval()
        self.processor = processor

    @property
    def can_search(self) -> bool:
        """Whether NumPy's arithmetic matches the model's: only in float32 on the CPU."""
        return bool(self.model.device.type == "cpu" and self.model.dtype == torch.float32)

    @property
    def has_attention(self) -> bool:
        return bool(self.model.config.attention_type != "none")

    @property
    def image_size(self) -> tuple[int, int] | None:
        image_processor = self.processor.image_processor
        if not getattr(image_processor, "do_center_crop", False):
            return self.processor.image_size
        size = image_processor.crop_size
        return int(size["height"]), int(size["width"])

    def defaults(self) -> dict[str, Any]:
        """Settings of the model's generation_config that differ from generate()'s defaults, and all special token
        ids."""
        standard = _standard_settings()
        config = vars(self.model.generation_config)
        settings = {name: value for name, value in config.items() if name[0] != "_" and value != standard.get(name)}
        return with_token_ids(settings, vars(self.model.config))

    def decode_tokens(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.processor.decode(tokens, skip_special_tokens=skip_special_tokens)

    def encode_words(self, text: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        return encode_known(
            text, lambda part: tokenizer(part, add_special_tokens=False)["input_ids"], tokenizer.unk_token_id
        )

    def load_image(self, source: ImageSource) -> Image.Image:
        return self.processor.load_image(source)

    @torch.inference_mode()
    def encode(self, images: Sequence[ImageSource]) -> GRUCaptionerEncoderOutput:
        pixel_values = self.processor(images=images)["pixel_values"].to(self.model.device)
        encoded: GRUCaptionerEncoderOutput = self.model.get_encoder()(pixel_values)
        return encoded

    @torch.inference_mode()
    def begin(self, encoder_outputs: ModelOutput) -> tuple[np.ndarray, Step]:
        """Initial states `(2, B, H)` and the decoder step for encoded images."""
        regions = encoder_outputs.projected_regions
        return self.model.decoder.first_states(regions[2]).numpy(), _ModelStep(self.model, regions)

    @torch.inference_mode()
    def generate(
        self,
        encoder_outputs: ModelOutput,
        num_captions: int,
        num_alternatives: int,
        generation: dict[str, Any],
        report: Callable[[list[int]], None] | None = None,
        begin: Sequence[int] = (),
    ) -> list[list[Hypothesis]]:
        """Captions by generate(), which supports every setting; `report` and `begin` as in beam_search()."""
        model, defaults = self.model, self.defaults()
        lacking = [name for name in defaults if getattr(model.generation_config, name, None) is None]
        generation = {name: defaults[name] for name in lacking} | generation
        if begin:
            words = [defaults["decoder_start_token_id"], *begin]
            num_images = len(encoder_outputs.last_hidden_state)
            generation = generation | {"decoder_input_ids": torch.tensor([words] * num_images, device=model.device)}
        sequences = model.generate(
            encoder_outputs=encoder_outputs,
            num_return_sequences=num_captions,
            streamer=None if report is None else _Streamer(report),
            **generation,
        )  # (N, 1 + T)
        labels = self.model.labels_of_sequences(sequences)
        # Attention is not tracked across beams: one forward pass on the chosen tokens gives exactly the same.
        output = model(encoder_outputs=encoder_outputs, labels=labels, output_attentions=True)
        log_probabilities = output.logits.float().log_softmax(-1)  # (N, T, V)
        chosen = log_probabilities.gather(-1, labels.clamp(min=0)[..., None])[..., 0]  # (N, T)
        alternatives = log_probabilities.topk(num_alternatives)  # (N, T, alternatives)
        attention = output.cross_attentions[0].float().mean(dim=1) if output.cross_attentions else None  # (N, T, P)
        hypotheses = []
        for row, length in enumerate((labels != IGNORE_INDEX).sum(dim=1).tolist()):
            hypotheses.append(
                Hypothesis(
                    tokens=labels[row, :length].cpu().numpy(),
                    log_probabilities=chosen[row, :length].cpu().numpy(),
                    attention=None if attention is None else attention[row, :length].cpu().numpy(),
                    alternatives=alternatives.indices[row, :length].cpu().numpy(),
                    alternative_log_probabilities=alternatives.values[row, :length].cpu().numpy(),
                )
            )
        return [hypotheses[start : start + num_captions] for start in range(0, len(hypotheses), num_captions)]

    @torch.inference_mode()
    def mean_log_probabilities(
        self, encoder_outputs: ModelOutput, captions: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """As [`Captioner.mean_log_probabilities`], for encoded images."""
        numbers = torch.tensor([len(texts) for texts in captions])
        if not numbers.sum():
            return [[] for _ in captions]
        labels = self.processor.encode_captions([text for texts in captions for text in texts])  # (N, T)
        labels = labels.to(self.model.device)
        image_index = torch.arange(len(captions)).repeat_interleave(numbers).to(labels.device)  # (N,)
        logits = self.model(encoder_outputs=encoder_outputs, labels=labels, image_index=image_index).logits  # (N, T, V)
        is_token = labels != IGNORE_INDEX
        chosen = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]  # (N, T)
        means = chosen.masked_fill(~is_token, 0).sum(dim=1) / is_token.sum(dim=1)  # (N,)
        if (unknown := self.processor.tokenizer.unk_token_id) is not None:
            means = means.masked_fill((labels == unknown).any(dim=1), -math.inf)
        return [image_means.tolist() for image_means in means.split(numbers.tolist())]


class _ModelStep(NamedTuple):
    """A [`Step`]; regions are keys `(B, P, H)`, values `(B, P, H)` and the values' mean `(B, H)`."""

    model: GRUCaptionerForConditionalGeneration
    regions: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    @torch.inference_mode()
    def __call__(self, tokens: np.ndarray, states: np.ndarray) -> StepOutput:
        decoded = self.model.decoder(torch.from_numpy(tokens)[:, None], self.regions, torch.from_numpy(states))
        log_probabilities = self.model.lm_head(decoded.output_embeddings[:, 0]).log_softmax(-1)  # (N, V)
        weights = decoded.attention_weights  # (N, 1, A, P)
        attention = None if weights is None else weights[:, 0].mean(dim=1).numpy()  # (N, P)
        return StepOutput(log_probabilities.numpy(), decoded.states.numpy(), attention)

    @torch.inference_mode()
    def of_images(self, images: Sequence[int] | np.ndarray) -> "_ModelStep":
        keys, values, mean_region = (each[torch.as_tensor(images)] for each in self.regions)
        return _ModelStep(self.model, (keys, values, mean_region))


class _Streamer(BaseStreamer):
    """Reports the tokens so far after each new one."""

    def __init__(self, report: Callable[[list[int]], None]):
        self.report = report
        self.tokens: list[int] | None = None  # None until the start token has been received

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:
            self.tokens = []
        else:
            self.tokens += value.flatten().tolist()
            self.report(self.tokens)

    def end(self) -> None:
        pass


@functools.cache
def _standard_settings() -> dict[str, Any]:
    return dict(vars(GenerationConfig()))
