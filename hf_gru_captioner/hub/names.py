"""Names of the code files in each checkpoint, and public names of sources: Hub ids or names of folders."""

import json
import os
import re
from pathlib import Path
from typing import Any

CODE = tuple(  # the files of hf_gru_captioner/model, which each checkpoint has
    f"{each}_gru_captioner.py" for each in ("configuration", "image_loading", "modeling", "pipeline", "processing")
)

# Settings that may hold a path, in config.json, in the tokenizer's and in the training record.
ORIGINS = {
    "_name_or_path",
    "name_or_path",
    "data.source",
    "data.images",
    "model.encoder",
    "model.checkpoint",
    "self_critical.synonyms",
}
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
CACHED = re.compile(r"(?:models|datasets)--([^/\\]+)[/\\]snapshots[/\\]")  # in the path of a folder in the Hub's cache


def public_name(name: str | os.PathLike[str]) -> str:
    """A Hub id unchanged; of a path the last part, or the Hub id if it is in the Hub's cache."""
    name = os.fspath(name)
    if cached := CACHED.search(name + "/"):
        return cached[1].replace("--", "/")
    path = Path(name).expanduser()
    if path.exists():
        return os.path.basename(os.path.abspath(path))
    return name if HUB_ID.fullmatch(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def with_public_name(origin: Any) -> Any:
    """The value of a setting in [`ORIGINS`] with public names: a path, or the list of sources of a run."""
    if isinstance(origin, list):
        return [with_public_name(each) for each in origin]
    if isinstance(origin, dict):
        renamed = {name: with_public_name(origin[name]) for name in ("path", "images") if origin.get(name)}
        return {**origin, **renamed}
    return public_name(origin) if isinstance(origin, str) and origin else origin


def source_names(origin: Any) -> list[str]:
    """Public names of the sources of a run, of its option `data.source`."""
    sources = origin if isinstance(origin, list) else [origin]
    return [public_name(each["path"] if isinstance(each, dict) else each) for each in sources]


def with_public_names(content: bytes) -> bytes:
    """A JSON file without local paths in [`ORIGINS`]; the same bytes if it has none."""
    settings = json.loads(content)
    renamed = _renamed(settings)
    return content if renamed == settings else json.dumps(renamed, indent=2, ensure_ascii=False).encode() + b"\n"


def _renamed(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_renamed(each) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: with_public_name(value) if key in ORIGINS and isinstance(value, str | list) else _renamed(value)
        for key, value in settings.items()
    }
