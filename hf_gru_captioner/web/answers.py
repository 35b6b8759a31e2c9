"""Answers to the page and to programs: JSON, or an error as a sentence."""

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
from .service import BusyError, Captioned


@contextmanager
def as_sentences() -> Iterator[None]:
    """Turns refusals into errors that the page shows and programs receive."""
    try:
        yield
    except (RefusedError, BusyError) as error:
        raise gr.Error(as_html(str(error)), print_exception=False) from None


def as_html(text: str) -> str:
    """Text from outside, where Gradio takes HTML: in its errors and warnings.

    `escape` is what the report's template escapes with too. An apostrophe does no harm between tags, and programs are
    answered with the same sentences.
    """
    return str(escape(text)).replace("&#39;", "'")


def answer_of(captioned: Captioned, with_attention: bool = True) -> dict[str, Any]:
    """Captions, the best first, and the milliseconds and the batch size of the forward passes."""
    return {
        "captions": [caption_as_json(caption, with_attention) for caption in captioned.captions],
        "encoder_ms": round(captioned.encoder_ms, 1),
        "decoder_ms": round(captioned.decoder_ms, 1),
        "batch": captioned.batch,
    }


def caption_as_json(caption: Caption, with_attention: bool = True) -> dict[str, Any]:
    """The fields of a [`Caption`], its text as `caption`; `alternatives` are pairs of a word and its probability."""
    answer: dict[str, Any] = {
        "caption": caption.text,
        "score": round(caption.score, 4),
        "words": list(caption.words),
        "log_probabilities": [round(each, 4) for each in caption.log_probabilities],
        "alternatives": [[[word, round(share, 4)] for word, share in of_word] for of_word in caption.alternatives],
    }
    if with_attention:
        answer["attention"] = None if caption.attention is None else caption.attention.round(4).tolist()
    return answer


def word_probability(caption: Caption) -> float:
    """The geometric mean of the words' probabilities: how sure the model is of a caption, whatever its length."""
    return math.exp(math.fsum(caption.log_probabilities) / max(len(caption.log_probabilities), 1))


def jpeg_of(image: Image.Image) -> bytes:
    """The image as the page shows it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def shown_image(image: Image.Image) -> dict[str, Any]:
    """The image as a part of an answer in JSON."""
    data = base64.b64encode(jpeg_of(image)).decode()
    return {"photo": f"data:image/jpeg;base64,{data}", "width": image.width, "height": image.height}
