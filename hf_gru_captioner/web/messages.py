"""Parses what the review grid sends, as JSON in its component's value: files to caption, or captions to save.

Gradio checks neither its structure nor the paths in it.
"""

import json
from typing import Any

from ..untrusted_images import RefusedError, safe_name
from .batch import Reviewed, Sent
from .uploads import Uploads

NOT_UNDERSTOOD = "This request is malformed. Please reload the page."
HANDLE_FILE = "in Python, gradio_client's handle_file"
NO_FILE = f"An uploaded file is an object with its path ({HANDLE_FILE})."


def sent_files(text: Any, uploads: Uploads) -> list[Sent]:
    """`{"photos": [{"name", "path"}]}` -> files, in order.

    Raises:
        RefusedError: The message is malformed, names no file, or one that is not an upload.
    """
    files = [Sent(safe_name(_text(each, "name")), uploads.check(_text(each, "path"))) for each in _list(text, "photos")]
    if not files:
        raise RefusedError("Choose some photos first.")
    return files


def reviewed(text: Any) -> tuple[str, list[Reviewed]]:
    """`{"save": kind, "rows": [{"name", "caption", "is_checked"}]}` -> kind of file to save, and its rows.

    Raises:
        RefusedError: The message is malformed.
    """
    rows = [
        Reviewed(safe_name(_text(each, "name")), _text(each, "caption"), each.get("is_checked") is True)
        for each in _list(text, "rows")
    ]
    return _text(_object(text), "save"), rows


def file_of(sent: Any, uploads: Uploads) -> Sent:
    """A file as sent by Gradio's clients, with `path` and `orig_name`.

    Raises:
        RefusedError: Not such a file, or it is not an upload.
    """
    if not isinstance(sent, dict) or not isinstance(sent.get("path"), str):
        raise RefusedError(NO_FILE)
    path = uploads.check(sent["path"])
    name = sent.get("orig_name")
    return Sent(safe_name(name) if isinstance(name, str) and name else path.name, path)


def _object(text: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RefusedError(NOT_UNDERSTOOD)
    return parsed


def _list(text: Any, name: str) -> list[Any]:
    parsed = _object(text).get(name)
    if not isinstance(parsed, list):
        raise RefusedError(NOT_UNDERSTOOD)
    return parsed


def _text(parsed: Any, name: str) -> str:
    if not isinstance(parsed, dict) or not isinstance(parsed.get(name), str):
        raise RefusedError(NOT_UNDERSTOOD)
    return parsed[name]
