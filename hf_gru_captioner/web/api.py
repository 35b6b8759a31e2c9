"""API endpoints for programs: `/caption`, `/caption_many` and `/caption_stream`.

A photo is an uploaded file, a web address, or the file in base64. Gradio doesn't check paths given to typed
endpoints; `page` and `uploads` do.
"""

import base64
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from ..untrusted_images import ADDRESSES, RefusedError
from .answers import answer_of, as_sentences
from .handlers import Handlers
from .messages import HANDLE_FILE, file_of
from .service import CaptionService, Decoding
from .tabs import DEFAULTS
from .uploads import uploads

NO_IMAGE = "A photo is an uploaded file, a web address, or the file in base64."
NO_FILES = (
    f"Photos must be a list of uploaded files ({HANDLE_FILE}); /caption also takes a web address or the file in base64."
)
MAX_STREAMS = 4  # captions streamed at the same time
MAX_BATCHES = 2  # batches of photos captioned at the same time

Photo = str | dict[str, Any]  # a dict as created by gradio_client's handle_file()


def add_endpoints(handlers: Handlers) -> None:
    """Adds the endpoints to the page that is being built."""
    pool = handlers.pool

    def caption(
        photo: Photo,
        strategy: str = DEFAULTS.strategy,
        num_captions: int = 1,
        num_beams: int = DEFAULTS.num_beams,
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        length_penalty: float = DEFAULTS.length_penalty,
        max_words: int = DEFAULTS.max_words,
        no_repeat_ngram: int = DEFAULTS.no_repeat_ngram,
        checkpoint: str = pool.names[0],
        attention: bool = False,
    ) -> dict[str, Any]:
        """Captions a photo: an uploaded file, a web address, or the file in base64.

        Returns caption, score, mean_probability (of its words), words, log_probabilities (of each word), alternatives
        (for each word, pairs of a word in its place and its probability), and with attention=True attention (for each
        word, rows of the grid of regions); the same for each further caption in other_captions; milliseconds of
        encoder and decoder.
        """
        settings = (strategy, num_captions, num_beams, temperature, top_p, length_penalty, max_words, no_repeat_ngram)
        with as_sentences():
            decoding = Decoding(*settings)
            image = _image_of(photo, handlers, pool[checkpoint])
            answer = answer_of(pool.caption(checkpoint, image, decoding), attention is True)
        best, *others = answer["captions"]
        times = {"encoder_ms": answer["encoder_ms"], "decoder_ms": answer["decoder_ms"]}
        return {**best, "other_captions": others, **times}

    def caption_many(
        photos: list[dict[str, Any]],
        strategy: str = DEFAULTS.strategy,
        num_captions: int = 1,
        num_beams: int = DEFAULTS.num_beams,
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        length_penalty: float = DEFAULTS.length_penalty,
        max_words: int = DEFAULTS.max_words,
        no_repeat_ngram: int = DEFAULTS.no_repeat_ngram,
        checkpoint: str = pool.names[0],
    ) -> Iterator[list[dict[str, Any]]]:
        """Captions uploaded photos and ZIP archives of photos.

        Returns for each photo its file_name, and the fields of /caption or an error message; meanwhile, those so far.
        """
        settings = (strategy, num_captions, num_beams, temperature, top_p, length_penalty, max_words, no_repeat_ngram)
        with as_sentences():
            if not isinstance(photos, list) or not photos or not all(isinstance(photo, dict) for photo in photos):
                raise RefusedError(NO_FILES)
            decoding = Decoding(*settings)
            files = [file_of(photo, uploads()) for photo in photos]
            yield from handlers.caption_files(files, checkpoint, decoding)

    def caption_stream(
        photo: Photo,
        strategy: str = "greedy",
        temperature: float = DEFAULTS.temperature,
        max_words: int = DEFAULTS.max_words,
        no_repeat_ngram: int = DEFAULTS.no_repeat_ngram,
        checkpoint: str = pool.names[0],
    ) -> Iterator[str]:
        """Streams the caption of a photo, given as for /caption, word by word; greedy or sampled."""
        with as_sentences():
            if strategy == "beam":
                raise RefusedError("Beam search can't be streamed: use greedy or sample.")
            decoding = Decoding(
                strategy, num_captions=1, temperature=temperature, max_words=max_words, no_repeat_ngram=no_repeat_ngram
            )
            service = pool[checkpoint]
            yield from service.stream(_image_of(photo, handlers, service), decoding)

    gr.api(caption, api_name="caption", concurrency_limit=None)
    gr.api(caption_many, api_name="caption_many", concurrency_limit=MAX_BATCHES, concurrency_id="many")
    gr.api(caption_stream, api_name="caption_stream", concurrency_limit=MAX_STREAMS)


def _image_of(photo: Any, handlers: Handlers, service: CaptionService) -> Image.Image:
    """Loads a photo for the encoder."""
    if isinstance(photo, dict):
        path = file_of(photo, uploads()).path
        return handlers.load(service, lambda: uploads().read(str(path)))
    limit = handlers.limits.text_bytes
    if not isinstance(photo, str):
        raise RefusedError(NO_IMAGE)
    if photo[:8].lower().startswith(ADDRESSES):
        with handlers.fetched(photo) as read:
            return handlers.load(service, read)
    if len(photo) > limit:
        raise RefusedError(f"A photo in base64 has at most {limit / 1e6:.0f} MB; larger ones can be uploaded.")
    return handlers.load(service, lambda: _decode_base64(photo))


def _decode_base64(text: str) -> bytes:
    try:
        # Programs wrap lines, at 76 characters as the `base64` command does.
        return base64.b64decode("".join((text.partition("base64,")[2] or text).split()), validate=True)
    except ValueError:
        raise RefusedError(NO_IMAGE) from None
