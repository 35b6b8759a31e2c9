"""The vision encoder that a new captioner begins with: a pretrained one of its own files, or that of another captioner.

The shipped checkpoint brings such an encoder along, so that a captioner in another language needs nothing of the Hub.
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
    """A pretrained vision encoder, fetched and checked, and what is new around it.

    Args:
        name: Hub id or folder, of an encoder or of a captioner; the decoder of a captioner is not used.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub can't be reached; says how to go on without.
        ValueError: Neither an encoder nor a captioner, or a damaged one.
    """

    def __init__(self, name: str):
        self.name = name
        source = Source(name)
        self._captioner: tuple[GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor] | None = None
        with _names(name):
            try:
                if is_captioner(source):
                    self._captioner = load_checkpoint(source)
                else:
                    self._folder = str(encoder_folder(source))
            except OSError as error:
                raise type(error)(
                    f"{one_line(error).rstrip('.')}. model.encoder may be a folder too, and that of the shipped "
                    f"checkpoint is at hand: {SHIPPED_CHECKPOINT}"
                ) from error

    def model(
        self, processor: GRUCaptionerProcessor | None = None, **fields: Any
    ) -> GRUCaptionerForConditionalGeneration:
        """A captioner with this encoder and a new decoder. The licence that a captioner's weights have stays with them.

        Args:
            processor: Refused if an image of its size would take the encoder too much time or memory.
            fields: Of [`GRUCaptionerConfig`].

        Raises:
            UsageError: A field is out of range.
            ValueError: The encoder is damaged, or too large for such images.
        """
        with _names(self.name):
            if self._captioner is None:
                model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(self._folder, **fields)
                encoder_config: Any = model.config.encoder_config
                encoder_config._name_or_path = public_name(self.name)  # its name in checkpoint and card
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
            tokenizer: Of the captions.
            image_size: Side of the square in pixels; the encoder's own, or the captioner's, when not given.

        Raises:
            ValueError: The encoder is damaged.
        """
        with _names(self.name):
            if self._captioner is None:
                return GRUCaptionerProcessor.from_encoder_pretrained(self._folder, tokenizer, image_size)
            _, known = self._captioner
            processor = GRUCaptionerProcessor(known.image_processor, tokenizer)
            if image_size is not None:
                set_image_size(processor, image_size)
            return processor


def set_image_size(processor: GRUCaptionerProcessor, side: int) -> None:
    """Lets a captioner's processor scale images to another size.

    Args:
        processor: Changed in place.
        side: Height and width in pixels.

    Raises:
        UsageError: It crops images, by a size of its own.
    """
    processor.image_processor.size = {"height": side, "width": side}
    if processor.image_size is None:
        raise UsageError("model.image_size: the checkpoint's image processor crops its images, and keeps its own size.")


@contextmanager
def _names(name: str) -> Iterator[None]:
    """Names the encoder in errors of a damaged one, and of sizes that don't match."""
    with names_damaged(f"the encoder {name}", OSError, ValueError):
        try:
            yield
        except StrictDataclassError as error:  # an option of the model is out of range
            raise UsageError(str(error.__cause__ or error)) from error
