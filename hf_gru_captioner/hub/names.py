"""Names of the code files in each checkpoint, and public names of sources: Hub ids or folder names."""

import json
import os
import re
from pathlib import Path
from typing import Any

CODE = tuple(  # the files of hf_gru_captioner/model that are part of each checkpoint
    f"{each}_gru_captioner.py" for each in ("configuration", "image_loading", "modeling", "pipeline", "processing")
)

# Settings that may contain a path, in config.json, the tokenizer's config and the training record.
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
CACHED = re.compile(r"(?:models|datasets)--([^/\\]+)[/\\]snapshots[/\\]")  # in the path of a folder in the Hub cache


def public_name(name: str | os.PathLike[str]) -> str:
    """A Hub id unchanged; for a path its last component, or the Hub id if it is in the Hub cache."""
    name = os.fspath(name)
    if cached := CACHED.search(name + "/"):
        return cached[1].replace("--", "/")
    path = Path(name).expanduser()
    if path.exists():
        return os.path.basename(os.path.abspath(path))
    return name if HUB_ID.fullmatch(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def with_public_name(origin: Any) -> Any:
    """The value of a setting in [`ORIGINS`], a path or the list of sources of a run, with public names."""
    if isinstance(origin, list):
        return [with_public_name(each) for each in origin]
    if isinstance(origin, dict):
        renamed = {name: with_public_name(origin[name]) for name in ("path", "images") if origin.get(name)}
        return {**origin, **renamed}
    return public_name(origin) if isinstance(origin, str) and origin else origin


def source_names(origin: Any) -> list[str]:
    """Public names of the sources in a run's option `data.source`."""
    sources = origin if isinstance(origin, list) else [origin]
    return [public_name(each["path"] if isinstance(each, dict) else each) for each in sources]


def with_public_names(content: bytes) -> bytes:
    """A JSON file with public names for local paths in [`ORIGINS`]; the same bytes if it has none."""
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
