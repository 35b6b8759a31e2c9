"""Photos that are scaled while they are loaded: what the encoder sees, at a fraction of the work."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_gru_captioner.model import load_image


def jpeg(image, **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, **settings)
    return stream.getvalue()


@pytest.fixture
def big(make_photo):
    return make_photo(3, width=60, height=40).resize((2000, 1200), Image.Resampling.BICUBIC)


def test_a_big_jpeg_is_decoded_at_a_fraction_and_looks_the_same(big, monkeypatch):
    whole = np.asarray(load_image(jpeg(big)).resize((224, 224), Image.Resampling.BICUBIC), np.int16)
    seen = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *args, **settings: seen.append(self.size) or resize(self, *args, **settings)
    )
    scaled = load_image(jpeg(big), size=(224, 224))
    assert seen == [(1000, 600)]  # half: a quarter would have been less than twice the size
    assert scaled.size == (224, 224)
    assert np.abs(np.asarray(scaled, np.int16) - whole).mean() < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_scaled_upright(big, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(big, exif=exif)
    upright = load_image(content)
    expected = np.asarray(upright.resize((300, 100), Image.Resampling.BICUBIC), np.int16)
    found = load_image(content, size=(100, 300))
    assert found.size == (300, 100)
    assert np.abs(np.asarray(found, np.int16) - expected).mean() < 1


def test_a_photo_of_the_right_size_is_left_as_it_is(photo):
    found = load_image(photo, size=photo.size[::-1])
    assert found.tobytes() == photo.tobytes()


def test_the_processor_sees_what_transformers_alone_would_see(processor, make_photo):
    photos = [make_photo(seed, width=150 + seed, height=120) for seed in range(3)]
    found = processor(images=photos)["pixel_values"].numpy()
    expected = processor.image_processor(photos, return_tensors="pt")["pixel_values"].numpy()
    level = 1 / 255 / np.array(processor.image_processor.image_std)[:, None, None]
    assert (np.abs(found - expected) / level).max() < 1.01  # their rounding
    assert (np.abs(found - expected) / level).mean() < 0.05


def test_a_processor_of_other_rules_is_left_to_them(processor, make_photo):
    from transformers import CLIPImageProcessor

    from hf_gru_captioner import GRUCaptionerProcessor

    cropping = GRUCaptionerProcessor(
        CLIPImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 48, "width": 48}), processor.tokenizer
    )
    assert cropping.image_size is None
    photo = make_photo(width=200, height=100)
    expected = cropping.image_processor([photo], return_tensors="pt")["pixel_values"]
    assert cropping(images=photo)["pixel_values"].equal(expected)
