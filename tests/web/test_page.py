"""The page as people have it: in a browser, with a real model."""

import base64
import http.client
import io
import itertools
import json
import struct
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

import pytest
from datasets import load_dataset
from gradio_client import Client, handle_file
from PIL import ExifTags, Image

from hf_gru_captioner import Captioner
from hf_gru_captioner.hub import demo_folder
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web.handlers import shown_size

EXAMPLES = demo_folder() / "examples"
DOGS = EXAMPLES / "dogs_lawn.jpg"
KITTEN = EXAMPLES / "kitten.jpg"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected():
    captioner = Captioner.from_pretrained()
    return {path: captioner(path).text for path in (DOGS, KITTEN)}


def upload(page, photo, where="#photo"):
    page.set_input_files(f"{where} input[type=file]", photo)


def caption_of(page, viewer="#viewer"):
    page.wait_for_selector(f"{viewer} [data-word]")
    return " ".join(page.locator(f"{viewer} [data-word]").all_inner_texts())


def wait_for_caption(page, text, viewer="#viewer"):
    page.wait_for_function(
        "([viewer, text]) => document.querySelector(`${viewer} [data-part=said]`)?.textContent === text",
        arg=[viewer, text],
    )


def bright_pixels(page):
    """Share of the photo that the attention leaves bright."""
    return page.evaluate(
        """() => {
            const canvas = document.querySelector('#viewer [data-part=attention]');
            const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            let bright = 0;
            for (let place = 3; place < data.length; place += 4) bright += data[place] < 100;
            return 4 * bright / data.length;
        }"""
    )


def test_a_photo_is_captioned_and_its_words_show_where_the_model_looked(visit, expected, look):
    page = visit()
    upload(page, DOGS)
    assert caption_of(page) == expected[DOGS]
    assert page.locator("#viewer [data-caption]").count() == 3
    assert bright_pixels(page) == 1
    page.click('#viewer [data-word="1"]')
    assert 0 < bright_pixels(page) < 0.9
    assert page.locator("#viewer .alternatives li").count() == 5
    look(page)
    page.locator("#viewer [data-part=strength]").fill("0")
    assert bright_pixels(page) == 1
    page.locator("#viewer [data-part=strength]").fill("100")
    assert bright_pixels(page) < 0.9
    page.keyboard.press("Tab")
    page.click("#viewer [data-part=play]")
    page.wait_for_selector('#viewer [data-word="2"][aria-pressed=true]')
    with page.expect_download() as download:
        page.click("#viewer [data-part=download]")
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_another_caption_can_be_looked_into_and_copied(visit, expected):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    upload(page, DOGS)
    caption_of(page)
    page.click('#viewer [data-caption="1"]')
    other = page.locator('#viewer [data-caption="1"] span').first.inner_text()
    assert caption_of(page) == other != expected[DOGS]
    for part, text in (("copy-text", other), ("copy-alt", f'<img src="" alt="{other}">')):
        page.click(f"#viewer [data-part={part}]")
        page.wait_for_timeout(100)
        assert page.evaluate("navigator.clipboard.readText()") == text
    page.click("#viewer [data-part=copy-json]")
    page.wait_for_timeout(100)
    captions = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert [caption["text"] for caption in captions][:2] == [expected[DOGS], other]


def test_the_keyboard_goes_from_word_to_word(visit):
    page = visit()
    upload(page, DOGS)
    caption_of(page)
    page.focus('#viewer [data-word="0"]')
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.word") == "2"
    assert page.get_attribute('#viewer [data-word="2"]', "aria-pressed") == "true"
    assert page.locator("#viewer [role=status]").inner_text()
    assert page.locator("#viewer [data-part=photo]").get_attribute("alt") == caption_of(page)


def test_the_search_is_chosen_and_the_caption_follows(visit):
    page = visit()
    upload(page, DOGS)
    caption_of(page)
    page.get_by_text("How it writes").first.click()
    page.get_by_label("greedy").first.check()
    greedy = Captioner.from_pretrained()(DOGS, num_beams=1, length_penalty=1.0).text
    wait_for_caption(page, greedy)
    assert page.locator("#viewer [data-caption]").count() == 1


def test_an_example_is_captioned_by_a_click(visit):
    page = visit()
    page.locator("img[src*=kitten]").first.click()
    assert caption_of(page)


def test_two_ways_are_compared_on_one_photo(visit, expected, look):
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    upload(page, DOGS, "#compared")
    assert caption_of(page, "#viewer-left") == expected[DOGS]
    greedy = Captioner.from_pretrained()(DOGS, num_beams=1, length_penalty=1.0).text
    assert caption_of(page, "#viewer-right") == greedy
    look(page)


def test_many_photos_become_tables_that_datasets_reads(visit, expected, look, tmp_path):
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(KITTEN, "inside/kitten.jpg")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.locator('input[type=file][accept*="zip"]').set_input_files([DOGS, archive, bad])
    page.get_by_text("more", exact=True).first.wait_for()
    page.click("#start")
    page.get_by_text("bad.jpg: This is not a picture").wait_for()
    page.wait_for_selector("#gallery img")
    page.get_by_text(expected[KITTEN]).first.wait_for()
    look(page)
    page.click("#save")
    page.wait_for_selector("#saved a[download]")
    folder = tmp_path / "set"
    folder.mkdir()
    for link in page.locator("#saved a[download]").all():
        with page.expect_download() as download:
            link.click()
        download.value.save_as(folder / download.value.suggested_filename)
    assert {path.name for path in folder.iterdir()} == {"captions.csv", "captions.jsonl", "metadata.jsonl"}
    (folder / "captions.csv").unlink()
    (folder / "captions.jsonl").unlink()
    (folder / "dogs_lawn.jpg").write_bytes(DOGS.read_bytes())
    (folder / "kitten.jpg").write_bytes(KITTEN.read_bytes())
    text = (folder / "metadata.jsonl").read_text().replace("inside/kitten.jpg", "kitten.jpg")
    (folder / "metadata.jsonl").write_text(text)
    rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["caption"]) == sorted(expected.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(visit, look, scheme):
    page = visit("?__theme=" + scheme, viewport={"width": 390, "height": 844}, color_scheme=scheme, is_mobile=True)
    upload(page, KITTEN)
    caption_of(page)
    page.click('#viewer [data-word="1"]')
    look(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(each) for each in background.strip("rgba()").split(",")[:3]) / 765
    assert (brightness < 0.3) == (scheme == "dark")


def huge_png() -> bytes:
    """10,000 x 10,000 pixels in 100 kB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(10_000 // 8)
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * 10_000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("torn.jpg", DOGS.read_bytes()[:9000], "can't be read to its end"),
        ("text.jpg", b"hello", "not a picture"),
        ("huge.png", huge_png(), "million pixels"),
    ],
)
def test_what_can_not_be_captioned_is_said_in_a_sentence(visit, look, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    page = visit()
    upload(page, tmp_path / name)
    toast = page.get_by_text(said)
    toast.wait_for()
    assert str(tmp_path) not in page.content()
    assert "Traceback" not in page.content()
    upload_after_error(page)


def upload_after_error(page):
    """The page goes on."""
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    upload(page, KITTEN)
    assert caption_of(page)


def test_an_address_that_is_not_public_is_refused(visit):
    page = visit()
    page.locator("#address textarea, #address input").first.fill("http://127.0.0.1/photo.jpg")
    page.click("#fetch")
    page.get_by_text("not on the public web").wait_for()


def test_the_button_captions_what_is_there(visit, expected):
    page = visit()
    page.click("#fetch")
    page.get_by_text("Choose a photo first, or give its web address.").wait_for()
    page.locator("#address textarea, #address input").first.fill("http://127.0.0.1/photo.jpg")
    upload(page, DOGS)
    assert caption_of(page) == expected[DOGS]
    assert page.locator("#address textarea, #address input").first.input_value() == ""  # the photo came after it
    page.evaluate("document.querySelector('#viewer [data-part=said]').textContent = ''")
    page.click("#fetch")
    wait_for_caption(page, expected[DOGS])
    assert page.get_by_text("An address begins with").count() == 0


def test_two_visitors_have_their_own_captions(visit, expected):
    first, second = visit(), visit()
    upload(first, DOGS)
    upload(second, KITTEN)
    assert (caption_of(first), caption_of(second)) == (expected[DOGS], expected[KITTEN])


def test_programs_caption_with_the_client(address, expected):
    client = Client(address, verbose=False)
    photo = base64.b64encode(DOGS.read_bytes()).decode()
    answer = client.predict(photo, num_captions=2, api_name="/caption")
    assert answer["captions"][0]["text"] == expected[DOGS]
    assert len(answer["captions"]) == 2
    assert [word["text"] for word in answer["captions"][0]["words"]] == expected[DOGS].split()
    uploaded = client.predict(handle_file(DOGS), api_name="/caption_photo")
    assert json.loads(uploaded)["captions"][0]["text"] == expected[DOGS]
    growing = list(client.submit(photo, api_name="/stream"))
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(growing))
    assert growing[-1] == Captioner.from_pretrained()(DOGS, num_beams=1, length_penalty=1.0, max_new_tokens=24).text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"photo": "nothing"}, "base64"),
        ({"photo": 7}, "base64"),
        ({"photo": "/etc/passwd"}, "base64"),
        ({"photo": {"path": "/etc/passwd"}}, "is not here"),
        ({"photo": "http://169.254.169.254/latest"}, "not on the public web"),
        ({"num_beams": 10**9}, "num_beams is a whole number from 1 to 10"),
        ({"num_captions": "many"}, "num_captions is a whole number"),
        ({"strategy": "magic"}, "strategy is one of beam"),
        ({"checkpoint": "/etc"}, "no such checkpoint"),
    ],
)
def test_programs_are_refused_in_a_sentence(address, arguments, said):
    client = Client(address, verbose=False)
    photo = base64.b64encode(KITTEN.read_bytes()).decode()
    with pytest.raises(Exception, match=said):
        client.predict(**{"photo": photo, **arguments}, api_name="/caption")


def test_the_lines_for_programs_run_as_they_stand(address, expected, tmp_path):
    """The shell and Python lines of docs/demo.md, at this page's address."""
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text().replace("http://127.0.0.1:7860/", address)
    blocks = [block.partition("\n") for block in text.split("```")[1::2]]
    shell = next(code for language, _, code in blocks if language == "bash" and "curl" in code)
    python = next(code for language, _, code in blocks if language == "python")
    (tmp_path / "photo.jpg").write_bytes(DOGS.read_bytes())
    for command in (["bash", "-c", shell], [sys.executable, "-c", python]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert expected[DOGS] in done.stdout, done.stderr


def test_what_the_page_serves_is_no_file_of_the_machine(address):
    for path in ("gradio_api/file=/etc/passwd", "gradio_api/file=../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(address + path)


def test_a_blank_picture_gets_a_caption_too(visit):
    buffer = io.BytesIO()

    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    page = visit()
    page.set_input_files(
        "#photo input[type=file]", {"name": "dot.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    assert caption_of(page)


def test_a_request_that_says_it_is_huge_is_refused_before_it_is_sent(address):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=20)
    connection.putrequest("POST", "/gradio_api/call/caption")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, response.read()) == (413, b"This request is too large.")


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_shown_upright_at_its_own_shape(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (1600, 400)).save(buffer, kind, exif=exif)
    width, height = load_image(buffer.getvalue()).size
    shown = shown_size(Image.open(buffer), 640)
    assert shown == ((160, 640) if width > height else (640, 160))
    assert shown_size(Image.new("RGB", (300, 1)), 640) == (1, 300)  # never larger than it is
    assert shown_size(Image.new("RGB", (30_000, 1)), 640) == (1, 640)
