"""Photos that are scaled while they are loaded: what the encoder sees, at a fraction of the work."""

import io
import multiprocessing
import sys

import numpy as np
import pytest
from PIL import Image

from hf_gru_captioner.model import image_loading_gru_captioner, load_image


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


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 250)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255)
    if mode == "RGBA":
        image = image.convert("RGBA")
        image.putalpha(image.getchannel(0))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("size", [(96, 96), (50, 300), (2000, 33)])
def test_a_large_picture_made_rgb_strip_by_strip_is_the_one_made_at_once(big, monkeypatch, mode, size):
    monkeypatch.setattr(image_loading_gru_captioner, "STRIP", 50_000)
    image = in_mode(big.crop((0, 0, 1999, 1190)), mode)
    image.paste(200 if mode == "I" else image.getpixel((0, 0)), (0, 0, 1999, 400))  # strips unlike the whole
    if mode == "P":
        image.info["transparency"] = image.getpixel((0, 0))
    once = load_image(image).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=3.0)
    assert load_image(image, size=size).tobytes() == once.tobytes()


@pytest.fixture
def turns(monkeypatch):
    """How often a thread waited for its turn with a large image."""
    taken = []

    class Turn:
        def __enter__(self):
            taken.append(True)

        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(image_loading_gru_captioner, "_turn_of_the_large", Turn())
    monkeypatch.setattr(image_loading_gru_captioner, "LARGE", 1_000_000)
    return taken


def test_large_images_are_decoded_one_by_one(big, turns):
    png, small = io.BytesIO(), io.BytesIO()
    big.save(png, "PNG")
    big.resize((900, 900)).save(small, "PNG")
    load_image(jpeg(big), size=(224, 224))  # decoded at half its size
    load_image(small.getvalue(), size=(224, 224))
    assert turns == []
    load_image(png.getvalue(), size=(224, 224))
    load_image(jpeg(big))
    load_image(jpeg(big, progressive=True), size=(224, 224))
    assert turns == [True] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_a_process_that_is_forked_while_a_large_image_is_decoded_does_not_wait_for_it(big, monkeypatch):
    monkeypatch.setattr(image_loading_gru_captioner, "LARGE", 1_000_000)
    with image_loading_gru_captioner._turn_of_the_large:
        process = multiprocessing.get_context("fork").Process(target=load_image, args=(jpeg(big),))
        process.start()
        process.join(20)
        process.kill()
        assert process.exitcode == 0


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
