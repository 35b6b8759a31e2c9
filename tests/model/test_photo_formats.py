"""HEIC, JPEG XL and raw files, and images given as something other than a path."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_gru_captioner import Captioner
from hf_gru_captioner.model import image_loading_gru_captioner as image_loading
from hf_gru_captioner.model import load_image
from hf_gru_captioner.model.image_loading_gru_captioner import is_one_image, readable_suffixes, register_readers
from hf_gru_captioner.untrusted_images import Limits, RefusedError, open_image, photo_of, read_photo


@pytest.fixture
def halves() -> Image.Image:
    """Yellow on the left, blue on the right."""
    image = Image.new("RGB", (320, 240), "blue")
    image.paste("yellow", (0, 0, 160, 240))
    return image


@pytest.fixture
def files(halves, tmp_path, write_dng):
    """One file in each format that Pillow alone can't read."""
    register_readers()
    for name in ("a.heic", "a.jxl"):
        halves.save(tmp_path / name, quality=95)
    write_dng(tmp_path / "a.dng", Image.new("RGB", (16, 12), "red"), halves)
    return {path.suffix[1:]: path for path in tmp_path.iterdir()}


def colors(image: Image.Image) -> tuple[str, str]:
    """Colors of the upper left and the lower right corner."""
    pixels = np.asarray(image.resize((20, 20), Image.Resampling.BOX)).astype(int)
    names = {"yellow": (255, 255, 0), "blue": (0, 0, 255), "red": (255, 0, 0)}
    first, last = (
        min(names, key=lambda name, corner=corner: np.abs(corner - np.array(names[name])).sum())
        for corner in (pixels[1, 1], pixels[-2, -2])
    )
    return first, last


@pytest.mark.parametrize("kind", ["heic", "jxl", "dng"])
def test_formats_of_phones_and_cameras_are_read(files, kind):
    for source in (files[kind], files[kind].read_bytes(), io.BytesIO(files[kind].read_bytes())):
        image = load_image(source)
        assert image.size == (320, 240)
        assert colors(image) == ("yellow", "blue")
        assert load_image(source, size=(20, 30)).size == (30, 20)


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        (1, (320, 240), ("yellow", "blue")),
        (3, (320, 240), ("blue", "yellow")),
        (6, (240, 320), ("yellow", "blue")),
        (8, (240, 320), ("blue", "yellow")),
    ],
)
def test_the_preview_of_a_raw_file_is_turned_as_the_camera_was(
    halves, tmp_path, write_dng, orientation, size, expected
):
    write_dng(tmp_path / "a.dng", Image.new("RGB", (16, 12), "red"), halves, orientation)
    image = load_image(tmp_path / "a.dng")
    assert (image.size, colors(image)) == (size, expected)


def test_a_raw_file_with_a_thumbnail_alone_gives_that(tmp_path, write_dng):
    write_dng(tmp_path / "a.dng", Image.new("RGB", (16, 12), "red"), None)
    assert colors(load_image(tmp_path / "a.dng")) == ("red", "red")


def test_the_photo_of_a_heic_file_is_the_one_that_it_calls_so(halves, tmp_path):
    register_readers()
    import pillow_heif

    file = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red"))
    file.add_from_pillow(halves)
    file.save(tmp_path / "a.heic", primary_index=1)
    assert colors(load_image(tmp_path / "a.heic")) == ("yellow", "blue")


def test_a_photo_that_is_turned_in_heic_comes_upright(halves, tmp_path):
    register_readers()
    exif = Image.Exif()
    exif[0x0112] = 6
    halves.info["exif"] = exif.tobytes()  # which pillow-heif makes a turn of HEIF's own, as phones do
    halves.save(tmp_path / "a.heic")
    image = load_image(tmp_path / "a.heic")
    assert (image.size, colors(image)) == ((240, 320), ("yellow", "blue"))


def test_a_jpeg_xl_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    register_readers()
    stream = io.BytesIO()
    Image.new("L", (9000, 9000)).save(stream, "JXL", effort=1)
    assert len(stream.getvalue()) < 10_000
    decoded = []
    monkeypatch.setattr("pillow_jxl.JpegXLImagePlugin.Decoder", lambda **_: decoded.append(1))
    with pytest.raises(ValueError, match=r"far more than 50,000,000 pixels"):
        load_image(stream.getvalue())
    with pytest.raises(RefusedError, match="more than 50 million pixels"):
        open_image(stream.getvalue())
    assert decoded == []


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (256, 256), (300, 200), (512, 3), (1000, 2000), (160, 90), (17, 4000), (9000, 5)]
)
def test_the_size_in_a_jpeg_xl_header_is_read(size, container):
    register_readers()
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "JXL", use_container=container, effort=1)
    assert image_loading._size_of_jxl(stream.getvalue()) == size


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("heic", f"is a HEIC image: {image_loading.INSTALL_READERS} reads it."),
        ("jxl", f"is a JPEG XL image: {image_loading.INSTALL_READERS} reads it."),
        ("dng", f"is a camera's raw file: {image_loading.INSTALL_READERS} reads its preview."),
    ],
)
def test_without_their_readers_the_formats_are_named_with_what_to_install(files, kind, message, monkeypatch):
    monkeypatch.setattr(image_loading, "is_installed", lambda package: False)
    monkeypatch.setattr("hf_gru_captioner.untrusted_images.is_installed", lambda package: False)
    Image.init()  # else it would add its plugins to the list that is put aside below
    for name in ("HEIF", "JXL"):  # as in a process that has not read any
        monkeypatch.delitem(Image.OPEN, name)
    monkeypatch.setattr(Image, "ID", [each for each in Image.ID if each not in ("HEIF", "JXL")])
    with pytest.raises(ValueError, match=re.escape(f"{files[kind]} {message}")):
        load_image(files[kind])
    with pytest.raises(ValueError, match=re.escape(f"the image {message}")):
        load_image(files[kind].read_bytes())
    advice = f"can't read yet: save it as JPEG, or install what reads it ({image_loading.INSTALL_READERS})"
    with pytest.raises(RefusedError, match=re.escape(advice)):
        open_image(photo_of(files[kind].read_bytes()))
    assert f".{kind}" not in readable_suffixes()


def test_strangers_photos_are_read_and_raw_ones_in_another_process(files, monkeypatch):
    assert open_image(files["heic"].read_bytes()).size == (320, 240)
    assert open_image(files["jxl"].read_bytes()).size == (320, 240)
    monkeypatch.setattr(image_loading, "_preview", None)
    content = files["dng"].read_bytes()
    with pytest.raises(RefusedError, match="of which only the preview can be opened"):
        open_image(content)
    renamed = [files["dng"].with_suffix(suffix) for suffix in (".jpg", ".nef", ".NEF", "")]
    for path in renamed:
        path.write_bytes(content)
    for photo in (*map(read_photo, (files["dng"], *renamed)), photo_of(content)):
        assert open_image(photo).format == "JPEG"
        assert load_image(photo).size == (320, 240)
        assert colors(load_image(photo)) == ("yellow", "blue")
        assert photo_of(photo) is photo
    scan = files["dng"].with_suffix(".tif")  # which load_image takes for what it is called
    scan.write_bytes(content)
    assert load_image(read_photo(scan)).size == load_image(scan).size == (16, 12)


def test_a_raw_file_that_its_name_alone_tells_is_read_by_it(halves, tmp_path):
    """Its preview is a JPEG that LibRaw does not know."""
    halves.save(tmp_path / "a.crw", "JPEG")
    with pytest.raises(ValueError, match=r"a\.crw can't be read"):
        load_image(tmp_path / "a.crw")
    content = (tmp_path / "a.crw").read_bytes()
    for read in (lambda: read_photo(tmp_path / "a.crw"), lambda: photo_of(content, name="a.crw")):
        with pytest.raises(RefusedError, match="no preview that can be read, or it is damaged"):
            read()
    assert photo_of(content) is content


def test_raw_files_may_be_larger_than_other_photos(files):
    num_bytes = files["dng"].stat().st_size
    larger = Limits(image_bytes=num_bytes - 1, file_bytes=num_bytes)
    assert load_image(read_photo(files["dng"], larger)).size == (320, 240)
    assert load_image(photo_of(files["dng"].read_bytes(), larger, "A.DNG")).size == (320, 240)
    with pytest.raises(RefusedError, match="larger than 0 MB"):
        read_photo(files["dng"], Limits(file_bytes=num_bytes - 1))
    with pytest.raises(RefusedError, match="larger than 0 MB"):
        read_photo(files["dng"].rename(files["dng"].with_suffix(".jpg")), larger)


def test_a_damaged_file_of_each_format_is_refused_in_one_line(files, tmp_path):
    for kind, file in files.items():
        torn = tmp_path / f"torn.{kind}"
        torn.write_bytes(file.read_bytes()[:60])
        with pytest.raises(ValueError, match=r"torn\.\w+ (can't be read|is a .* that can't be read)") as caught:
            load_image(torn)
        assert "\n" not in str(caught.value)


@pytest.fixture
def encoded(photo) -> bytes:
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    return stream.getvalue()


def sources_of(encoded: bytes, path: Path) -> list:
    """The same photo as every kind of source."""
    path.write_bytes(encoded)
    return [
        path,
        str(path),
        encoded,
        bytearray(encoded),
        memoryview(encoded),
        io.BytesIO(encoded),
        {"bytes": encoded, "path": None},
        {"bytes": encoded},
        {"bytes": None, "path": str(path)},
        f"data:image/png;base64,{base64.b64encode(encoded).decode()}",
    ]


def test_a_photo_is_taken_in_whatever_it_comes(encoded, photo, tmp_path):
    for source in sources_of(encoded, tmp_path / "a.png"):
        assert is_one_image(source)
        assert np.array_equal(load_image(source), photo), source
    with (tmp_path / "a.png").open("rb") as file:
        assert np.array_equal(load_image(file), photo)
        assert np.array_equal(load_image(file), photo)  # again, from its beginning


def test_a_captioner_takes_all_of_them_one_by_one_and_in_a_list(encoded, photo, tmp_path, checkpoint):
    captioner = Captioner.from_pretrained(checkpoint)
    sources = sources_of(encoded, tmp_path / "a.png")
    expected = captioner(photo).text
    assert [caption.text for caption in captioner(sources)] == [expected] * len(sources)
    assert [captioner(source).text for source in sources] == [expected] * len(sources)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (3, TypeError, "found int."),
        (None, TypeError, "found NoneType."),
        ({"image": 1}, TypeError, 'a dict of an image has "bytes" or "path", found neither.'),
        ({"bytes": 7}, TypeError, "found int."),
        (io.StringIO("x"), TypeError, 'opened with "rb", found one that reads str.'),
        (io.BytesIO(b"no photo"), ValueError, "the image is not an image of a known format."),
        ("data:image/png;base64,AAAA", ValueError, "the data: URI is not an image of a known format."),
        ("data:image/png;base64", ValueError, "the data: URI can't be decoded: no comma before its data."),
        ("x" * 9000, ValueError, "can't be read: File name too long."),
    ],
)
def test_what_is_no_photo_is_named_in_a_short_line(source, error, message):
    with pytest.raises(error) as caught:
        load_image(source)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 310
