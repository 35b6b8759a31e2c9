"""What the page and the programs that call it are answered: JSON, or a sentence for a person."""

import base64
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from PIL import Image

from ..captioning import Caption
from ..intake import RefusedError
from .service import BusyError, Captioned

SHOWN_SIDE = 640  # pixels of the longer side of the photo that goes back to the page


@contextmanager
def as_sentences() -> Iterator[None]:
    """What can't be done is said on the page, and to programs."""
    try:
        yield
    except (RefusedError, BusyError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def answer_of(captioned: Captioned) -> dict[str, Any]:
    """Captions, the best first, and the milliseconds of the forwards that the photo was in, with their photos."""
    return {
        "captions": [caption_as_json(caption) for caption in captioned.captions],
        "encoder_ms": round(captioned.encoder_ms, 1),
        "decoder_ms": round(captioned.decoder_ms, 1),
        "batch": captioned.batch,
    }


def caption_as_json(caption: Caption) -> dict[str, Any]:
    """A caption's text, score and probability (both of all its words), and of each word probability, map, rivals."""
    words = []
    for place, text in enumerate(caption.words):
        attention = None if caption.attention is None else caption.attention[place].round(4).tolist()
        probability = math.exp(caption.log_probabilities[place])
        rivals = [[rival, round(share, 4)] for rival, share in caption.rivals[place]] if caption.rivals else []
        words.append({"text": text, "probability": round(probability, 4), "attention": attention, "rivals": rivals})
    probability = math.exp(sum(caption.log_probabilities))
    return {"text": caption.text, "score": round(caption.score, 4), "probability": probability, "words": words}


def shown_photo(photo: Image.Image) -> dict[str, Any]:
    """The photo, small, as the page shows it."""
    shown = photo.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"photo": f"data:image/jpeg;base64,{data}", "width": shown.width, "height": shown.height}
