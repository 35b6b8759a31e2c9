"""Draws attention weights over the image, one panel per word."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .model.image_loading_gru_captioner import load_image

PANEL_HEIGHT = 200  # pixels
PANEL_WIDTHS = (120, 400)  # pixels; narrower or wider images are distorted to fit
LABEL_HEIGHT = 26  # pixels
DARKEST = 0.2  # brightness of a region without attention; the strongest region of a word has 1


def draw_attention(
    image: Image.Image, words: Sequence[str], attention: np.ndarray, max_columns: int = 6
) -> Image.Image:
    """Draws the image, then once per word with the attended regions highlighted.

    Args:
        image: The captioned image; drawn upright and over white, as the model sees it.
        words: Words of the caption.
        attention: `(words, rows, columns)`, as in `Caption.attention`.
        max_columns: Maximum number of panels per row.

    Raises:
        ValueError: The numbers of maps and words differ.
    """
    if attention is None or len(attention) != len(words):
        raise ValueError(
            f"draw_attention needs one map per word, found {0 if attention is None else len(attention)} maps for "
            f"{len(words)} words; a model with attention_type='none' has no maps."
        )
    image = load_image(image)
    width = int(np.clip(round(image.width * PANEL_HEIGHT / image.height), *PANEL_WIDTHS))
    image = image.resize((width, PANEL_HEIGHT), Image.Resampling.LANCZOS)
    panels = [("", image)] + [(word, _light(image, weights)) for word, weights in zip(words, attention, strict=True)]
    columns = min(max_columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * width, rows * (PANEL_HEIGHT + LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    for index, (word, panel) in enumerate(panels):
        left, top = index % columns * width, index // columns * (PANEL_HEIGHT + LABEL_HEIGHT)
        sheet.paste(panel, (left, top + LABEL_HEIGHT))
        draw.text((left + 4, top + 3), word, fill="black", font=font)
    return sheet


def _light(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """The image, with brightness proportional to each region's weight relative to the largest."""
    relative = np.round(weights / weights.max() * 255).astype(np.uint8)
    smooth = Image.fromarray(relative).resize(image.size, Image.Resampling.BICUBIC)
    brightness = DARKEST + (1 - DARKEST) * np.asarray(smooth, dtype=np.float32)[..., None] / 255  # (height, width, 1)
    return Image.fromarray(np.round(np.asarray(image) * brightness).astype(np.uint8))
