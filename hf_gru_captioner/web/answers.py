"""Responses to the page and to programs: JSON, or an error message."""

import base64
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from markupsafe import escape
from PIL import Image

from ..captioner import Caption
from ..untrusted_images import RefusedError
from .service import NO_WORDS, NUM_ALTERNATIVES, BusyError, Captioned


@contextmanager
def as_sentences() -> Iterator[None]:
    """Turns rejections into errors that the page shows and programs receive."""
    try:
        yield
    except (RefusedError, BusyError) as error:
        raise gr.Error(as_html(str(error)), print_exception=False) from None


def as_html(text: str) -> str:
    """Escapes untrusted text where Gradio expects HTML: in its errors and warnings.

    `escape` is also what the report's template uses. Apostrophes stay: they are harmless between tags, and programs get
    the same messages.
    """
    return str(escape(text)).replace("&#39;", "'")


def answer_of(captioned: Captioned, with_attention: bool = True) -> dict[str, Any]:
    """Captions, best first, and the time in milliseconds and batch size of the forward passes."""
    return {
        "captions": [caption_as_json(caption, with_attention) for caption in captioned.captions],
        "encoder_ms": round(captioned.encoder_ms, 1),
        "decoder_ms": round(captioned.decoder_ms, 1),
        "batch": captioned.batch,
    }


def caption_as_json(caption: Caption, with_attention: bool = True) -> dict[str, Any]:
    """The fields of a [`Caption`] as JSON, its text as `caption`, and the mean probability of its words.

    `alternatives` are pairs of word and probability, without tokens that are no words, except for the end token.
    """
    answer: dict[str, Any] = {
        "caption": caption.text,
        "score": round(caption.score, 4),
        "words": list(caption.words),
        "mean_probability": round(mean_probability(caption), 4),
        "log_probabilities": [round(each, 4) for each in caption.log_probabilities],
        "alternatives": [
            [[word, round(value, 4)] for word, value in of_word if word not in NO_WORDS][:NUM_ALTERNATIVES]
            for of_word in caption.alternatives
        ],
    }
    if with_attention:
        answer["attention"] = None if caption.attention is None else caption.attention.round(4).tolist()
    return answer


def mean_probability(caption: Caption) -> float:
    """The geometric mean of the word probabilities: how certain the model is of a caption, whatever its length."""
    return math.exp(math.fsum(caption.log_probabilities) / max(len(caption.log_probabilities), 1))


def jpeg_of(image: Image.Image) -> bytes:
    """Encodes an image as JPEG, as shown on the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def shown_image(image: Image.Image) -> dict[str, Any]:
    """An image as fields of a JSON response."""
    data = base64.b64encode(jpeg_of(image)).decode()
    return {"photo": f"data:image/jpeg;base64,{data}", "width": image.width, "height": image.height}
