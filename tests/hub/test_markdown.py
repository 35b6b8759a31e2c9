"""Hostile texts in every field that reaches a card: they are displayed literally and don't affect its layout."""

import html
import json
import re

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_gru_captioner.hub import Example, keep_scores, render_card
from hf_gru_captioner.hub.markdown import LONGEST, code_span, escape_markdown

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=//evil.example/x onerror=alert(1)>",
    "</td></tr></table><h1>mine",
    "<!-- the rest is gone",
    "&lt;b&gt; &#60;i&#62; &copy;",
    "![](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "[a]: https://evil.example",
    "<https://evil.example>",
    "see https://evil.example and www.evil.example",
    "# a heading",
    "line\n\n## a heading\n\n- a list",
    "one\r\n---\r\nlicense: mit",
    "cell | of | a table",
    "`code` ``more`` ```python",
    "**bold** __bold__ _it_ ~~gone~~",
    "\\[ \\` \\| trailing \\",
    "{{ 7 * 7 }}{% for x in y %}{# no #}",
    "$x$ $$y$$ @someone #1 :smile:",
    "\x1b[31mred\x00\u202eright to left\u2028line",
)


def visible(text: str) -> str:
    """The visible part of a text, in one line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:LONGEST]


def parsed(text: str):
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def shown(tokens) -> str:
    """The text of parsed Markdown, without its markup."""
    texts = []
    for token in tokens:
        children = token.children if token.type == "inline" else [token]
        texts += [shown(child.children) if child.type == "image" else child.content for child in children or ()]
    return "".join(texts)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["{}", "# {}", "**{}**", "a {} b", "![{}](x.jpg)", "- {}"])
def test_a_text_shows_as_it_is_wherever_it_stands(text, form):
    tokens = parsed(form.format(escape_markdown(text)))
    kinds = {child.type for token in tokens for child in [token, *(token.children or ())]}
    assert not kinds & {"html_block", "html_inline", "link_open", "code_inline", "fence", "em_open", "s_open", "hr"}
    assert ("image" in kinds) == form.startswith("!")
    assert [token.tag for token in tokens if token.type == "heading_open"] == (["h1"] if form[0] == "#" else [])
    assert visible(text) in shown(tokens)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("as_code", [False, True])
def test_a_text_stays_in_its_cell(text, as_code):
    cell = code_span(text, in_table=True) if as_code else escape_markdown(text)
    tokens = parsed(f"| a | b | c |\n|---|---|---|\n| left | {cell} | right |\n")
    cells = [tokens[number + 1] for number, token in enumerate(tokens) if token.type == "td_open"]
    assert len(cells) == 3
    assert not [child for child in cells[1].children if child.type.startswith(("html", "link", "image"))]
    assert (cells[0].content, cells[2].content) == ("left", "right")


@pytest.mark.parametrize("text", ["https://evil.example", "HTTP://evil.example", "www.evil.example", "a@evil.example"])
def test_nothing_is_left_that_github_makes_a_link_of(text):
    escaped = escape_markdown(text)
    assert not re.search(r"(?i)https?:|www\.|@", escaped)
    assert html.unescape(escaped) == text


def test_plain_texts_stay_plain():
    for text in ("a dog runs through the grass", "21.4", "Intel(R) Xeon(R), 2 x 1 threads", "91 %", "cross-entropy"):
        assert escape_markdown(text) == text


def stage_of(text):
    return {
        "options": {
            "data.source": text,
            "objective": "cross_entropy",
            "optimization.label_smoothing": 0.1,
            "optimization.encoder_learning_rate": 3e-4,
            "optimization.encoder_first_layer": text,
            "optimization.images_per_step": text,
        },
        "images": 6000,
        "captions": 30000,
        "machine": text,
        "epoch": text,
        "minutes": 21.4,
    }


def scores_of(text):
    return {
        "data": text,
        "split": text,
        "settings": text,
        "decoding": text,
        "signature": text,
        "values": {"cider": 0.6123},
        "intervals": {},
        "human": {},
        "by_word": [{"word": text, "images": text, "recall": 0.91, "hallucinated": 0.05}],
        "by_length": [{"shortest": 4.0, "longest": 8.2, "images": text, "score": 0.7}],
    }


def card_of(checkpoint, text) -> str:
    """A card with one text in every field that reaches it."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["encoder_config"]["_name_or_path"] = config["attention_type"] = text
    config["embedding_size"] = config["hidden_size"] = config["license"] = text
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "training.json").write_text(json.dumps({"stages": [stage_of(text)]}))
    (checkpoint / "scores.json").unlink(missing_ok=True)
    for scores in (scores_of(text), {**scores_of(text), "settings": "other"}):
        keep_scores(checkpoint, scores)
    return str(
        render_card(
            checkpoint,
            text,
            title=text,
            language=text,
            datasets=[f"me/{text}"],
            examples=[Example(text, text, f"examples/{text}.jpg"), Example(text, text)],
            blanks=[Example(text, text)],
        )
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_of_hostile_texts_has_the_structure_of_a_plain_one(checkpoint, text):
    def structure(card):
        metadata, body = re.fullmatch(r"---\n(.*?\n)---\n(.*)", card, re.DOTALL).groups()
        tokens = parsed(body)
        inline = [child.type for token in tokens for child in token.children or () if child.type != "text"]
        markup = [kind for kind in inline if kind not in ("softbreak", "text_special")]
        return [token.type for token in tokens], markup, metadata

    plain, hostile = (structure(card_of(checkpoint, each)) for each in ("plain", text))
    assert hostile[0] == plain[0]
    assert hostile[1] == plain[1]
    data = ModelCard(card_of(checkpoint, text)).data
    assert data.license == text
    assert data.language == text


def test_records_that_are_damaged_are_said_to_be(checkpoint):
    for damage in ({"stages": [{}]}, {"stages": [7]}, {"stages": [{**stage_of("x"), "minutes": "many"}]}):
        (checkpoint / "training.json").write_text(json.dumps(damage))
        with pytest.raises(ValueError, match=r"training\.json or scores\.json of .* is damaged"):
            render_card(checkpoint, "me/captioner")
