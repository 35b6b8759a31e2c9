"""Photos that are scaled while they are loaded: what the encoder sees, at a fraction of the work.

The digests of pixels hold for every version of Pillow. To see it for another one than that of the environment:

    pip install --no-deps --target other 'pillow==13.*'
    PYTHONPATH=other python -m pytest tests/model/test_image_loading_gru_captioner.py
"""

import hashlib
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


@pytest.mark.parametrize(
    ("address", "encoded"),
    [
        ("http://a.example:80/b%20c.jpg?d=[e]&f=%C3%BC", "http://a.example:80/b%20c.jpg?d=[e]&f=%C3%BC"),
        (" https://Ö:ß@Bücher.example:80/b.jpg ", "https://%C3%96:%C3%9F@xn--bcher-kva.example:80/b.jpg"),
        ("http://a.example/ü b.jpg?q=ü b", "http://a.example/%C3%BC%20b.jpg?q=%C3%BC%20b"),
        ("http://[::1]/日.jpg", "http://[::1]/%E6%97%A5.jpg"),
        ("http://a.example/100%.jpg", "http://a.example/100%.jpg"),
    ],
)
def test_addresses_become_ascii_and_what_is_encoded_stays(address, encoded):
    ascii_url = image_loading_gru_captioner.ascii_url
    assert ascii_url(address) == ascii_url(encoded) == encoded


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
    assert seen[0] == (1000, 600)  # half: a quarter would have been less than twice the size
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


def drawn(width: int, height: int) -> Image.Image:
    """A picture that is identical everywhere, independent of libraries."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack((x * 7 ^ y * 3, x * y // 5, x * 2 + y * 11), axis=-1).astype(np.uint8))


PIXELS = {  # width and height of a picture: digest of what the shipped weights' encoder sees of it, scaled to 224 x 224
    (320, 480): "fea30a419c25486e",
    (240, 320): "eb8a92adfa31202d",
    (600, 800): "269e300a92b5a781",
    (1080, 1920): "d90274bf651d95d6",
    (1333, 2001): "55051b27a309c47d",
    (224, 500): "4011bacf120a7c46",
    (480, 320): "4f7a99691f329174",
    (500, 375): "26ab486eb6abfc7e",
    (1500, 1000): "3e880718f6f814de",
    (224, 224): "1e928c29462fedd5",
}


@pytest.fixture(params=["the installed Pillow's order", "height first"])
def order(request, monkeypatch):
    """With Pillow unchanged, and resizing the height before the width, like version 13 for tall pictures."""
    resize = Image.Image.resize

    def height_first(self, size, resample=None, box=None, reducing_gap=None):
        assert reducing_gap is None
        box = box or (0, 0, *self.size)
        self = resize(self, (self.width, size[1]), resample, (0, box[1], self.width, box[3]))
        return resize(self, size, resample, (box[0], 0, box[2], size[1]))

    if request.param == "height first":
        monkeypatch.setattr(Image.Image, "resize", height_first)


@pytest.mark.parametrize("size", PIXELS)
def test_the_encoder_sees_the_same_pixels_whatever_the_version_of_pillow(order, size):
    for source in (drawn(*size), np.asarray(drawn(*size))):
        pixels = load_image(source, size=(224, 224)).tobytes()
        assert hashlib.sha256(pixels).hexdigest()[:16] == PIXELS[size]


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX])
def test_the_width_is_scaled_first_by_every_filter(order, resample):
    for width, height in [(320, 480), (700, 1500)]:  # the second is reduced by whole numbers before
        across, down = max(1, int(width / 96 / 3)), max(1, int(height / 224 / 3))
        image = drawn(width, height)
        image = image.reduce((across, down)) if across * down > 1 else image
        image = image.resize((96, image.height), resample, (0, 0, width / across, image.height))
        expected = image.resize((96, 224), resample, (0, 0, 96, height / down))
        assert load_image(drawn(width, height), size=(224, 96), resample=resample).tobytes() == expected.tobytes()


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
    once = load_image(image)
    factors = [max(1, int(side / wanted / 3)) for side, wanted in zip(once.size, size[::-1], strict=True)]
    reduced = once.reduce(factors) if max(factors) > 1 else once
    part = [side / factor for side, factor in zip(once.size, factors, strict=True)]
    once = reduced.resize((size[1], reduced.height), Image.Resampling.BICUBIC, (0, 0, part[0], reduced.height))
    once = once.resize(size[::-1], Image.Resampling.BICUBIC, (0, 0, size[1], part[1]))
    assert load_image(image, size=size).tobytes() == once.tobytes()


@pytest.fixture
def turns(monkeypatch):
    """How often a thread waited for its turn with a large image."""
    taken = []

    class Turn:
        def __enter__(self):
            taken.append(True)

        __exit__ = lambda *_: None  # noqa: E731

    monkeypatch.setattr(image_loading_gru_captioner, "_large_image_lock", Turn())
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
    with image_loading_gru_captioner._large_image_lock:
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
