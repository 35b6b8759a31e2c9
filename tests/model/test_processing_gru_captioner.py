import copy
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from transformers import AutoProcessor, TimmWrapperConfig, ViTConfig, ViTImageProcessor

from hf_gru_captioner.model import GRUCaptionerProcessor, load_image


def encode(image, file_format, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def served_photo(photo, tmp_path):
    """The photo's URL on a loopback server, the photo, and a URL that doesn't exist."""
    (tmp_path / "photo.png").write_bytes(encode(photo, "PNG"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/photo.png"
    server.shutdown()
    server.server_close()


def test_every_kind_of_source_gives_the_same_image(photo, tmp_path, served_photo):
    path = tmp_path / "photo.png"
    array = np.asarray(photo)
    sources = {
        "path": str(path),
        "Path": path,
        "address": served_photo,
        "bytes": path.read_bytes(),
        "PIL": photo,
        "numpy": array,
        "numpy, channels first": array.transpose(2, 0, 1),
        "tensor": torch.from_numpy(array.copy()),
        "tensor, channels first": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "floats": array / 255,
        "16 bits": array.astype(np.uint16) * 257,
        "64-bit integers": array.astype(np.int64),
    }
    for kind, source in sources.items():
        assert np.array_equal(np.asarray(load_image(source)), array), kind


def test_an_address_may_have_spaces_and_any_letters(photo, tmp_path, served_photo):
    (tmp_path / "Löwe 1%2.png").write_bytes(encode(photo, "PNG"))
    for name in ("Löwe 1%252.png", "L%C3%B6we%201%252.png", "Löwe 1%252.png?größe=1 2#ä"):
        assert load_image(served_photo.replace("photo.png", name)).size == photo.size
    with pytest.raises(ValueError, match="can't be fetched"):
        load_image("http://ö..example/photo.png")


def test_sideways_photos_are_turned_upright(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown turned by 90 degrees
    turned = load_image(encode(photo, "PNG", exif=exif))
    assert turned.size == (photo.height, photo.width)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(photo), -1))


def test_transparent_parts_become_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (200, 0, 0, 51)  # a fifth opaque
    rgb = np.asarray(load_image(pixels))
    assert rgb[0, 0].tolist() == [10, 20, 30]
    assert rgb[0, 1].tolist() == [244, 204, 204]
    assert rgb[1].tolist() == [[255, 255, 255]] * 2


def test_palettes_with_a_transparent_color_become_white_there():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert np.asarray(load_image(encode(image, "PNG", transparency=0))).tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "RGBA", "F"])
def test_every_mode_becomes_rgb_that_looks_the_same(photo, mode):
    if mode == "F":
        image = Image.fromarray(np.asarray(photo.convert("L"), np.float32) / 255)
    elif mode == "LAB":
        image = Image.new("LAB", photo.size, (200, 128, 128))
    else:
        image = photo.convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    if mode in ("L", "LA", "F"):
        grey = np.asarray(photo.convert("L"), np.int16)
        assert np.abs(np.asarray(loaded, np.int16) - grey[..., None]).max() <= 1
    elif mode not in ("1", "P", "LAB"):
        assert np.abs(np.asarray(loaded, np.int16) - np.asarray(photo, np.int16)).mean() < 6


def test_16_bit_grey_keeps_its_tones_instead_of_turning_white(photo):
    grey = np.asarray(photo.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode.startswith("I")
    assert np.array_equal(np.asarray(load_image(encode(deep, "PNG")))[..., 0], grey)
    assert np.array_equal(np.asarray(load_image(encode(deep, "TIFF")))[..., 0], grey)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_stands_for_an_animation(file_format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    animation = Image.open(io.BytesIO(encode(frames[0], file_format, save_all=True, append_images=frames[1:])))
    assert animation.n_frames == 3
    red, green, blue = np.asarray(
        load_image(encode(frames[0], file_format, save_all=True, append_images=frames[1:])), np.int16
    )[4, 4]
    assert red > 250
    assert max(green, blue) < 5
    colors = [np.asarray(load_image(frame))[4, 4].argmax() for frame in ImageSequence.Iterator(animation)]
    assert colors == [0, 1, 2]  # of an open image the frame that it is at
    animation.seek(2)
    load_image(animation)
    assert animation.tell() == 2


def test_what_is_no_image_is_refused_by_name(photo, tmp_path, served_photo):
    text = tmp_path / "text.jpg"
    text.write_text("not a photo")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(encode(photo.resize((300, 300)), "JPEG")[:2000])
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such file"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"text\.jpg is not an image"):
        load_image(text)
    with pytest.raises(ValueError, match=r"torn\.jpg can't be read to its end"):
        load_image(torn)
    with pytest.raises(ValueError, match=r"empty\.png is not an image"):
        load_image(str(empty))
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match=r"nothing\.png can't be fetched: .*404"):
        load_image(served_photo.replace("photo.png", "nothing.png"))
    with pytest.raises(TypeError, match="found int"):
        load_image(3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4), 200.0), r"\[0, 1\], found 200 to 200"),
        (np.full((4, 4), np.nan), r"\[0, 1\], found nan"),
        (np.full((4, 4), -1), r"\[0, 255\], found -1"),
        (np.zeros((5, 4, 5), np.uint8), r"found \(5, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"found \(0, 4, 3\)"),
        (np.zeros(7, np.uint8), r"found \(7,\)"),
    ],
)
def test_arrays_that_could_mean_anything_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        load_image(array)


def test_photos_of_any_shape_are_squashed_to_the_square_whole(processor, make_photo):
    wide = make_photo(width=120, height=40)
    pixel_values = processor(images=wide).pixel_values
    assert pixel_values.shape == (1, 3, 96, 96)
    squashed = np.asarray(wide.resize((96, 96), Image.Resampling.BICUBIC), np.float32) / 255
    mean, std = (np.array(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    assert np.abs(pixel_values[0].permute(1, 2, 0).numpy() - (squashed - mean) / std).max() < 0.03


def test_one_image_a_list_and_a_batch_array_are_told_apart(processor, make_photo):
    photos = [make_photo(0), make_photo(1, width=33)]
    both = processor(images=photos).pixel_values
    assert torch.equal(processor(images=photos[1]).pixel_values[0], both[1])
    batch = np.stack([np.asarray(photos[0])] * 3)
    assert torch.equal(processor(images=batch).pixel_values[2], both[0])


def test_labels_end_with_the_end_token_and_never_begin_with_the_start_token(processor, tokenizer):
    labels = processor(text=["A dog runs .", "A brown dog runs through the grass ."]).labels
    assert (labels[:, 0] != tokenizer.bos_token_id).all()
    assert labels[0].tolist()[3:] == [tokenizer.eos_token_id] + [-100] * (labels.shape[1] - 4)
    assert labels[1, -1] == tokenizer.eos_token_id
    assert processor.batch_decode(labels) == ["a dog runs", "a brown dog runs through the grass"]
    assert processor.decode(labels[0]) == "a dog runs"


def test_images_and_captions_go_in_together(processor, photo):
    batch = processor(images=photo, text=["A dog", "Two children"])
    assert set(batch) == {"pixel_values", "labels", "decoder_input_ids"} == set(processor.model_input_names)
    with pytest.raises(ValueError, match="pass images, text"):
        processor()
    with pytest.raises(ValueError, match="return_tensors"):
        processor(images=photo, return_tensors="tf")


def test_a_call_takes_what_every_processor_of_transformers_takes(processor, photo, tokenizer):
    captions = ["A dog runs .", "A brown dog runs through the grass ."]
    expected = processor(images=[photo, photo], text=captions)
    for form in ("np", None):
        inputs = processor(images=[[photo], [photo]], text=captions, return_tensors=form, padding=True)
        assert np.array_equal(inputs.pixel_values, expected.pixel_values)
        assert np.array_equal(inputs.labels, expected.labels)
        assert np.array_equal(inputs.decoder_input_ids, expected.decoder_input_ids)
        assert isinstance(inputs.labels, np.ndarray if form else list)
    assert processor(text=captions, padding="max_length", max_length=12).labels.shape == (2, 12)
    cut = processor(text=captions[1], text_kwargs={"max_length": 4, "truncation": True}).labels
    assert cut.tolist() == [[*expected.labels[1, :3].tolist(), tokenizer.eos_token_id]]
    unended = processor(text=captions[0], add_special_tokens=False).labels
    assert unended.tolist() == [[*expected.labels[0, :3].tolist(), -100]]
    assert list(map(len, processor(text=captions, padding=False, return_tensors=None).labels)) == [4, 8]
    with pytest.raises(ValueError, match="pass padding=True or return_tensors=None"):
        processor(text=captions, padding=False)
    raw = processor(images=photo, do_rescale=False, do_normalize=False).pixel_values
    assert raw.max() > 1
    assert processor(images=photo, images_kwargs={"size": {"height": 32, "width": 48}}).pixel_values.shape[2:] == (
        32,
        48,
    )
    with pytest.raises(TypeError, match="no setting 'paddding'"):
        processor(text=captions, paddding=True)


def test_without_rescaling_floats_keep_their_range_as_in_transformers(processor, photo):
    levels = np.asarray(photo.resize((96, 96)))
    expected = processor(images=levels).pixel_values
    floats = levels.astype(np.float32).transpose(2, 0, 1) / 255  # as torchvision's ToTensor makes them
    for images in (floats, torch.from_numpy(floats), floats[None], [floats.astype(np.float64)]):
        torch.testing.assert_close(processor(images=images, do_rescale=False).pixel_values, expected)
    own = processor.image_processor(torch.from_numpy(floats), do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(expected, own, atol=1e-4, rtol=1e-4)
    raw = processor(images=floats, do_rescale=False, do_normalize=False).pixel_values
    np.testing.assert_allclose(raw[0], floats, atol=1e-6)
    raw = processor(images=photo, do_rescale=False, do_normalize=False).pixel_values
    assert raw.max() > 200  # of 8-bit images too
    with pytest.raises(ValueError, match="do_rescale=False needs images of one range"):
        processor(images=[floats, photo], do_rescale=False)


def test_a_size_is_also_a_side_or_height_and_width(processor, photo):
    square = processor(images=photo, size={"height": 32, "width": 32}).pixel_values
    assert torch.equal(processor(images=photo, size=32).pixel_values, square)
    assert torch.equal(processor(images=photo, size=(32, 32)).pixel_values, square)
    assert processor(images=photo, images_kwargs={"size": (32, 48)}).pixel_values.shape == (1, 3, 32, 48)


def test_a_beginning_without_an_end_token_keeps_its_last_word(processor, model, photo):
    ended = processor(text=["A brown dog", "A"])
    unended = processor(text=["A brown dog", "A"], add_special_tokens=False)
    assert torch.equal(unended.decoder_input_ids, ended.decoder_input_ids)
    end = processor.tokenizer.eos_token_id
    assert torch.equal(unended.labels, ended.labels.masked_fill(ended.labels == end, -100))
    assert model(**processor(images=photo, text="A brown dog", add_special_tokens=False)).loss.isfinite()
    assert processor(text="", add_special_tokens=False).decoder_input_ids.tolist() == [
        [processor.tokenizer.bos_token_id]
    ]


def test_captions_are_padded_and_cut_as_by_the_tokenizer(processor):
    captions = ["A dog runs .", "A brown dog runs through the grass .", ""]
    for settings in (
        {},
        {"padding": "longest", "padding_side": "left"},
        {"pad_to_multiple_of": 5},
        {"padding": "max_length", "max_length": 6},
        {"padding": "max_length", "max_length": 12, "truncation": False},
        {"max_length": 3, "truncation": "longest_first"},
        {"max_length": 3, "truncation": "do_not_truncate"},
    ):
        tokenizer = copy.deepcopy(processor.tokenizer)
        encoded = tokenizer(captions, **{"padding": True, "truncation": True, **settings}, return_tensors="pt")
        expected = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
        assert torch.equal(processor(text=captions, **settings).labels, expected), settings
    with pytest.raises(ValueError, match="PaddingStrategy"):
        processor(text=captions, padding="longst")
    with pytest.raises(ValueError, match="TruncationStrategy"):
        processor(text=captions, truncation="shortest")


def test_threads_share_a_processor(processor):
    """A fast tokenizer refuses to change its padding or truncation while another thread uses it."""
    processor = GRUCaptionerProcessor(processor.image_processor, copy.deepcopy(processor.tokenizer))
    settings = processor.tokenizer.backend_tokenizer
    settings.no_padding()
    settings.no_truncation()
    processor(text=["A dog runs", "A"], max_length=2)
    processor(text="A", padding="max_length")
    assert settings.padding is None
    assert settings.truncation is None


def test_a_setting_given_by_name_and_in_a_group_is_refused_where_one_would_be_lost(processor, photo):
    with pytest.raises(ValueError, match="do_rescale is given twice: pass it by name or in images_kwargs, not both"):
        processor(photo, do_rescale=True, images_kwargs={"do_rescale": False})
    with pytest.raises(ValueError, match="padding is given twice: pass it by name or in text_kwargs, not both"):
        processor(text="a dog", padding=True, text_kwargs={"padding": "do_not_pad"})
    both = processor(text="a dog", max_length=5, text_kwargs={"padding": "max_length"})
    assert both.labels.shape == (1, 5)  # different ones go together


def test_decoder_input_ids_are_the_beginning_that_the_model_itself_makes_of_the_labels(processor, model):
    inputs = processor(text=["A dog runs .", "A brown dog runs through the grass .", ""])
    expected = model.prepare_decoder_input_ids_from_labels(inputs.labels)
    bos, pad, eos = (getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos"))
    assert inputs.decoder_input_ids[2].tolist() == [bos] + [pad] * (expected.shape[1] - 1)
    assert torch.equal(inputs.decoder_input_ids, expected.masked_fill(expected == eos, pad))


def test_the_processor_survives_the_way_to_disk_and_back(processor, photo, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is GRUCaptionerProcessor
    before, after = (each(images=photo, text="A man's dog isn't red") for each in (processor, loaded))
    torch.testing.assert_close(before.pixel_values, after.pixel_values)  # transformers 5.0 loads it for another backend
    assert torch.equal(before.labels, after.labels)
    assert loaded.batch_decode(after.labels) == processor.batch_decode(before.labels)


def test_size_mean_and_deviation_come_from_a_timm_encoder(tokenizer, tmp_path):
    TimmWrapperConfig(
        architecture="test_efficientnet",
        pretrained_cfg={"input_size": [3, 260, 260], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
    ).save_pretrained(tmp_path)
    image_processor = GRUCaptionerProcessor.from_encoder_pretrained(tmp_path, tokenizer).image_processor
    assert list(image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert list(image_processor.image_std) == [0.2, 0.2, 0.1]
    assert (image_processor.size["height"], image_processor.size["width"]) == (260, 260)
    resized = GRUCaptionerProcessor.from_encoder_pretrained(tmp_path, tokenizer, image_size=128).image_processor
    assert resized.size["height"] == 128


def test_size_mean_and_deviation_come_from_a_transformers_encoder(tokenizer, tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 192, "width": 192}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    image_processor = GRUCaptionerProcessor.from_encoder_pretrained(str(tmp_path), tokenizer).image_processor
    assert list(image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert image_processor.size["height"] == 192


def test_paths_with_a_tilde_lead_home(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photo.save(tmp_path / "me.png")
    assert load_image("~/me.png").size == photo.size
    assert load_image(Path("~/me.png")).size == photo.size


def test_damaged_files_raise_nothing_but_value_errors(photo):
    """Bytes of small files are overwritten at random: each file is read, or refused with a ValueError."""
    random = np.random.default_rng(0)
    refused = 0
    for file_format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "DDS"):
        content = encode(photo, file_format)
        for _ in range(60):
            damaged = bytearray(content)
            for place in random.integers(len(content), size=8):
                damaged[place] = random.integers(256)
            try:
                assert load_image(bytes(damaged)).mode == "RGB"
            except ValueError:
                refused += 1
    assert refused > 50


def test_a_photo_with_a_damaged_exif_block_is_read(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8769] = {0x9286: b"x"}
    content = encode(photo, "JPEG", exif=exif)
    damaged = content.replace(b"Exif\x00\x00II*\x00", b"Exif\x00\x00II*\xff").replace(b"MM\x00*", b"MM\xff*")
    assert damaged != content
    assert load_image(damaged).size == photo.size


def test_dark_16_bit_photos_stay_dark():
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert np.asarray(load_image(dark)).max() == 0
    assert np.asarray(load_image(np.full((4, 4), 200, np.uint16))).max() == 0


def test_half_precision_tensors_are_images(photo):
    tensor = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)
    assert np.array_equal(np.asarray(load_image((tensor / 255).to(torch.float16).float())), np.asarray(photo))
    assert np.abs(np.asarray(load_image((tensor / 255).bfloat16()), np.int16) - np.asarray(photo, np.int16)).max() <= 2
    with pytest.raises(ValueError, match="holds numbers, found complex"):
        load_image(np.zeros((4, 4), complex))


def test_rows_of_different_lengths_are_decoded(processor):
    ids = processor(text=["A brown dog runs", "Two children"]).labels.tolist()
    assert processor.batch_decode([ids[0], ids[1][:3]]) == ["a brown dog runs", "two children"]


def test_nothing_to_process_is_refused(processor):
    with pytest.raises(ValueError, match="at least one image"):
        processor(images=[])
    with pytest.raises(ValueError, match="at least one caption"):
        processor(text=[])
