"""What the page and the programs that call it are answered: JSON, or a sentence for a person."""

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
    """What can't be done is said on the page, and to programs."""
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
    """Captions, the best first, and the milliseconds of the forwards that the photo was in, with their photos."""
    return {
        "captions": [caption_as_json(caption) for caption in captioned.captions],
        "encoder_ms": round(captioned.encoder_ms, 1),
        "decoder_ms": round(captioned.decoder_ms, 1),
        "batch": captioned.batch,
    }


def caption_as_json(caption: Caption) -> dict[str, Any]:
    """Text, score and probability of a caption; probability, attention and alternatives of each word."""
    words = []
    for place, text in enumerate(caption.words):
        attention = None if caption.attention is None else caption.attention[place].round(4).tolist()
        probability = math.exp(caption.log_probabilities[place])
        alternatives = (
            [[alternative, round(share, 4)] for alternative, share in caption.alternatives[place]]
            if caption.alternatives
            else []
        )
        words.append(
            {"text": text, "probability": round(probability, 4), "attention": attention, "alternatives": alternatives}
        )
    probability = math.exp(sum(caption.log_probabilities))
    return {"text": caption.text, "score": round(caption.score, 4), "probability": probability, "words": words}


def shown_photo(photo: Image.Image) -> dict[str, Any]:
    """The photo as the page shows it."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"photo": f"data:image/jpeg;base64,{data}", "width": photo.width, "height": photo.height}
