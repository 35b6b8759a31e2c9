"""The vision encoder of a new captioner: a pretrained encoder, or that of another captioner.

The shipped checkpoint contains one, so a captioner in another language can be trained without the Hub.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..checkpoint import (
    SHIPPED_CHECKPOINT,
    Source,
    check_work,
    encoder_folder,
    is_captioner,
    load_checkpoint,
    names_damaged,
)
from ..errors import UsageError, one_line
from ..hub import public_name
from ..model import GRUCaptionerConfig, GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor


class PretrainedEncoder:
    """A pretrained vision encoder, downloaded and checked, and new captioners with it.

    Args:
        name: Hub id or folder, of an encoder or of a captioner; the decoder of a captioner is not used.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub can't be reached; the message says how to do without it.
        ValueError: Neither an encoder nor a captioner, or a damaged one.
    """

    def __init__(self, name: str):
        self.name = name
        source = Source(name)
        self._captioner: tuple[GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor] | None = None
        with _names_encoder(name):
            try:
                if is_captioner(source):
                    self._captioner = load_checkpoint(source)
                else:
                    self._folder = str(encoder_folder(source))
            except OSError as error:
                raise type(error)(
                    f"{one_line(error).rstrip('.')}. model.encoder may also be a folder, such as that of the "
                    f"shipped checkpoint: {SHIPPED_CHECKPOINT}"
                ) from error

    def model(
        self, processor: GRUCaptionerProcessor | None = None, **fields: Any
    ) -> GRUCaptionerForConditionalGeneration:
        """A captioner with this encoder and a new decoder. The license of a captioner's weights is preserved.

        Args:
            processor: Rejected if encoding images of its size would take too much time or memory.
            fields: Fields of [`GRUCaptionerConfig`].

        Raises:
            UsageError: A field is out of range.
            ValueError: The encoder is damaged, or too large for such images.
        """
        with _names_encoder(self.name):
            if self._captioner is None:
                model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(self._folder, **fields)
                encoder_config: Any = model.config.encoder_config
                encoder_config._name_or_path = public_name(self.name)  # named so in checkpoint and card
            else:
                captioner, _ = self._captioner
                config = GRUCaptionerConfig(encoder_config=captioner.config.encoder_config, **fields)
                if (terms := getattr(captioner.config, "license", None)) is not None:
                    config.license = terms
                model = GRUCaptionerForConditionalGeneration(config)
                model.encoder.vision.load_state_dict(captioner.encoder.vision.state_dict())
            if processor is not None:
                check_work(model, processor)
        return model

    def processor(self, tokenizer: Any, image_size: int | None = None) -> GRUCaptionerProcessor:
        """The processor that fits the encoder.

        Args:
            tokenizer: The tokenizer of the captions.
            image_size: Side of the square in pixels; by default the encoder's or the captioner's.

        Raises:
            ValueError: The encoder is damaged.
        """
        with _names_encoder(self.name):
            if self._captioner is None:
                return GRUCaptionerProcessor.from_encoder_pretrained(self._folder, tokenizer, image_size)
            _, known_processor = self._captioner
            processor = GRUCaptionerProcessor(known_processor.image_processor, tokenizer)
            if image_size is not None:
                set_image_size(processor, image_size)
            return processor


def set_image_size(processor: GRUCaptionerProcessor, side: int) -> None:
    """Makes a captioner's processor scale images to another size.

    Args:
        processor: Changed in place.
        side: Height and width in pixels.

    Raises:
        UsageError: It crops images to a fixed size.
    """
    processor.image_processor.size = {"height": side, "width": side}
    if processor.image_size is None:
        raise UsageError("model.image_size: the checkpoint's image processor crops images to a fixed size.")


@contextmanager
def _names_encoder(name: str) -> Iterator[None]:
    """Names the encoder in errors about a damaged one or an invalid option."""
    with names_damaged(f"the encoder {name}", OSError, ValueError):
        try:
            yield
        except StrictDataclassError as error:  # an option is out of range
            raise UsageError(str(error.__cause__ or error)) from error
