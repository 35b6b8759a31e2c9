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


def answer_of(captioned: Captioned) -> dict[str, Any]:
    """Captions, the best first, and the milliseconds and the batch size of the forward passes."""
    return {
        "captions": [caption_as_json(caption) for caption in captioned.captions],
        "encoder_ms": round(captioned.encoder_ms, 1),
        "decoder_ms": round(captioned.decoder_ms, 1),
        "batch": captioned.batch,
    }


def caption_as_json(caption: Caption) -> dict[str, Any]:
    """Text, score and probability of a caption; probability, attention and alternatives of each word."""
    words = []
    for index, text in enumerate(caption.words):
        attention = None if caption.attention is None else caption.attention[index].round(4).tolist()
        probability = math.exp(caption.log_probabilities[index])
        alternatives = (
            [[alternative, round(share, 4)] for alternative, share in caption.alternatives[index]]
            if caption.alternatives
            else []
        )
        words.append(
            {"text": text, "probability": round(probability, 4), "attention": attention, "alternatives": alternatives}
        )
    probability = math.exp(sum(caption.log_probabilities))
    return {"text": caption.text, "score": round(caption.score, 4), "probability": probability, "words": words}


def shown_image(image: Image.Image) -> dict[str, Any]:
    """The image as the page shows it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"photo": f"data:image/jpeg;base64,{data}", "width": image.width, "height": image.height}
