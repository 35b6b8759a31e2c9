"""Processor of the GRU captioner: image -> `pixel_values`, captions -> `labels`, token ids -> text.

Photos of any shape are squashed whole to the encoder's square, as the training photos were. Measured by
`benchmarks/photo_shape.py` with the shipped checkpoint on 1,000 validation photos stretched back to 4:3: CIDEr 52.1
squashed, 51.2 cut to the center square (95 % intervals reach 3.5 each way): a cut gains nothing and loses the sides.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, CLIPImageProcessor, PreTrainedTokenizerBase
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ProcessorMixin

from .configuration_gru_captioner import IGNORE_INDEX
from .image_loading_gru_captioner import ImageSource, is_one_image, load_image


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

    def load_image(self, source: ImageSource, timeout: float = 10.0) -> Image.Image:
        """One image, upright, RGB and at [`image_size`] if there is one; see the function of this name."""
        return load_image(source, timeout, self.image_size, self.image_processor.resample)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that photos are squashed to, in pixels; None where the image processor goes by other rules.

        Then they are scaled while they are loaded, which spares most of the decoding of a big JPEG.
        """
        settings = self.image_processor
        size = settings.size or {}
        height, width = size.get("height"), size.get("width")
        is_squashed = settings.do_resize and not getattr(settings, "do_center_crop", False)
        return (int(height), int(width)) if height and width and is_squashed else None

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
            loaded = [self.load_image(source) for source in sources]
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


__all__ = ["GRUCaptionerProcessor"]
