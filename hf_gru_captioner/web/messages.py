"""What the review grid sends, as JSON in the value of its component: files to caption, or captions to save.

Gradio checks neither its form nor the paths in it.
"""

import json
from typing import Any

from ..untrusted_images import RefusedError, safe_name
from .batch import Reviewed, Sent
from .uploads import Uploads

NOT_UNDERSTOOD = "This request is not understood. Please load the page again."


def sent_files(text: Any, uploads: Uploads) -> list[Sent]:
    """`{"photos": [{"name", "path"}]}` -> files, in their order.

    Raises:
        RefusedError: Something else, no file, or one that is not an upload.
    """
    files = [Sent(safe_name(_text(each, "name")), uploads.check(_text(each, "path"))) for each in _list(text, "photos")]
    if not files:
        raise RefusedError("Choose some photos first.")
    return files


def reviewed(text: Any) -> tuple[str, list[Reviewed]]:
    """`{"save": kind, "rows": [{"name", "caption", "is_checked"}]}` -> how to save which rows.

    Raises:
        RefusedError: Something else.
    """
    rows = [
        Reviewed(safe_name(_text(each, "name")), _text(each, "caption"), each.get("is_checked") is True)
        for each in _list(text, "rows")
    ]
    return _text(_object(text), "save"), rows


def file_of(sent: Any, uploads: Uploads) -> Sent:
    """A file as Gradio's clients send it, by `path` and `orig_name`.

    Raises:
        RefusedError: Something else, or not an upload.
    """
    path = uploads.check(_text(sent, "path"))
    name = sent.get("orig_name")
    return Sent(safe_name(name) if isinstance(name, str) and name else path.name, path)


def _object(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedError(NOT_UNDERSTOOD)
    return found


def _list(text: Any, name: str) -> list[Any]:
    found = _object(text).get(name)
    if not isinstance(found, list):
        raise RefusedError(NOT_UNDERSTOOD)
    return found


def _text(found: Any, name: str) -> str:
    if not isinstance(found, dict) or not isinstance(found.get(name), str):
        raise RefusedError(NOT_UNDERSTOOD)
    return found[name]
