"""The page as users see it: in a browser, with a real model."""

import base64
import http.client
import io
import itertools
import json
import math
import re
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
from axe_playwright_python.sync_playwright import Axe
from datasets import load_dataset
from gradio_client import Client, handle_file
from PIL import ExifTags, Image

from hf_gru_captioner import Captioner
from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT
from hf_gru_captioner.data import load_captions
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


def pictures(page):
    """How often the photo is visible, apart from the examples."""
    return page.locator(".photo-tab img:visible").count() - page.locator("#examples img:visible").count()


def refusal_of(page, viewer="#viewer"):
    page.wait_for_selector(f"{viewer} [role=alert]:not([hidden])")
    return page.locator(f"{viewer} [role=alert]").inner_text()


def address_field(page):
    return page.locator("#address textarea, #address input").first


def bright_pixels(page):
    """Share of the photo that is bright in the attention map."""
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
    assert page.locator("#viewer [data-caption] .share").all_inner_texts() == [
        f"{100 * math.exp(sum(each.log_probabilities) / len(each.words)):.0f} % per word"
        for each in Captioner.from_pretrained()(DOGS, num_captions=3)
    ]
    assert bright_pixels(page) == 1
    page.click('#viewer [data-word="1"]')
    assert 0 < bright_pixels(page) < 0.9
    assert page.locator("#viewer .alternatives li").count() == 5
    assert pictures(page) == 1
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
    assert page.get_attribute("#viewer [data-part=photo]", "alt") == other
    for part, text in (("copy-text", other), ("copy-alt", f'<img src="" alt="{other}">')):
        page.click(f"#viewer [data-part={part}]")
        page.wait_for_timeout(100)
        assert page.evaluate("navigator.clipboard.readText()") == text
    page.click("#viewer [data-part=copy-json]")
    page.wait_for_timeout(100)
    captions = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert [caption["caption"] for caption in captions][:2] == [expected[DOGS], other]


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
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Greedy").first.check()
    greedy = Captioner.from_pretrained()(DOGS, num_beams=1, length_penalty=1.0).text
    wait_for_caption(page, greedy)
    assert page.locator("#viewer [data-caption]").count() == 1


def test_an_example_has_a_name_and_is_captioned_by_a_click(visit, expected):
    page = visit()
    box = page.get_by_text("kitten", exact=True).bounding_box()
    assert box["y"] + box["height"] < 900  # no need to scroll
    settings = page.get_by_role("button", name="Settings").bounding_box()
    assert settings["y"] < box["y"] + box["height"] + 60  # right below
    page.locator("#examples button", has_text="kitten").click()
    assert caption_of(page) == expected[KITTEN]
    page.locator("#examples button", has_text="dogs lawn").click()
    wait_for_caption(page, expected[DOGS])


def test_the_page_says_what_the_model_knows_and_its_terms(visit):
    said = visit().locator("#about").inner_text()
    config = json.loads((SHIPPED_CHECKPOINT / "config.json").read_text())
    assert config["license"] in said
    assert f"{config['vocab_size'] - 4:,} words" in said
    assert "Flickr8k" in said


GIVE = """([how, name, content]) => {
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
    data.items.add(new File([bytes], name, {type: name.endsWith('jpg') ? 'image/jpeg' : ''}));
    const settings = {bubbles: true, cancelable: true};
    const give = (event) => document.body.dispatchEvent(event);
    if (how === 'paste') return give(new ClipboardEvent('paste', {...settings, clipboardData: data}));
    for (const kind of ['dragover', 'drop']) give(new DragEvent(kind, {...settings, dataTransfer: data}));
}"""


@pytest.fixture
def raw(tmp_path, write_dng):
    """A camera's raw file whose preview is a photo of a kitten; its caption."""
    with Image.open(KITTEN) as preview:
        write_dng(tmp_path / "DSC_1.NEF", Image.new("RGB", (16, 12), "red"), preview)
    return tmp_path / "DSC_1.NEF", Captioner.from_pretrained()(tmp_path / "DSC_1.NEF").text


def test_a_raw_file_is_captioned_by_its_preview_however_it_comes(visit, raw):
    """Browsers have no media type for it."""
    path, expected = raw
    content = path.read_bytes()
    page = visit()
    page.wait_for_selector("body[data-takes]")
    with page.expect_file_chooser() as chooser:
        page.locator("#photo button", has_text="Choose a photo").first.click()
    assert ".nef" in page.get_attribute("#photo input[type=file]", "accept").split(",")
    chooser.value.set_files({"name": path.name, "mimeType": "", "buffer": content})
    wait_for_caption(page, expected)
    assert pictures(page) == 1
    assert page.locator("#viewer [data-part=photo]").evaluate("(photo) => photo.naturalWidth") > 100
    page = visit()
    page.wait_for_selector("body[data-takes]")
    page.evaluate(GIVE, ["drop", path.name, base64.b64encode(content).decode()])
    wait_for_caption(page, expected)
    page.get_by_role("tab", name="Many photos").click()
    archive = path.with_name("more.zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(path, "card/DSC_2.NEF")
    page.set_input_files("#review [data-part=files]", [path, archive])
    page.get_by_text("0 of 2 accepted").wait_for()
    assert texts_of(cards(page)) == [expected] * 2
    assert sorted(names_of(cards(page))) == ["DSC_1.NEF", "card/DSC_2.NEF"]


def test_programs_caption_raw_files(address, raw):
    path, expected = raw
    client = Client(address, verbose=False)
    for photo in (handle_file(path), base64.b64encode(path.read_bytes()).decode()):
        assert client.predict(photo, api_name="/caption")["caption"] == expected
    (answer,) = client.predict([handle_file(path)], api_name="/caption_many")
    assert (answer["file_name"], answer["caption"]) == (path.name, expected)
    growing = client.predict(handle_file(path), strategy="greedy", api_name="/caption_stream")
    assert growing


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted_anywhere_once_and_again(visit, expected, how):
    page = visit()
    page.wait_for_selector("body[data-takes]")
    for path in (DOGS, KITTEN):
        page.evaluate(GIVE, [how, path.name, base64.b64encode(path.read_bytes()).decode()])
        wait_for_caption(page, expected[path])
        assert pictures(page) == 1


def test_two_ways_are_named_and_compared_on_one_photo(visit, expected, look):
    page = visit()
    page.get_by_role("tab", name="Compare").click()
    upload(page, DOGS, "#compared")
    assert caption_of(page, "#viewer-left") == expected[DOGS]
    assert caption_of(page, "#viewer-right") == expected[DOGS]
    assert page.locator("#viewer-left .title").inner_text() == "Left: shipped, beam search with 5 beams"
    said = page.locator("#viewer-right .title").inner_text()
    assert said == "Right: again, beam search with 5 beams (the same caption)"
    look(page)


@pytest.fixture
def reviewed(visit, tmp_path):
    """A page with four photos under review, three of them in folders, and three rejected files."""
    folder = tmp_path / "set"
    (folder / "inside").mkdir(parents=True)
    archive = folder / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(KITTEN, "album/cats/kitten.jpg")
        file.write(DOGS, "album/dogs.jpg")
        file.writestr("album/notes.txt", "text")
    (folder / "inside" / "bad.jpg").write_bytes(b"not a picture")
    (folder / "inside" / "horse.jpg").write_bytes((EXAMPLES / "horse_mountain.jpg").read_bytes())
    (folder / "field.jpg").write_bytes((EXAMPLES / "horses_field.jpg").read_bytes())
    (folder / "inside" / "notes.doc").write_bytes(b"text")
    (folder / ".hidden").write_bytes(b"")
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=folder]", folder)
    page.get_by_text("0 of 4 accepted").wait_for()
    return page


def cards(page, state="visible"):
    return page.locator(f"#review .card:{state}")


def names_of(cards):
    return cards.locator(".name").all_text_contents()  # inner texts are empty of what is not painted yet


def texts_of(cards):
    return [each.input_value() for each in cards.locator("textarea").all()]


def saved_by(page, kind):
    with page.expect_download() as download:
        page.click(f"#review [data-save={kind}]")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_many_photos_are_reviewed_by_the_keyboard_least_certain_first(reviewed, expected, look):
    page, captioner = reviewed, Captioner.from_pretrained()
    names = {
        "album/cats/kitten.jpg": KITTEN,
        "album/dogs.jpg": DOGS,
        "inside/horse.jpg": EXAMPLES / "horse_mountain.jpg",
        "field.jpg": EXAMPLES / "horses_field.jpg",
    }
    captions = {name: captioner(path) for name, path in names.items()}
    certainty = {name: sum(each.log_probabilities) / len(each.words) for name, each in captions.items()}
    order = sorted(names, key=certainty.get)
    assert names_of(cards(page)) == order
    assert texts_of(cards(page)) == [captions[name].text for name in order]
    box = cards(page).first.bounding_box()
    assert box["y"] < 500  # in view
    assert len({button.bounding_box()["y"] for button in page.locator("#review [data-save]").all()}) == 1  # in line
    left = page.locator("#review [data-part=left-list] li").all_text_contents()
    assert sorted(each.split(":")[0] for each in left) == [
        "album/notes.txt",
        "inside/bad.jpg",
        "inside/notes.doc",
    ]
    cards(page).first.focus()
    page.keyboard.press("Enter")  # accepted, and on to the second
    page.get_by_text("1 of 4 accepted").wait_for()
    second = cards(page).nth(1)
    other = second.locator(".instead button").first.inner_text()
    page.keyboard.press("1")
    assert second.locator("textarea").input_value() == other
    assert second.locator(".instead button").first.inner_text() == captions[order[1]].text
    page.keyboard.press("ArrowDown")
    page.keyboard.press("e")
    page.keyboard.press("Control+A")
    page.keyboard.type("e1: a horse")  # in a text these are no commands
    page.keyboard.press("Enter")
    page.get_by_text("2 of 4 accepted").wait_for()
    assert texts_of(cards(page))[2] == "e1: a horse"
    look(page)
    page.select_option("#review [data-part=which]", "changed")
    assert names_of(cards(page)) == order[1:3]
    page.select_option("#review [data-part=which]", "open")
    assert names_of(cards(page)) == [order[1], order[3]]
    page.select_option("#review [data-part=which]", "all")
    page.locator("#review [data-part=filter]").fill("E1:")
    assert names_of(cards(page)) == [order[2]]
    page.locator("#review [data-part=filter]").fill("")
    page.select_option("#review [data-part=order]", "name")
    assert names_of(cards(page)) == sorted(names)


def uploads_of(page) -> list[bytes]:
    """Names of the files that a page sends from now on."""
    names: list[bytes] = []

    def note(route):
        names.extend(re.findall(rb'filename="([^"]+)"', route.request.post_data_buffer or b""))
        route.continue_()

    page.route("**/gradio_api/upload*", note)
    return names


def left_out_of(page) -> list[str]:
    return page.locator("#review [data-part=left-list] li").all_text_contents()


def test_only_what_the_server_reads_is_sent_to_it(visit, tmp_path, look):
    folder = tmp_path / "trip"
    (folder / "clips").mkdir(parents=True)
    for number in range(8):
        (folder / "clips" / f"{number}.mov").write_bytes(b"film")
    for name in ("notes.txt", ".hidden.jpg", "Thumbs.db"):
        (folder / name).write_bytes(b"text")
    (folder / "kitten.JPG").write_bytes(KITTEN.read_bytes())
    with zipfile.ZipFile(folder / "more.zip", "w") as file:
        file.write(DOGS, "dogs.jpg")
    page = visit()
    sent = uploads_of(page)
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=folder]", folder)
    page.get_by_text("0 of 2 accepted").wait_for()
    assert sorted(names_of(cards(page))) == ["dogs.jpg", "kitten.JPG"]
    assert sorted(sent) == [b"trip/kitten.JPG", b"trip/more.zip"]
    (said,) = left_out_of(page)
    assert said == (
        "clips/0.mov, clips/1.mov, clips/2.mov, clips/3.mov, clips/4.mov and 4 more: "
        "This is neither a picture nor a ZIP archive, by the ending of its name."
    )
    assert page.locator("#review [data-part=left-count]").inner_text() == "9 files left out"
    page.click("#review [data-part=left-count]")
    look(page)


def test_photos_beyond_the_most_at_once_are_not_sent_and_that_is_said(visit, tmp_path):
    for number in (10, 9, 1):
        (tmp_path / f"{number}.jpg").write_bytes(KITTEN.read_bytes())
    page = visit()
    page.route(
        "**/", lambda route: route.fulfill(body=route.fetch().text().replace("MAX_PHOTOS = 500", "MAX_PHOTOS = 2"))
    )
    page.reload()
    page.get_by_role("tab", name="Many photos").click()
    sent = uploads_of(page)
    page.set_input_files("#review [data-part=files]", sorted(tmp_path.glob("*.jpg")))
    page.get_by_text("0 of 2 accepted").wait_for()
    assert sorted(sent) == [b"1.jpg", b"9.jpg"]
    assert left_out_of(page) == ["10.jpg: Only 2 photos are captioned at once."]
    assert refusal_of(page, "#review") == (
        "Only 2 photos are captioned at once: the first by name, to 9.jpg. Choose the other 1 next."
    )


def test_a_folder_without_photos_is_said_to_be_one_and_another_can_be_chosen(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".hidden").write_bytes(b"")
    page.set_input_files("#review [data-part=folder]", tmp_path / "set")
    assert refusal_of(page, "#review") == "No photos in this folder."
    assert page.locator("#review [data-part=choose-folder]").is_visible()
    assert not page.locator("#review [data-part=work]").is_visible()
    (tmp_path / "set" / "a.txt").write_bytes(b"")
    page.set_input_files("#review [data-part=folder]", tmp_path / "set")
    page.get_by_text("No photos among these files. a.txt: This is neither a picture").wait_for()
    page.set_input_files("#review [data-part=files]", KITTEN)
    page.get_by_text("0 of 1 accepted").wait_for()
    assert not page.locator("#review [role=alert]").is_visible()


def test_what_is_saved_of_a_folder_belongs_in_that_folder(visit, expected, tmp_path):
    """As docs/demo.md describes each file."""
    folder = tmp_path / "set"
    (folder / "inside").mkdir(parents=True)
    (folder / "kitten.jpg").write_bytes(KITTEN.read_bytes())
    (folder / "inside" / "dogs.jpg").write_bytes(DOGS.read_bytes())
    captions = {"kitten.jpg": expected[KITTEN], "inside/dogs.jpg": expected[DOGS]}
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=folder]", folder)
    page.get_by_text("0 of 2 accepted").wait_for()
    for accept in page.locator("#review [data-part=accept]").all():
        accept.click()
    (tmp_path / "corrections.jsonl").write_bytes(saved_by(page, "corrections")[1])
    read = load_captions(tmp_path / "corrections.jsonl", "train", images=folder)
    assert {caption for row in read for caption in row["captions"]} <= set(captions.values())
    with zipfile.ZipFile(io.BytesIO(saved_by(page, "txt")[1])) as archive:
        archive.extractall(folder)
    assert {path: (folder / path).with_suffix(".txt").read_text().strip() for path in captions} == captions
    (folder / "metadata.jsonl").write_bytes(saved_by(page, "jsonl")[1])
    rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["caption"]: row["image"].size for row in rows} == {
        captions[path]: Image.open(folder / path).size for path in captions
    }


@pytest.mark.parametrize(
    ("dropped", "names"),
    [
        (["set/a.jpg", "set/inside/b.jpg"], ["a.jpg", "inside/b.jpg"]),
        (["set/a.jpg", "other/b.jpg"], ["set/a.jpg", "other/b.jpg"]),
        (["set/a.jpg", "b.jpg"], ["set/a.jpg", "b.jpg"]),
        (["set/a.jpg", "b.txt"], ["a.jpg"]),
    ],
)
def test_the_folder_that_all_dropped_photos_are_in_is_no_part_of_their_names(visit, dropped, names):
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.evaluate(
        """([names, content]) => {
            const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
            const detail = names.map((name) => ({name, file: new File([bytes], name.split('/').at(-1))}));
            document.querySelector('#review [data-part=root]').dispatchEvent(new CustomEvent('photos', {detail}));
        }""",
        [dropped, base64.b64encode(KITTEN.read_bytes()).decode()],
    )
    page.get_by_text(f"0 of {len(names)} accepted").wait_for()
    assert sorted(names_of(cards(page))) == sorted(names)


def test_the_command_is_copied_and_where_browsers_have_no_clipboard_that_is_said(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=files]", KITTEN)
    cards(page).first.get_by_role("button", name="Accept").click()
    saved_by(page, "corrections")
    button = page.locator("#review [data-part=copy]")
    button.click()
    button.click()  # the label of the first click is not kept
    page.wait_for_timeout(100)
    assert button.inner_text() == "Copied"
    assert page.evaluate("navigator.clipboard.readText()").startswith("gru-captioner train corrections.jsonl")
    page.get_by_role("button", name="Copy the command").wait_for()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as on http, but on localhost
    button.click()
    page.get_by_role("button", name="Can't copy here").wait_for()
    page.get_by_role("button", name="Copy the command").wait_for()


def test_an_example_in_the_filter_looks_different_from_what_is_typed(visit):
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    colors = page.locator("#review [data-part=filter]").evaluate(
        "(each) => [null, '::placeholder'].map((part) => getComputedStyle(each, part).color)"
    )
    assert colors[0] != colors[1]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lists_have_an_arrow_and_the_bar_looks_as_the_browser_draws_it(visit, look, theme):
    page = visit(f"?__theme={theme}")
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=files]", [DOGS, KITTEN])
    page.get_by_text("0 of 2 accepted").wait_for()
    page.click("#review [data-part=accept] >> nth=0")
    look(page)
    for part in ("which", "order"):
        assert (
            page.locator(f"#review [data-part={part}]").evaluate("(each) => getComputedStyle(each).appearance")
            == "auto"
        )
    # A border of the page's own, of any width, makes Chromium draw the bar in grey and green.
    border = page.locator("#review [data-part=bar]").evaluate("(each) => getComputedStyle(each).borderStyle")
    assert border == "none"


def test_after_a_caption_is_edited_every_generated_one_has_a_button_and_a_key(visit):
    captions = [each.text for each in Captioner.from_pretrained()(KITTEN, num_captions=3)]
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=files]", KITTEN)
    page.get_by_text("0 of 1 accepted").wait_for()
    card = cards(page).first
    text, others = card.locator("textarea"), card.locator(".instead button:visible")
    assert others.all_inner_texts() == captions[1:]
    text.fill("a kitten behind a stone")
    assert others.all_inner_texts() == captions
    others.last.click()
    assert (text.input_value(), others.all_inner_texts()) == (captions[2], captions[:2])
    text.fill("a kitten behind a stone")
    card.focus()
    page.keyboard.press("3")
    assert text.input_value() == captions[2]
    page.keyboard.press("3")  # there are only two others
    assert text.input_value() == captions[2]


def test_a_review_is_saved_for_spreadsheets_programs_and_training(reviewed, expected, tmp_path):
    page = reviewed
    name, content = saved_by(page, "csv")
    assert name == "captions.csv"
    assert content.decode("utf-8-sig").splitlines()[0] == "file_name,caption"
    name, content = saved_by(page, "jsonl")
    rows = {row["file_name"]: row["caption"] for row in map(json.loads, content.decode().splitlines())}
    assert rows["album/cats/kitten.jpg"] == expected[KITTEN]
    assert len(rows) == 4
    name, content = saved_by(page, "txt")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("album/dogs.txt").decode() == expected[DOGS] + "\n"
    page.click("#review [data-save=corrections]")
    page.get_by_text("Accept or change some captions first").wait_for()
    kitten = page.locator("#review .card", has_text="kitten.jpg")
    kitten.locator("textarea").fill("a kitten behind a stone")
    page.locator("#review .card", has_text="album/dogs.jpg").get_by_role("button", name="Accept").click()
    name, content = saved_by(page, "corrections")
    assert [json.loads(line) for line in content.decode().splitlines()] == [
        {"file_name": "album/cats/kitten.jpg", "caption": "a kitten behind a stone"},
        {"file_name": "album/dogs.jpg", "caption": expected[DOGS]},
    ]
    command = page.locator("#review [data-part=command]").inner_text()
    assert command == "gru-captioner train corrections.jsonl --data.images PHOTOS --output-dir runs/corrected"


def test_the_command_for_corrections_names_the_checkpoint_that_wrote_the_captions(visit):
    page = visit()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Checkpoint").click()
    page.get_by_role("option", name="again").click()
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=files]", [KITTEN])
    cards(page).first.get_by_role("button", name="Accept").click()
    saved_by(page, "corrections")
    assert page.locator("#review [data-part=command]").inner_text() == (
        "gru-captioner train corrections.jsonl --data.images PHOTOS --model.checkpoint 'runs/<again> & again' "
        "--output-dir runs/corrected"
    )


def test_captioning_many_photos_can_be_stopped(visit, tmp_path):
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(200):
            file.write(KITTEN, f"{number}.jpg")
    page = visit()
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=files]", archive)
    cards(page).first.wait_for()
    page.click("#review [data-part=stop]")
    page.get_by_text("accepted").first.wait_for()
    number = cards(page).count()
    page.wait_for_timeout(2000)
    assert cards(page).count() == number < 200


def ours(violations):
    """Excludes Gradio's own gallery, which repeats the names of pictures."""
    return [
        (each["id"], node["target"])
        for each in violations
        for node in each["nodes"]
        if not (each["id"] == "image-redundant-alt" and 'loading="lazy"' in node["html"])
    ]


@pytest.mark.parametrize("look_of", ["light", "dark", "phone"])
def test_nothing_keeps_anyone_out(visit, look_of):
    """axe-core finds no violation in any state of the page."""
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    page = visit("?__theme=dark" if look_of == "dark" else "", **(phone if look_of == "phone" else {}))

    def violations():
        page.wait_for_timeout(700)  # words appear one by one
        return ours(Axe().run(page).response["violations"])

    assert violations() == []
    upload(page, KITTEN)
    caption_of(page)
    page.click('#viewer [data-word="1"]')
    assert violations() == []
    page.get_by_text("Settings", exact=True).click()
    address_field(page).fill("nothing")
    page.click("#caption")
    refusal_of(page)
    assert violations() == []
    page.get_by_role("tab", name="Compare").click()
    upload(page, DOGS, "#compared")
    caption_of(page, "#viewer-right")
    assert violations() == []
    page.get_by_role("tab", name="Many photos").click()
    assert violations() == []
    page.set_input_files("#review [data-part=files]", [DOGS, KITTEN])
    page.get_by_text("0 of 2 accepted").wait_for()
    page.click("#review [data-part=accept] >> nth=0")
    saved_by(page, "corrections")
    assert violations() == []


def test_what_axe_finds_is_told(visit):
    page = visit()
    page.evaluate("document.querySelector('#viewer').insertAdjacentHTML('afterend', '<img src=\"data:,\">')")
    assert "image-alt" in [rule for rule, _ in ours(Axe().run(page).response["violations"])]


def test_on_a_phone_everything_is_large_enough_for_a_finger(visit):
    page = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)

    def small():
        return page.evaluate(
            """() => [...document.querySelectorAll('button, a[href], select, textarea, summary, [role=tab], '
                + '[role=button], input:not([type=file], [type=radio])')]
                .map((each) => [each, each.getBoundingClientRect()])
                .filter(([each]) => each.checkVisibility({visibilityProperty: true, opacityProperty: true}))
                .filter(([, {width, height}]) => height > 2 && (width < 43.5 || height < 43.5))
                .map(([each, {width, height}]) => `${width} x ${height}: ${each.outerHTML.slice(0, 200)}`)"""
        )

    assert small() == []
    upload(page, KITTEN)
    caption_of(page)
    assert small() == []
    page.get_by_role("tab", name="Many photos").click()
    page.set_input_files("#review [data-part=files]", [DOGS, KITTEN])
    page.get_by_text("0 of 2 accepted").wait_for()
    assert small() == []


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
def test_a_photo_that_can_not_be_captioned_leaves_a_sentence_and_a_page_to_go_on_with(
    visit, expected, look, tmp_path, name, content, said
):
    (tmp_path / name).write_bytes(content)
    page = visit()
    upload(page, DOGS)
    wait_for_caption(page, expected[DOGS])
    page.click("#viewer [data-part=another]")
    upload(page, tmp_path / name)
    assert said in refusal_of(page)
    assert not page.locator("#viewer [data-part=full]").is_visible()  # no caption of another photo
    assert page.locator("#photo input[type=file]").count() == 1
    assert page.get_by_text("Error", exact=True).count() == 0
    assert str(tmp_path) not in page.content()
    assert "Traceback" not in page.content()
    look(page)
    upload(page, KITTEN)
    wait_for_caption(page, expected[KITTEN])
    assert not page.locator("#viewer [role=alert]").is_visible()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("http://127.0.0.1/photo.jpg", "not on the public web"),
        ("localhost.invalid/photo.jpg", "no server of this name"),
        ("a photo of my dog", "An address begins with http:// or https://."),
    ],
)
def test_an_address_that_is_refused_leaves_a_good_caption_as_it_is(visit, expected, typed, said):
    page = visit()
    upload(page, DOGS)
    wait_for_caption(page, expected[DOGS])
    address_field(page).fill(typed)
    page.keyboard.press("Enter")
    assert said in refusal_of(page)
    assert caption_of(page) == expected[DOGS]
    assert page.get_by_text("Error", exact=True).count() == 0


def test_the_button_captions_what_is_there(visit, expected):
    page = visit()
    page.click("#caption")
    assert refusal_of(page) == "Choose a photo first, or enter its web address."
    address_field(page).fill("http://127.0.0.1/photo.jpg")
    upload(page, DOGS)
    wait_for_caption(page, expected[DOGS])
    assert address_field(page).input_value() == ""  # the photo came after it
    page.evaluate("document.querySelector('#viewer [data-part=said]').textContent = ''")
    page.click("#caption")
    wait_for_caption(page, expected[DOGS])
    assert not page.locator("#viewer [role=alert]").is_visible()


def test_a_caption_of_no_words_is_said_to_be_one(visit):
    page = visit()
    caption = {
        "caption": "",
        "score": -1,
        "mean_probability": 1,
        "words": [],
        "log_probabilities": [],
        "alternatives": [],
        "attention": [],
    }
    picture = {"photo": "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "width": 4, "height": 3}
    answer = {"captions": [caption], "encoder_ms": 1, "decoder_ms": 1, "batch": 1, **picture}
    event = {
        "msg": "process_completed",
        "output": {"data": [json.dumps(answer), {"__type__": "update"}]},
        "success": True,
    }

    def answer_with(route):
        content = route.fetch().text()
        lines = [
            f"data: {json.dumps({**json.loads(line[6:]), **event})}" if "process_completed" in line else line
            for line in content.splitlines()
        ]
        route.fulfill(body="\n".join(lines) + "\n\n", content_type="text/event-stream")

    page.route("**/queue/data*", answer_with)
    upload(page, DOGS)
    page.get_by_text("The model generated no words for this photo.").wait_for()
    assert not page.locator("#viewer [data-part=copy-text]").is_visible()


def test_two_visitors_have_their_own_captions(visit, expected):
    first, second = visit(), visit()
    upload(first, DOGS)
    upload(second, KITTEN)
    assert (caption_of(first), caption_of(second)) == (expected[DOGS], expected[KITTEN])


def test_programs_caption_with_the_client(address, expected):
    client = Client(address, verbose=False)
    answer = client.predict(handle_file(DOGS), num_captions=2, api_name="/caption")
    found = Captioner.from_pretrained()(DOGS, num_captions=2)
    assert (answer["caption"], answer["words"]) == (found[0].text, list(found[0].words))
    assert answer["score"] == pytest.approx(found[0].score, abs=1e-3)
    assert answer["log_probabilities"] == pytest.approx(found[0].log_probabilities, abs=1e-3)
    assert [pairs[0][0] for pairs in answer["alternatives"]][2] == found[0].words[2]
    assert all(len(pairs) == 5 for pairs in answer["alternatives"])
    assert [each["caption"] for each in answer["other_captions"]] == [found[1].text]
    assert "attention" not in answer
    photo = base64.b64encode(DOGS.read_bytes()).decode()
    same = client.predict(f"data:image/jpeg;base64,{photo}", attention=True, api_name="/caption")
    assert same["caption"] == expected[DOGS]
    assert len(same["attention"]) == len(same["words"])
    growing = list(client.submit(handle_file(DOGS), api_name="/caption_stream"))
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(growing))
    assert growing[-1] == Captioner.from_pretrained()(DOGS, num_beams=1, length_penalty=1.0, max_new_tokens=24).text


def test_programs_caption_many_with_the_client(address, expected, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not a picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as file:
        file.write(KITTEN, "inside/kitten.jpg")
    photos = [handle_file(path) for path in (DOGS, tmp_path / "bad.jpg", tmp_path / "more.zip")]
    first, bad, second = Client(address, verbose=False).predict(photos, api_name="/caption_many")
    assert (first["file_name"], first["caption"]) == ("dogs_lawn.jpg", expected[DOGS])
    assert bad == {"file_name": "bad.jpg", "error": "This is not a picture, or it is damaged."}
    assert (second["file_name"], second["caption"]) == ("inside/kitten.jpg", expected[KITTEN])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"photo": "nothing"}, "base64"),
        ({"photo": []}, "base64"),
        ({"photo": {}}, "handle_file"),
        ({"photo": 7}, "base64"),
        ({"photo": "/etc/passwd"}, "base64"),
        ({"photo": {"path": "/etc/passwd"}}, "is not here"),
        ({"photo": "http://169.254.169.254/latest"}, "not on the public web"),
        ({"num_beams": 10**9}, "num_beams must be a whole number from 1 to 10"),
        ({"num_captions": "many"}, "num_captions must be a whole number"),
        ({"strategy": "magic"}, "strategy must be one of beam"),
        ({"checkpoint": "/etc"}, "no such checkpoint"),
    ],
)
def test_programs_are_refused_in_a_sentence(address, arguments, said):
    client = Client(address, verbose=False)
    photo = base64.b64encode(KITTEN.read_bytes()).decode()
    with pytest.raises(Exception, match=said):
        client.predict(**{"photo": photo, **arguments}, api_name="/caption")


def test_the_lines_for_programs_run_as_they_stand(address, expected, tmp_path):
    """All shell and Python lines of docs/demo.md for programs, at this page's address."""
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text().replace("http://127.0.0.1:7860/", address)
    blocks = [block.partition("\n") for block in text.split("```")[1::2]]
    runs = {
        "bash": [code for language, _, code in blocks if language == "bash" and "curl" in code],
        "python": [code for language, _, code in blocks if language == "python"],
    }
    assert all(runs.values())
    (tmp_path / "photo.jpg").write_bytes(DOGS.read_bytes())
    (tmp_path / "other.jpg").write_bytes(KITTEN.read_bytes())
    for command, codes in (["bash", runs["bash"]], [sys.executable, runs["python"]]):
        for code in codes:
            done = subprocess.run([command, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
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
