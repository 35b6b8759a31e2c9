import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_gru_captioner.evaluation import compare, score_captions
from hf_gru_captioner.evaluation.report import ATTENTION_SIDE, IMAGE_SIDE, length_histogram, write_report

IMAGES = 60
HOSTILE = json.loads((Path(__file__).parents[1] / "support" / "hostile_texts.json").read_text())
VOID = {"meta", "img", "path", "rect", "polyline"}


class Page(HTMLParser):
    """A parsed report: `tags` as (name, attributes), and the text of each element in `texts` by name; checks that
    elements are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.tags, self.open, self.texts = html, [], [], {}
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.texts.setdefault(tag, []).append("")
            self.open.append((tag, len(self.texts[tag]) - 1))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, index in self.open:
            self.texts[tag][index] += data

    def rows(self, table: int) -> dict[str, list[str]]:
        """The cells of a table by the text of their row's first cell."""
        found = re.findall(r"<table.*?</table>", self.html, re.DOTALL)[table]
        cells = [
            [re.sub(r"<.*?>", " ", cell).split() for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)
        ]
        return {" ".join(first): [" ".join(cell) for cell in others] for first, *others in cells}

    def all(self, name: str, /, **attributes) -> list[dict]:
        return [found for tag, found in self.tags if tag == name and attributes.items() <= found.items()]


@pytest.fixture(scope="module")
def rows(synthetic_captions):
    rows = synthetic_captions(IMAGES)
    return [row[0] for row in rows], [row[1] for row in rows]


def score(predictions, references, **options):
    options = {"metrics": ("bleu", "cider", "diversity"), "tokenizer": "simple", "bootstrap": 50, **options}
    return score_captions(predictions, references, **options)


@pytest.fixture
def make_report(rows, tmp_path, make_photo):
    """Writes a report of captions by system and parses it."""

    def make(systems=None, scores=None, **options) -> Page:
        predictions, references = rows
        systems = systems or {"ours": predictions}
        options = {
            "images": make_photo,
            "references": references,
            "image_ids": [f"image {i}" for i in range(IMAGES)],
            "settings": {},
            **options,
        }
        scores = scores or {name: score(captions, options["references"]) for name, captions in systems.items()}
        write_report(tmp_path / "report.html", scores, systems, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def test_the_table_shows_scores_intervals_and_human_scores_and_cider_leads(rows, make_report):
    scores = score(*rows, decoding="num_beams:5")
    page = make_report(scores={"ours": scores})
    table = page.rows(0)
    low, high = scores.intervals["cider"]
    assert list(table)[:2] == ["Metric", "CIDEr"]
    assert table["Metric"] == ["ours", "Human"]
    assert table["CIDEr"] == [
        f"{100 * scores.values['cider']:.1f} {100 * low:.1f} to {100 * high:.1f}",
        f"{100 * scores.human['cider']:.1f}",
    ]
    assert table["distinct words"] == [f"{scores.values['vocabulary']:.0f}", f"{scores.human['vocabulary']:.0f}"]
    assert page.texts["code"] == [scores.signature]
    assert scores.signature.endswith("|num_beams:5")
    number = len(rows[0])
    assert number < 100
    assert f"{number} images. <strong>Only {number} images: the scores say little" in page.html


def test_a_report_without_bootstrap_human_scores_and_cider_leaves_them_out(rows, make_report):
    scores = score(*rows, metrics=["bleu"], bootstrap=0, human=False)
    page = make_report({"a": rows[0], "b": rows[0]}, scores={"a": scores, "b": scores})
    assert page.rows(0)["Metric"] == ["a", "b"]
    assert page.rows(0)["BLEU-4"] == [f"{100 * scores.values['bleu_4']:.1f}"] * 2
    assert not {"Differences", "Best by CIDEr"} & set(page.texts["h2"])
    assert len(page.texts["article"]) == 12
    assert "CIDEr" not in page.html
    assert "bootstrap" not in page.html


def test_other_systems_are_compared_with_the_first(rows, make_report):
    predictions, references = rows
    systems = {"ours": predictions, "copied": [captions[0] for captions in references]}
    scores = {name: score(captions, references) for name, captions in systems.items()}
    page = make_report(systems, scores=scores)
    gap = compare(scores["ours"], scores["copied"])["cider"]
    assert gap.difference > 0
    assert page.rows(0)["CIDEr"][1].startswith(f"{100 * scores['copied'].values['cider']:.1f} ")
    assert page.texts["caption"] == ["copied minus ours"]
    assert page.rows(1)["CIDEr"] == [
        f"{100 * gap.difference:+.1f}",
        f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}",
        f"{gap.p_value:.3f}",
    ]
    assert page.texts["code"] == [each.signature for each in scores.values()]


def test_best_worst_and_random_images_are_shown_with_all_their_captions(rows, make_report):
    predictions, references = rows
    scores = score(*rows)
    sheets = []

    def attention(index):
        sheets.append(index)
        return Image.new("RGB", (2400, 300), "red") if index % 2 else None

    page = make_report(scores={"ours": scores}, attention=attention)
    shown = [int(text.removeprefix("image ")) for text in page.texts["h3"]]
    cider = scores.per_image["cider"]
    ranked = sorted(cider)
    assert len(shown) == len(set(shown)) == 36
    np.testing.assert_array_equal(cider[shown[:12]], ranked[::-1][:12])
    np.testing.assert_array_equal(cider[shown[12:24]], ranked[:12])
    assert shown[24:] != sorted(shown[24:])
    for card, index in zip(page.texts["article"], shown, strict=True):
        assert f"CIDEr {100 * cider[index]:.1f}" in card
        assert all(caption in card for caption in [predictions[index], *references[index]])
    assert sheets == shown
    images = [found for found in page.all("img") if "looked" not in found["alt"]]
    assert [found["alt"] for found in images] == [references[index][0] for index in shown]
    looked = [found["alt"] for found in page.all("img") if "looked" in found["alt"]]
    assert looked == [f"Where ours looked at each word of: {predictions[index]}" for index in shown if index % 2]
    assert len(page.texts["details"]) == len(looked)


def test_the_same_seed_shows_the_same_images_and_another_seed_others(make_report):
    first, again, other = (make_report(seed=seed).texts["h3"] for seed in (0, 0, 1))
    assert first == again
    assert first[:24] == other[:24]
    assert first[24:] != other[24:]


@pytest.mark.parametrize(
    ("images", "images_each", "titles"),
    [
        (1, 12, {"Best by CIDEr": 1}),
        (2, 12, {"Best by CIDEr": 1, "Worst by CIDEr": 1}),
        (7, 12, {"Best by CIDEr": 3, "Worst by CIDEr": 3, "At random": 1}),
        (60, 2, {"Best by CIDEr": 2, "Worst by CIDEr": 2, "At random": 2}),
        (60, 0, {}),
    ],
)
def test_no_image_is_shown_twice_however_few_there_are(rows, make_report, images, images_each, titles):
    predictions, references = (each[:images] for each in rows)
    image_ids = [f"{i}" for i in range(images)]
    page = make_report({"ours": predictions}, references=references, image_ids=image_ids, images_each=images_each)
    sections = re.split("<h2>", page.html)
    assert {each.split("</h2>")[0]: each.count("<article>") for each in sections if "<article>" in each} == titles
    assert len(set(page.texts.get("h3", []))) == sum(titles.values())


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_images_are_embedded_small_and_the_given_ones_are_not_changed(make_report, mode):
    images = [Image.new(mode, (1600, 800), (4 * index, 128, 255)) for index in range(IMAGES)]
    sheets = [Image.new(mode, (2400, 1200), (255, 128, 4 * index)) for index in range(IMAGES)]
    page = make_report(images=images.__getitem__, attention=sheets.__getitem__, images_each=1)
    shown = [int(text.removeprefix("image ")) for text in page.texts["h3"]]
    embedded = []
    for found in page.all("img"):
        kind, _, data = found["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        embedded.append(Image.open(io.BytesIO(base64.b64decode(data))))
    for index, image, sheet in zip(shown, embedded[::2], embedded[1::2], strict=True):
        assert image.size == (IMAGE_SIDE, IMAGE_SIDE / 2)
        assert sheet.size == (ATTENTION_SIDE, ATTENTION_SIDE / 2)
        np.testing.assert_allclose(image.getpixel((9, 9)), (4 * index, 128, 255), atol=3)
        np.testing.assert_allclose(sheet.getpixel((9, 9)), (255, 128, 4 * index), atol=3)
        assert images[index].size == (1600, 800)


def test_nothing_comes_from_outside_and_nothing_runs(make_report):
    page = make_report(settings={"data": "https://example.com"})
    assert all(found["src"].startswith("data:image/jpeg;base64,") for found in page.all("img"))
    addresses = [value for _, found in page.tags for name, value in found.items() if name in ("src", "href", "srcset")]
    assert len(addresses) == 36
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import|https?://", page.html.replace("<td>https://example.com", ""))
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_references_and_captions_are_escaped(rows, make_report):
    evil = "<script>alert(1)</script> \"x\" 'y' & </svg>"
    predictions = [f"{evil} {caption}" for caption in rows[0]]
    references = [[f'{evil}" onerror="alert(2)', *captions] for captions in rows[1]]
    page = make_report(
        {evil: predictions, f"{evil} 2": rows[0]},
        references=references,
        image_ids=[f"{evil} {i}" for i in range(IMAGES)],
        settings={evil: evil, "nested": {evil: evil}},
        attention=lambda index: Image.new("RGB", (9, 9)),
        images_each=1,
    )
    assert "<script" not in page.html
    assert not [found for _, found in page.tags if "onerror" in found]
    assert page.texts["title"] == page.texts["h1"] == [f"Caption scores: {evil}, {evil} 2"]
    assert any(predictions[int(page.texts["h3"][0].split()[-1])] in text for text in page.texts["dd"])
    assert page.rows(2)
    assert page.texts["li"] == [f"{evil}: {evil}"]
    assert page.all("img")[0]["alt"].endswith('onerror="alert(2)')


def test_settings_are_shown_and_mappings_among_them_taken_apart(make_report):
    page = make_report(settings={"checkpoint": "runs/a", "beams": 3, "versions": {"torch": "2.1", "python": "3.12"}})
    assert page.rows(1) == {"checkpoint": ["runs/a"], "beams": ["3"], "versions": ["torch: 2.1 python: 3.12"]}
    assert page.texts["li"] == ["torch: 2.1", "python: 3.12"]


def test_people_who_listen_or_use_a_phone_can_read_it(make_report):
    page = make_report(images_each=1, attention=lambda index: Image.new("RGB", (9, 9)))
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("meta", name="viewport")
    assert all(found["alt"] for found in page.all("img"))
    assert all(found.get("scope") in ("row", "col") for found in page.all("th"))
    ids = [found["id"] for _, found in page.tags if "id" in found]
    named = [found["aria-labelledby"] for _, found in page.tags if "aria-labelledby" in found]
    assert set(named) == set(ids) == {"scores", "lengths"}
    assert "prefers-color-scheme: dark" in page.html


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_stands_out_from_what_is_behind_it(make_report, scheme):
    block = re.findall(r":root \{(.*?)\}", make_report(images_each=0).html, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([\w-]+): (#\w+);", block))

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        channels = np.frombuffer(bytes.fromhex(digits), np.uint8) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one: str, other: str) -> float:
        darker, lighter = sorted((luminance(colors[one]), luminance(colors[other])))
        return (lighter + 0.05) / (darker + 0.05)

    for behind in ("page", "card"):  # WCAG 2.2 AA: 4.5 for text, 3 for graphics
        assert all(contrast(text, behind) >= 4.5 for text in ("text", "muted", "series-1"))
    assert all(contrast(f"series-{number}", "page") >= 3 for number in range(5))


def test_the_histogram_draws_the_share_of_captions_of_each_length():
    references, model = np.array([3, 4, 4, 5]), np.array([4, 4, 6, 6])
    svg = length_histogram([references, model])
    page = Page(str(svg))
    zero, *_, top = (float(found["d"].split()[1].split("H")[0]) for found in page.all("path"))
    assert zero > top
    percent = [text for text in page.texts["text"] if text.endswith("%")]
    assert percent == ["0%", "10%", "20%", "30%", "40%", "50%"]
    bars = [50 * float(found["height"]) / (zero - top) for found in page.all("rect", **{"class": "series-0"})]
    assert bars == pytest.approx([25, 50, 25, 0], abs=0.1)
    (line,) = page.all("polyline", **{"class": "series-1"})
    points = [50 * (zero - float(point.split(",")[1])) / (zero - top) for point in line["points"].split()]
    assert points == pytest.approx([0, 50, 0, 50], abs=0.1)
    assert [text for text in page.texts["text"] if text.isdigit()] == ["6", "5", "4", "3"]


def test_the_longest_captions_share_the_last_bin_of_the_histogram():
    page = Page(str(length_histogram([np.array([3] * 500 + [40] * 498 + [41, 60])])))
    ticks = [text for text in page.texts["text"] if text[0].isdigit() and not text.endswith("%")]
    assert ticks[0] == "40+"
    assert len(ticks) <= 14
    assert len(page.all("rect")) == 40 - 3 + 1


def test_a_caption_of_a_million_words_makes_no_page_of_a_million_bars():
    svg = str(length_histogram([np.array([9, 10, 11]), np.array([10, 1_000_000, 1_000_000])]))
    assert len(svg) < 100_000
    assert svg.count("<rect") <= 200
    assert ">208+</text>" in svg


def test_a_histogram_of_empty_captions_is_drawn():
    page = Page(str(length_histogram([np.array([0, 0]), np.array([0])])))
    assert page.texts["text"][-2:] == ["0", "words in a caption"]


def test_the_legend_names_the_mean_lengths(make_report):
    references = [["a dog runs", "a small dog runs"]] * IMAGES
    page = make_report({"ours": ["a", "a dog"] * 30, "theirs": ["a dog in the snow"] * IMAGES}, references=references)
    words = [text.split(" words")[0].strip() for text in page.texts["span"] if "on average" in text]
    assert words == ["references, 3.5", "ours, 1.5", "theirs, 5.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_ids": ["a"]}, r"Found scores of ours, captions of ours, and \[1, 60\] images\. Pass scores"),
        ({"systems": {"theirs": ["a"] * IMAGES}}, "Found scores of ours, captions of theirs"),
    ],
)
def test_captions_that_do_not_belong_to_the_scores_are_refused(rows, make_report, options, message):
    with pytest.raises(ValueError, match=message):
        make_report(scores={"ours": score(*rows)}, **options)


def test_a_failed_report_leaves_the_one_before_whole(rows, make_report, tmp_path):
    before = make_report().html
    ours = score(*rows)
    with pytest.raises(UnicodeEncodeError):
        make_report(settings={"half a pair": "\ud83d"})
    with pytest.raises(ValueError, match="cannot be paired"):
        make_report({"a": rows[0], "b": rows[0]}, scores={"a": ours, "b": replace(ours, settings="other")})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_36_images_with_attention_stay_below_3_mb(make_report, make_photo):
    page = make_report(
        images=lambda index: make_photo(index, 500, 375),
        attention=lambda index: make_photo(index, 1600, 678),
    )
    assert len(page.all("img")) == 72
    assert len(page.html) < 3_000_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_in_every_field_makes_no_element(rows, make_report, text):
    """Names, captions, references, ids, settings and decoding; the tags equal those of a harmless report."""
    options = {"attention": lambda index: Image.new("RGB", (9, 9)), "images_each": 1}

    def report(text):
        predictions = [f"{caption} {text}" for caption in rows[0]]
        references = [[*captions, f"{text} {captions[0]}"] for captions in rows[1]]
        scores = {
            name: score(captions, references, bootstrap=5, decoding=text)
            for name, captions in ((f"a{text}", predictions), (f"b{text}", rows[0]))
        }
        return make_report(
            {f"a{text}": predictions, f"b{text}": rows[0]},
            scores=scores,
            references=references,
            image_ids=[f"{text}{number}" for number in range(IMAGES)],
            settings={text: text, f"{text}2": {text: text}, "list": [text], "number": 1},
            **options,
        )

    page, tame = report(text), report("tame")
    drawn = {"path", "rect", "text", "polyline"}  # of the histogram, since longer captions have more bins
    tags, expected = ([(tag, sorted(found)) for tag, found in each.tags if tag not in drawn] for each in (page, tame))
    assert tags == expected
    assert not {"style"} & {name for tag, found in page.tags if tag in drawn for name in found}
    assert all(found["src"].startswith("data:image/jpeg;base64,") for found in page.all("img"))
    assert any(text.strip() in shown for shown in page.texts["dd"])
