"""However a photo is passed in, the model sees it upright: rotated according to its file, exactly once."""

import base64
import csv
import io
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from transformers import pipeline

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.data import CaptionCollator, CaptionedImages, decode_images, load_captions, stream_captions
from hf_gru_captioner.inference.prefetch import caption_all
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import ServicePool, build_page
from hf_gru_captioner.web.uploads import uploads

pytestmark = pytest.mark.slow

ORIENTATIONS = range(1, 9)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
ORIENTATION = 0x0112  # EXIF's tag

# How stored pixels (H, W, C) are looked at, by orientation: table 5 of https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


def encode(image: Image.Image, file_format: str, orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    image.save(stream, file_format, exif=exif)
    return stream.getvalue()


def upright(image: Image.Image, file_format: str, orientation: int) -> Image.Image:
    """The file's upright pixels, computed without Pillow's handling of orientations."""
    with Image.open(io.BytesIO(encode(image, file_format))) as stored:
        return Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(stored.convert("RGB")))))


@pytest.fixture(scope="module")
def stored() -> Image.Image:
    """Pixels as stored by a camera; their eight orientations are all different."""
    y, x = np.mgrid[:64, :96]
    return Image.fromarray(np.stack((x * 255 // 95, y * 255 // 63, np.where(x + 2 * y < 60, 220, 20)), -1).astype("u1"))


@pytest.fixture(scope="module")
def cases():
    return list(itertools.product(FORMATS, ORIENTATIONS))


@pytest.fixture(scope="module")
def files(stored, cases, tmp_path_factory):
    """A training folder with a captioned file of each format and orientation."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number:02d}.{file_format.lower()}" for number, (file_format, _) in enumerate(cases)]
    for path, (file_format, orientation) in zip(paths, cases, strict=True):
        path.write_bytes(encode(stored, file_format, orientation))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *((path.name, "A dog runs .") for path in paths)])
    return paths


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    """A checkpoint whose captions distinguish the photo's eight orientations."""
    model = make_model(seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    model.generation_config.update(num_beams=1, max_new_tokens=9)
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def captioner(checkpoint):
    return Captioner.from_pretrained(checkpoint)


@pytest.fixture
def expected(captioner, stored, cases):
    """Captions of the upright photos, which differ from those of the photos as stored."""
    texts = [caption.text for caption in captioner([np.asarray(upright(stored, *case)) for case in cases])]
    as_stored = [caption.text for caption in captioner([upright(stored, file_format, 1) for file_format, _ in cases])]
    for (_, orientation), text, other in zip(cases, texts, as_stored, strict=True):
        assert (text == other) == (orientation == 1)
    return texts


def reopened(path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


PYTHON_DOORS = {
    "path": lambda captioner, files: captioner(files),
    "bytes": lambda captioner, files: captioner([path.read_bytes() for path in files]),
    "PIL image": lambda captioner, files: captioner([reopened(path) for path in files]),
    "PIL image that was decoded before": lambda captioner, files: captioner([reopened(path).copy() for path in files]),
    "array": lambda captioner, files: captioner([np.asarray(load_image(path)) for path in files]),
    "load_image of load_image": lambda captioner, files: captioner([load_image(load_image(path)) for path in files]),
    "captioner.load_image": lambda captioner, files: captioner([captioner.load_image(path) for path in files]),
    "many photos": lambda captioner, files: [each for (each,) in caption_all(captioner, files)],
}


@pytest.mark.parametrize("door", PYTHON_DOORS)
def test_python(captioner, files, expected, door):
    assert [caption.text for caption in PYTHON_DOORS[door](captioner, files)] == expected


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_the_command_caption_on_each_backend(checkpoint, files, expected, backend, capsys):
    if backend != "torch":
        assert main(["export", str(checkpoint)]) == 0
    capsys.readouterr()
    assert main(["caption", "--json", "--checkpoint", str(checkpoint), "--backend", backend, *map(str, files)]) == 0
    assert [json.loads(line)["caption"] for line in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
@pytest.mark.parametrize("source", [str, reopened], ids=["path", "PIL image"])
def test_pipelines(checkpoint, files, expected, task, source):
    captioner = pipeline(task, model=str(checkpoint), trust_remote_code=True, dtype="float32")
    settings = {"text": ""} if task == "image-text-to-text" else {}
    answers = [captioner(source(path), max_new_tokens=9, **settings) for path in files]
    assert [answer["generated_text"] for (answer,) in answers] == expected


GREEDY = ("shipped", "greedy", 1, 1, 1.0, 1.0, 1.0, 9, 0)  # the checkpoint and the fields of a Decoding


def base64_of(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def first(answer: str) -> str:
    return json.loads(answer)["captions"][0]["caption"]


def uploaded(path) -> str:
    """The file in the page's upload folder, the only place it reads from."""
    folder = uploads().folder / path.stem
    folder.mkdir(exist_ok=True)
    return str(shutil.copy(path, folder))


def sent(path) -> str:
    """The file as sent by the review grid."""
    return json.dumps({"photos": [{"name": path.name, "path": uploaded(path)}]})


def first_reviewed(answer: str) -> str:
    return json.loads(answer)["rows"][0]["captions"][0]


def last(answers):
    *_, answer = answers
    return answer


PAGE_DOORS = {
    "caption, base64": lambda page, path: page.caption(base64_of(path), *GREEDY[1:])["caption"],
    "caption, a file": lambda page, path: page.caption({"path": uploaded(path)}, *GREEDY[1:])["caption"],
    "caption_again": lambda page, path: first(page.caption_again(uploaded(path), "", *GREEDY)[0]),
    "caption_input, an address": lambda page, path: first(page.caption_input(None, path.as_uri(), *GREEDY)[0]),
    "caption_input, an image": lambda page, path: first(page.caption_input(uploaded(path), "", *GREEDY)[0]),
    "compare": lambda page, path: first(page.compare(uploaded(path), *GREEDY, *GREEDY)[1]),
    "caption_stream": lambda page, path: ["", *page.caption_stream(base64_of(path), max_words=9, no_repeat_ngram=0)][
        -1
    ],
    "caption_many": lambda page, path: last(page.caption_many([{"path": uploaded(path)}], *GREEDY[1:]))[0]["caption"],
    "caption_for_review": lambda page, path: first_reviewed(last(page.caption_for_review(sent(path), *GREEDY))),
}


@pytest.fixture
def page(captioner, monkeypatch):
    """The functions behind the page's events and endpoints, by name."""

    def fetch(address, limits):
        return Path(address.removeprefix("file://")).read_bytes()

    monkeypatch.setattr("hf_gru_captioner.web.handlers.fetch_image", fetch)
    pool = ServicePool(["shipped"], lambda name: captioner)
    yield {each.name: each.fn for each in build_page(pool, load_image).fns.values() if each.fn is not None}
    pool["shipped"].close()


@pytest.mark.parametrize("door", PAGE_DOORS)
def test_the_page(page, files, expected, door):
    assert [PAGE_DOORS[door](SimpleNamespace(**page), path) for path in files] == expected


def test_the_page_has_no_door_that_is_not_tested(page):
    assert page.keys() - {"save_review", "chosen"} == {door.split(",")[0] for door in PAGE_DOORS}


def captions_of_batches(captioner, rows) -> list[str]:
    batch = CaptionCollator(captioner.processor).images(list(rows))
    with torch.inference_mode():
        return [each.text for (each,) in captioner.decode(captioner.model.get_encoder()(batch["pixel_values"]))]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_rows(captioner, files, expected, split):
    texts = {path.name: text for path, text in zip(files, expected, strict=True)}
    rows = load_captions(files[0].parent, split)
    texts = [texts[name] for name in rows["image_id"]]
    photos = CaptionedImages(rows, augment=False)
    assert captions_of_batches(captioner, [photos[index] for index in range(len(photos))]) == texts
    assert captions_of_batches(captioner, stream_captions(files[0].parent, split)) == texts
    assert [caption.text for caption in captioner(decode_images(rows, range(len(rows))))] == texts


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_was_loaded_holds_its_pixels_alone(stored, file_format):
    """No tag, profile, transparency or frame is left that would act on it again."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    settings = {"exif": exif, "icc_profile": b"profile", "dpi": (300, 300)}
    image = stored
    if file_format == "PNG":
        image = stored.quantize(16)
        settings |= {"transparency": 0, "save_all": True, "append_images": [image.transpose(0)], "duration": 100}
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>')
    if file_format == "WEBP":
        settings |= {"save_all": True, "append_images": [stored.transpose(0)], "xmp": b'<x tiff:Orientation="8"/>'}
    stream = io.BytesIO()
    image.save(stream, file_format, **settings)
    for size in (None, (50, 40)):
        once = load_image(stream.getvalue(), size=size)
        assert (type(once), once.mode, once.info, dict(once.getexif())) == (Image.Image, "RGB", {}, {})
        assert once.size == (stored.size[::-1] if size is None else size[::-1])
        twice = load_image(once)
        assert twice.tobytes() == once.tobytes()
        saved = io.BytesIO()
        once.save(saved, file_format, **({"lossless": True} if file_format == "WEBP" else {}))
        if file_format != "JPEG":
            assert load_image(saved.getvalue()).tobytes() == once.tobytes()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_orientation_in_xmp_is_followed_once_too(stored, orientation):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>')
    stream = io.BytesIO()
    stored.save(stream, "PNG", pnginfo=info)
    expected = upright(stored, "PNG", orientation).tobytes()
    assert load_image(stream.getvalue()).tobytes() == expected
    assert load_image(load_image(stream.getvalue())).tobytes() == expected


def test_the_callers_image_is_left_as_it_is(stored):
    image = Image.open(io.BytesIO(encode(stored, "JPEG", 6)))
    assert load_image(image).tobytes() == load_image(image).tobytes()
    assert (image.size, image.getexif()[ORIENTATION]) == (stored.size, 6)
