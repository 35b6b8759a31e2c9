"""Escapes untrusted text for Markdown: a training option, an image's name or a caption is never markup."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Inline markup in GitHub's and the Hub's dialects (https://github.github.com/gfm/). Brackets and "|" are links, images
# and cells; "$" is math; "#" at the beginning is a heading; "_" inside a word is literal.
_MARKUP = re.compile(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", '"': "&quot;"}
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto|xmpp)(:)|\b(www)(\.)")  # GitHub turns these into links
_LIST = re.compile(
    r"^(\d{1,9})([.)](?=\s|$))|^([-+=:](?=\s|\W*$|[-+=:]))"
)  # at the beginning: a list, a rule, a heading
LONGEST = 500  # characters per text; cards are read by humans


class Markdown(str):
    """Text that is already Markdown and is not escaped."""


def render_markdown(template: Path, **fields: Any) -> str:
    """Renders a template. All output except [`Markdown`] is escaped; the filters `code`, `link` and `python` format
    text as code, as a link target and as a Python literal.

    Raises:
        KeyError: A field is missing.
    """
    from jinja2 import Environment, FileSystemLoader, UndefinedError  # comes with torch, which graphs do without

    def escaped(value: Any) -> str:
        return value if isinstance(value, Markdown) else escape_markdown(value)

    environment = Environment(loader=FileSystemLoader(template.parent), finalize=escaped)
    environment.filters["code"] = lambda value, in_table=False: Markdown(code_span(value, in_table))
    environment.filters["link"] = lambda value: Markdown(quote(str(value)))
    environment.filters["python"] = lambda value: Markdown(json.dumps(str(value)))
    try:
        return environment.get_template(template.name).render(**fields)
    except UndefinedError as error:
        raise KeyError(str(error)) from error


def escape_markdown(value: Any) -> str:
    """Text as one line of Markdown that is displayed literally: in a paragraph, heading, table cell or link text.

    Control characters and line breaks become spaces; text is truncated to 500 characters.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    text = _MARKUP.sub(lambda found: f"\\{found[0]}", text)
    text = _LIST.sub(lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", text)
    text = "".join(_ENTITIES.get(letter, letter) for letter in text)
    return _ADDRESS.sub(lambda found: f"{found[1] or found[3]}&#{ord(found[2] or found[4])};", text)


def code_span(value: Any, in_table: bool = False) -> str:
    """Text as an inline code span in Markdown, delimited by more backticks than it has in a row."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())[:LONGEST]
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padded = f" {text} " if text.startswith("`") or text.endswith("`") or not text else text
    return f"{fence}{padded.replace('|', chr(92) + '|') if in_table else padded}{fence}"
