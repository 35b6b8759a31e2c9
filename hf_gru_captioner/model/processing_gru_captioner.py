"""Processor of the GRU captioner: image -> `pixel_values`, captions -> `labels`, token ids -> text.

Photos of any shape are squashed whole to the encoder's square, as the training photos were. Measured by
`benchmarks/photo_shape.py` with the shipped checkpoint on 1,000 validation photos stretched back to 4:3: CIDEr 52.1
squashed, 51.2 cut to the center square (95 % intervals reach 3.5 each way): a cut gains nothing and loses the sides.
"""

import os
from collections.abc import Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import ExifTags, Image, ImageSequence, UnidentifiedImageError
from transformers import AutoConfig, AutoImageProcessor, CLIPImageProcessor, PreTrainedTokenizerBase
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ProcessorMixin

from .configuration_gru_captioner import IGNORE_INDEX

_TURNS = {  # what EXIF's orientation asks for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor


def load_image(source: ImageSource, timeout: float = 10.0) -> Image.Image:
    """Any image as it would be looked at: upright, RGB, 8 bits, transparent parts over white.

    Args:
        source: Path, `http(s)://` address, the bytes of an image file, PIL image, or an array or tensor `(H, W)`,
            `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels: 8- or 16-bit integers, or floats in [0, 1].
            Of an animation, the first frame.
        timeout: Seconds to wait for an address to answer.

    Raises:
        FileNotFoundError: No file at that path.
        ValueError: Not an image, or a damaged one. Says which.
        TypeError: Not one of the kinds above.
    """
    if isinstance(source, Image.Image):
        image, name = source, "the image"
    elif isinstance(source, np.ndarray | torch.Tensor):
        image, name = _from_array(_to_numpy(source)), "the array"
    elif isinstance(source, bytes | str | os.PathLike):
        image, name = _open(source, timeout)
    else:
        raise TypeError(
            f"an image is a path, an address, bytes, a PIL image, an array or a tensor; found {type(source).__name__}."
        )
    try:
        image = next(iter(ImageSequence.Iterator(image))) if getattr(image, "is_animated", False) else image
        return _flatten_to_rgb(_turn_upright(image))
    except Exception as error:  # on damaged files Pillow's decoders raise what they happen to stumble over
        raise ValueError(f"{name} can't be read to its end, it may be damaged: {error}.") from error


def is_one_image(images: ImageSource | Sequence[ImageSource]) -> bool:
    """Tells one image from a sequence of them; a 4-d array or tensor is a sequence."""
    return isinstance(images, ImageSource) and getattr(images, "ndim", 0) != 4


def _open(source: str | os.PathLike | bytes, timeout: float) -> tuple[Image.Image, str]:
    name = "the image" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, bytes):
        file: BytesIO | Path = BytesIO(source)
    elif name.startswith(("http://", "https://")):
        try:
            with urlopen(Request(name, headers={"User-Agent": "hf_gru_captioner"}), timeout=timeout) as response:
                file = BytesIO(response.read())
        except (OSError, ValueError, HTTPException) as error:
            raise ValueError(f"{name} can't be fetched: {error}.") from error
    else:
        file = Path(os.path.expanduser(name))
        if not name or not file.exists():
            raise FileNotFoundError(f"{name}: no such file.")
        if file.is_dir():
            raise ValueError(f"{name} is a folder, not an image.")
    try:
        return Image.open(file), name
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image of a known format.") from error
    except Exception as error:  # as above
        raise ValueError(f"{name} can't be read: {error}.") from error


def _turn_upright(image: Image.Image) -> Image.Image:
    """Turns a photo as its EXIF orientation says; ImageOps.exif_transpose fails where another tag is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # an EXIF block that can't be read says nothing, and the picture is whole
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an image array holds numbers, found {array.dtype}.")
    return array


def _from_array(array: np.ndarray) -> Image.Image:
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[-1] not in channels and array.shape[0] in channels:
        array = array.transpose(1, 2, 0)  # (H, W, C)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels) or 0 in array.shape:
        raise ValueError(
            f"an image array is (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, found {array.shape}."
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses nan
            raise ValueError(
                f"a float image has values in [0, 1], found {array.min():g} to {array.max():g}: pass 8-bit integers."
            )
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"an integer image has values in [0, 255], found {array.min()} to {array.max()}.")
        array = array.astype(np.uint8)
    return Image.fromarray(array)


def _flatten_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey, which convert("RGB") would clip to white
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":  # 32 bits, which may hold 8-bit or 16-bit grey
        levels = np.asarray(image)
        image = Image.fromarray((levels >> 8 if levels.max(initial=0) > 255 else levels).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = _from_array(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


class GRUCaptionerProcessor(ProcessorMixin):
    """Wraps an image processor and a caption tokenizer into the one object that a captioner needs.

    Args:
        image_processor: Any of transformers' image processors; [`from_encoder_pretrained`] makes the fitting one.
        tokenizer: Tokenizer of captions that ends each with its end token and does not begin it with the start token.
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
        """The processor that fits a pretrained vision encoder: its size, mean and standard deviation.

        Args:
            encoder_name_or_path: Hub id or folder of the encoder.
            tokenizer: Tokenizer of the captions.
            image_size: Side of the square in pixels; the encoder's own when not given.
            revision, token: As in `AutoImageProcessor.from_pretrained`.
        """
        location = {"revision": revision, "token": token}
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

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "labels", "decoder_input_ids"]

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
        padding: bool = True,
    ) -> BatchFeature:
        """
        Args:
            images: One image or several, of any kind that [`load_image`] takes; a 4-d array or tensor is a batch.
            text: Captions, all of the first image, then all of the second, and so on; for generate(), how the captions
                begin.
            return_tensors: Only `"pt"`.
            padding: Only `True`; transformers' pipelines pass it.

        Returns:
            `pixel_values` `(B, 3, side, side)` for images. For text, `labels` `(N, T)`: token ids up to and including
            the end token, then -100, which forward learns from and generate() ignores; and `decoder_input_ids`
            `(N, T)`: the start token and the token ids, which forward reads and generate() goes on from.
        """
        if images is None and text is None:
            raise ValueError("pass images, text (captions), or both.")
        if return_tensors != "pt":
            raise ValueError(f'return_tensors must be "pt", found {return_tensors!r}: the model takes torch tensors.')
        if padding is not True:
            raise ValueError(f"padding must be True, found {padding!r}: all captions become one tensor.")
        inputs = BatchFeature()
        if images is not None:
            sources: Any = [images] if is_one_image(images) else images
            if len(sources) == 0:
                raise ValueError("pass at least one image.")
            loaded = [load_image(source) for source in sources]
            inputs["pixel_values"] = self.image_processor(loaded, return_tensors="pt")["pixel_values"]
        if text is not None:
            labels = self.encode_captions(text)  # (N, T)
            tokens = labels[:, :-1].masked_fill(labels[:, 1:] == IGNORE_INDEX, self.tokenizer.pad_token_id)
            start = torch.full((len(labels), 1), self.tokenizer.bos_token_id)
            inputs["labels"], inputs["decoder_input_ids"] = labels, torch.cat((start, tokens), dim=1)  # (N, T)
        return inputs

    def encode_captions(self, captions: str | Sequence[str]) -> torch.Tensor:
        """Captions -> labels `(N, T)`."""
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions:
            raise ValueError("pass at least one caption.")
        encoded = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        return encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, IGNORE_INDEX)

    def batch_decode(self, token_ids, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Generated ids or labels, `(N, T)` or N rows of any lengths, -> captions."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in token_ids]

    def decode(self, token_ids, skip_special_tokens: bool = True, **kwargs) -> str:
        """Ids of one caption `(T,)` -> text."""
        ids = [token for token in torch.as_tensor(token_ids).tolist() if token != IGNORE_INDEX]
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)


__all__ = ["GRUCaptionerProcessor", "load_image"]
