"""Processor of the GRU captioner: image -> `pixel_values`, captions -> `labels`, token ids -> text.

Images of any shape are squashed to the encoder's square, as in training. Measured by `benchmarks/photo_shape.py` with
the shipped checkpoint on 1,000 validation images stretched back to 4:3: CIDEr 52.1 squashed, 51.2 center-cropped (95 %
intervals are +/- 3.5): cropping gains nothing and loses the sides.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, CLIPImageProcessor, PreTrainedTokenizerBase
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

from .configuration_gru_captioner import IGNORE_INDEX
from .image_loading_gru_captioner import ImageSource, is_one_image, load_image

# Settings of transformers' image processors and tokenizers that may be passed per call.
IMAGE_SETTINGS = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb",
}  # fmt: skip
NO_LENGTH = 1_000_000  # a tokenizer's model_max_length from here on stands for none
TEXT_SETTINGS = {"add_special_tokens", "padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length"}


def _flatten(images) -> list[ImageSource]:
    if is_one_image(images):
        return [images]
    return [each for one in images for each in (_flatten(one) if isinstance(one, list | tuple) else [one])]


def _is_float(source: ImageSource) -> bool:
    """Whether this is an array or tensor of floats, which [`load_image`] takes in [0, 1]."""
    if isinstance(source, torch.Tensor):
        return source.is_floating_point()
    return isinstance(source, np.ndarray) and np.issubdtype(source.dtype, np.floating)


def _merge(settings: dict[str, Any], names: set[str], grouped: dict[str, Any] | None, group: str) -> dict[str, Any]:
    """Merges settings with these names and those in the group; rejects one that is given in both."""
    named = {name: value for name, value in settings.items() if name in names}
    twice = sorted(named.keys() & (grouped or {}).keys())
    if twice:
        raise ValueError(f"{twice[0]} is given twice: pass it by name or in {group}, not both.")
    return named | (grouped or {})


class GRUCaptionerProcessor(ProcessorMixin):
    """Wraps an image processor and a caption tokenizer in a single processor.

    Args:
        image_processor: Any of transformers' image processors; [`from_encoder_pretrained`] makes the matching one.
        tokenizer: Caption tokenizer that appends the end token but doesn't prepend the start token.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_encoder_pretrained(
        cls,
        encoder_name_or_path: str,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> "GRUCaptionerProcessor":
        """A processor that matches a pretrained vision encoder in size, mean and standard deviation.

        Args:
            encoder_name_or_path: Hub id or folder of the encoder.
            tokenizer: Caption tokenizer.
            image_size: Side of the square in pixels; by default the encoder's own.
            revision, token: As in `AutoImageProcessor.from_pretrained`.
        """
        location = {"revision": revision, "token": token, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(encoder_name_or_path, **location)
        timm_settings = getattr(config, "pretrained_cfg", None)
        if timm_settings is not None:
            encoder_size = timm_settings["input_size"][-1]
            mean, std = timm_settings["mean"], timm_settings["std"]
        else:
            encoder_processor = AutoImageProcessor.from_pretrained(encoder_name_or_path, **location)
            size = getattr(encoder_processor, "crop_size", None) or encoder_processor.size
            encoder_size = size.get("height") or size["shortest_edge"]
            mean, std = encoder_processor.image_mean, encoder_processor.image_std
        side = image_size or encoder_size
        image_processor = CLIPImageProcessor(
            size={"height": side, "width": side},
            do_center_crop=False,
            resample=PILImageResampling.BICUBIC,
            image_mean=list(mean),
            image_std=list(std),
        )
        return cls(image_processor, tokenizer)

    def load_image(self, source: ImageSource, timeout: float = 10.0) -> Image.Image:
        """Loads an image: upright, RGB, at [`image_size`] if there is one; see the function of this name."""
        return load_image(source, timeout, self.image_size, self.image_processor.resample)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that images are squashed to; None if the image processor works differently.

        If known, images are resized while loading, which saves most of the decoding of a big JPEG.
        """
        return self._image_size({})

    def _image_size(self, settings: dict[str, Any]) -> tuple[int, int] | None:
        """[`image_size`] with the settings of a call."""
        names = ("size", "do_resize", "do_center_crop")
        size, do_resize, do_center_crop = (
            settings.get(name, getattr(self.image_processor, name, None)) for name in names
        )
        height, width = (size or {}).get("height"), (size or {}).get("width")
        is_squashed = do_resize and not do_center_crop
        return (int(height), int(width)) if height and width and is_squashed else None

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "labels", "decoder_input_ids"]

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource] | Sequence[Sequence[ImageSource]] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        **settings,
    ) -> BatchFeature:
        """
        Args:
            images: One image or several, of any kind that [`load_image`] takes; a 4-d array or tensor is a batch.
                Lists of lists are flattened.
            text: Captions, image by image; for generate(), the beginnings of the captions.
            return_tensors: `"pt"` for torch, `"np"` for NumPy, None for lists (of arrays, for images).
            images_kwargs: Settings of the image processor for this call, such as `do_rescale` and `size`, which may be
                the side of a square. `do_rescale=False` leaves the range of the pixels as it is: float arrays and
                tensors stay in [0, 1], all other images in [0, 255].
            text_kwargs: Settings of the tokenizer for this call: `padding` (True), `truncation` (True), `max_length`
                and `add_special_tokens` (True); False omits the end token: one more -100 stands in its place.
            common_kwargs: `return_tensors`.
            settings: The same settings by name.

        Returns:
            `pixel_values` `(B, 3, side, side)` for images. For text, `labels` `(N, T)`: token ids up to and including
            the end token, then -100, used for the loss in forward and ignored by generate(); and `decoder_input_ids`
            `(N, T)`: the start token and the token ids, read by forward and continued by generate().

        Raises:
            TypeError: A setting that neither the image processor nor the tokenizer has.
            ValueError: Nothing to process, a setting given both by name and in `images_kwargs` or `text_kwargs`,
                captions of different lengths with `padding=False`, or images of both ranges with `do_rescale=False`.
        """
        if images is None and text is None:
            raise ValueError("pass images, text (captions), or both.")
        return_tensors = (common_kwargs or {}).get("return_tensors", return_tensors)
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f'return_tensors must be "pt", "np" or None, found {return_tensors!r}.')
        unknown = sorted(settings.keys() - IMAGE_SETTINGS - TEXT_SETTINGS)
        if unknown:
            raise TypeError(f"the processor has no setting {unknown[0]!r}.")
        image_settings = _merge(settings, IMAGE_SETTINGS, images_kwargs, "images_kwargs")
        text_settings = _merge(settings, TEXT_SETTINGS, text_kwargs, "text_kwargs")
        inputs = BatchFeature()
        if images is not None:
            pixel_values = self._pixel_values(images, image_settings)
            inputs["pixel_values"] = list(pixel_values.numpy()) if return_tensors is None else pixel_values
        if text is not None:
            inputs["labels"] = self._with_room_for_end(self._labels(text, **text_settings))
            inputs["decoder_input_ids"] = [self._shift(labels) for labels in inputs["labels"]]
        try:
            return inputs.convert_to_tensors(return_tensors)
        except ValueError as error:
            raise ValueError(
                "the captions have different lengths: pass padding=True or return_tensors=None."
            ) from error

    def _pixel_values(self, images, settings: dict[str, Any]) -> torch.Tensor:  # (B, 3, side, side)
        sources = _flatten(images)
        if not sources:
            raise ValueError("pass at least one image.")
        if settings.get("size") is not None:
            is_square = bool((self.image_processor.size or {}).get("height"))
            settings = settings | {"size": get_size_dict(settings["size"], default_to_square=is_square)}
        do_rescale = settings.get("do_rescale")
        if not (self.image_processor.do_rescale if do_rescale is None else do_rescale):
            are_floats = set(map(_is_float, sources))
            if len(are_floats) > 1:
                raise ValueError("do_rescale=False needs images of one range: floats in [0, 1], or 8-bit images.")
            if True in are_floats:  # load_image makes 8-bit images of them
                settings = settings | {"do_rescale": True, "rescale_factor": 1 / 255}
        size, resample = self._image_size(settings), settings.get("resample", self.image_processor.resample)
        loaded = [load_image(source, size=size, resample=resample) for source in sources]
        return self.image_processor(loaded, return_tensors="pt", **settings)["pixel_values"]

    def encode_captions(self, captions: str | Sequence[str]) -> torch.Tensor:
        """Captions -> labels `(N, T)`."""
        return torch.tensor(self._labels(captions))

    def _labels(
        self,
        captions: str | Sequence[str],
        padding: bool | str = True,
        truncation: bool | str = True,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        **settings,
    ) -> list[list[int]]:
        """Captions -> N rows of labels, of different lengths unless padded.

        The tokenizer neither truncates nor pads: both are settings of a fast tokenizer, shared by all threads that use
        it, and changing them while another thread tokenizes fails.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions:
            raise ValueError("pass at least one caption.")
        longest = self.tokenizer.model_max_length if max_length is None else max_length
        rows = self.tokenizer(captions, padding=False, truncation=False, verbose=False, **settings)["input_ids"]
        if truncation is True or TruncationStrategy(truncation or "do_not_truncate") != "do_not_truncate":
            rows = [self._truncate(row, longest) for row in rows]
        if padding is not True and PaddingStrategy(padding or "do_not_pad") == "do_not_pad":
            return rows
        width = max(map(len, rows))
        if padding == "max_length" and longest < NO_LENGTH:
            width = max(width, longest)
        width += -width % (pad_to_multiple_of or 1)
        side = padding_side or self.tokenizer.padding_side
        missing = [[IGNORE_INDEX] * (width - len(row)) for row in rows]
        return [pad + row if side == "left" else row + pad for row, pad in zip(rows, missing, strict=True)]

    def _truncate(self, tokens: list[int], max_length: int) -> list[int]:
        """At most this number of tokens, with the end token if there was one."""
        if len(tokens) <= max_length:
            return tokens
        num_ends = int(tokens[-1] == self.tokenizer.eos_token_id)
        return tokens[: max_length - num_ends] + tokens[len(tokens) - num_ends :]

    def _with_room_for_end(self, rows: list[list[int]]) -> list[list[int]]:
        """Rows of labels that all end in an end token or -100, so that shifted right none loses its last word."""
        are_ended = all(row and row[-1] in (IGNORE_INDEX, self.tokenizer.eos_token_id) for row in rows)
        return rows if are_ended else [[*row, IGNORE_INDEX] for row in rows]

    def _shift(self, labels: list[int]) -> list[int]:
        """Shifts the labels of one caption right after the start token, with padding after its end."""
        pad = self.tokenizer.pad_token_id
        no_word = (IGNORE_INDEX, self.tokenizer.eos_token_id)
        return [self.tokenizer.bos_token_id, *(pad if token in no_word else token for token in labels[:-1])]

    def batch_decode(self, token_ids, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Generated token ids or labels, `(N, T)` or N rows of any lengths, -> captions."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in token_ids]

    def decode(self, token_ids, skip_special_tokens: bool = True, **kwargs) -> str:
        """Token ids of one caption `(T,)` -> text."""
        ids = [token for token in torch.as_tensor(token_ids).tolist() if token != IGNORE_INDEX]
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)


__all__ = ["GRUCaptionerProcessor"]
