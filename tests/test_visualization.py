import numpy as np
import pytest
from PIL import Image

from hf_gru_captioner import draw_attention
from hf_gru_captioner.visualization import DARKEST, LABEL_HEIGHT, PANEL_HEIGHT


def test_the_region_a_word_looks_at_is_bright_and_the_rest_dark():
    white = Image.new("RGB", (PANEL_HEIGHT, PANEL_HEIGHT), "white")
    attention = np.zeros((1, 2, 2), np.float32)
    attention[0, 0, 1] = 1.0  # top right
    sheet = np.asarray(draw_attention(white, ["dog"], attention))
    assert sheet.shape == (PANEL_HEIGHT + LABEL_HEIGHT, 2 * PANEL_HEIGHT, 3)
    photo, lit = sheet[LABEL_HEIGHT:, :PANEL_HEIGHT], sheet[LABEL_HEIGHT:, PANEL_HEIGHT:]
    assert (photo == 255).all()
    assert (lit[5, -5] > 250).all()
    assert np.abs(lit[-5, 5].astype(int) - round(DARKEST * 255)).max() <= 1
    assert (sheet[:LABEL_HEIGHT, PANEL_HEIGHT:] < 128).any()  # the word is written above


def test_long_captions_take_more_rows():
    sheet = draw_attention(Image.new("RGB", (100, 50)), ["a"] * 7, np.ones((7, 3, 3)), max_columns=4)
    assert sheet.size == (4 * 2 * PANEL_HEIGHT, 2 * (PANEL_HEIGHT + LABEL_HEIGHT))


@pytest.mark.parametrize("attention", [None, np.ones((2, 3, 3))])
def test_one_map_per_word_is_needed(attention):
    with pytest.raises(ValueError, match="one map per word"):
        draw_attention(Image.new("RGB", (9, 9)), ["a", "dog", "runs"], attention)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
def test_panoramas_and_slivers_give_sheets_of_ordinary_size(size):
    sheet = draw_attention(Image.new("RGB", size), ["a"] * 3, np.ones((3, 3, 3)))
    assert 400 < sheet.width < 2000


def test_the_image_is_drawn_upright_and_over_white_as_the_model_sees_it():
    image = Image.new("RGBA", (100, 200), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 100, 100))  # red on top, transparent below
    image.getexif()[0x0112] = 6  # shown turned by 90 degrees
    sheet = np.asarray(draw_attention(image, [], np.ones((0, 1, 1))))
    assert sheet.shape == (PANEL_HEIGHT + LABEL_HEIGHT, 2 * PANEL_HEIGHT, 3)
    assert sheet[-20, -20].tolist() == [255, 0, 0]
    assert sheet[-20, 20].tolist() == [255, 255, 255]
