"""The endpoints for programs, `/caption` and `/stream`.

Their images come as text: Gradio checks no path that a typed endpoint is given.
"""

import base64
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from ..untrusted_images import ADDRESSES, RefusedError
from .answers import answer_of, as_sentences
from .handlers import Handlers
from .service import CaptionService, Decoding
from .tabs import DEFAULTS

NO_IMAGE = "A photo is a web address, or the file in base64."
MAX_STREAMS = 4  # callers whose captions are streamed at the same time


def add_endpoints(handlers: Handlers) -> None:
    """Adds the endpoints to the page that is being built."""
    pool = handlers.pool

    def caption(
        photo: str,
        strategy: str = DEFAULTS.strategy,
        num_captions: int = 1,
        num_beams: int = DEFAULTS.num_beams,
        temperature: float = DEFAULTS.temperature,
        top_p: float = DEFAULTS.top_p,
        length_penalty: float = DEFAULTS.length_penalty,
        max_words: int = DEFAULTS.max_words,
        no_repeat_ngram: int = DEFAULTS.no_repeat_ngram,
        checkpoint: str = pool.names[0],
    ) -> dict[str, Any]:
        """Caption an image, given by its web address or as base64.

        Returns captions, the best first, each with text, score, probability and words; each word with probability,
        attention (rows of the grid of regions) and alternatives; and the milliseconds of encoder and decoder.
        """
        settings = (strategy, num_captions, num_beams, temperature, top_p, length_penalty, max_words, no_repeat_ngram)
        with as_sentences():
            decoding = Decoding(*settings)
            service = pool[checkpoint]
            return answer_of(service(_image_of(photo, handlers, service), decoding))

    def stream(
        photo: str,
        strategy: str = "greedy",
        temperature: float = DEFAULTS.temperature,
        max_words: int = DEFAULTS.max_words,
        checkpoint: str = pool.names[0],
    ) -> Iterator[str]:
        """Stream the caption of an image word by word, greedy or sampled."""
        with as_sentences():
            if strategy == "beam":
                raise RefusedError("A beam search knows its words only at the end: greedy or sample.")
            decoding = Decoding(strategy, num_captions=1, temperature=temperature, max_words=max_words)
            service = pool[checkpoint]
            yield from service.stream(_image_of(photo, handlers, service), decoding)

    gr.api(caption, api_name="caption", concurrency_limit=None)
    gr.api(stream, api_name="stream", concurrency_limit=MAX_STREAMS)


def _image_of(text: str, handlers: Handlers, service: CaptionService) -> Image.Image:
    """The image of an address, or of a file in base64, for the encoder."""
    limit = handlers.limits.text_bytes
    if not isinstance(text, str):
        raise RefusedError(NO_IMAGE)
    if text.startswith(ADDRESSES):
        with handlers.fetched(text) as read:
            return handlers.load(service, read)
    if len(text) > limit:
        raise RefusedError(f"A photo in base64 has at most {limit / 1e6:.0f} MB; larger ones can be uploaded.")
    return handlers.load(service, lambda: _decoded(text))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except ValueError:
        raise RefusedError(NO_IMAGE) from None
