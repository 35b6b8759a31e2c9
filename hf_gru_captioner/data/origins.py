"""Where a dataset's images may come from: its own files, and URLs only if the user allows them.

A downloaded dataset may refer to anything its author chose: URLs, even on this machine and its network, that every
training run would request; files on this machine, that the model would be trained on. Only a table given by the user
may refer to any file.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec  # type: ignore[import-untyped]
import yaml
from huggingface_hub import constants, hf_hub_download, metadata_load
from huggingface_hub.errors import HTTPError

from ..untrusted_images import ADDRESSES, RefusedError, fetch_image
from .folders import read_member

CARDS = ("README.md", ".huggingface.yaml")  # may list a dataset's files


class Origin(NamedTuple):
    """Where a source's images may be read from.

    Attributes:
        folders: Folders whose files may be read; None for any file.
        hub_id: A dataset on the Hub whose files may be read too.
        allow_urls: Whether URLs are fetched, by the rules of [`fetch_image`]; never with HF_HUB_OFFLINE.
        archives: ZIP archives whose members may be read.
        urls_option: Name of the option that allows URLs, as the user types it.
    """

    folders: tuple[str, ...] | None = ()
    hub_id: str | None = None
    allow_urls: bool = False
    archives: tuple[str, ...] = ()
    urls_option: str = "allow_urls"

    def read(self, path: str) -> tuple[bytes, str | None]:
        """The bytes of an image file, and the reason if they can't be read."""
        if path.startswith(ADDRESSES) and "::" not in path:
            return self._fetch(path)
        member, separator, archive = path.removeprefix("zip://").rpartition("::")
        if separator and path.startswith("zip://") and archive in self.archives:
            return self._unpack(archive, member)
        if not self._is_in_data_set(path):
            return b"", f"{path}: not a file of this dataset; only a table of your own (CSV, JSON lines) may name it"
        try:
            if "::" not in path and "://" not in path and not stat.S_ISREG(os.stat(path).st_mode):
                return b"", f"{path}: not a file but a folder, a pipe, a socket or a device"  # reading might block
            with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
                return file.read(), None
        except (OSError, ValueError) as error:  # a null byte in the name raises ValueError
            return b"", f"{path}: {getattr(error, 'strerror', None) or error}"

    def _fetch(self, address: str) -> tuple[bytes, str | None]:
        if not self.allow_urls:
            return b"", f"{address}: a URL, and URLs are fetched only with {self.urls_option}"
        if is_offline():
            return b"", f"{address}: a URL, and HF_HUB_OFFLINE is set"
        try:
            return fetch_image(address), None
        except RefusedError as error:
            return b"", f"{address}: {error}"

    @staticmethod
    def _unpack(archive: str, member: str) -> tuple[bytes, str | None]:
        try:
            return read_member(archive, member), None
        except (OSError, ValueError) as error:
            return b"", f"{member}: {error}"

    def _is_in_data_set(self, path: str) -> bool:
        *archives, file = path.split("::")  # as in zip://image.jpg::/folder/images.zip
        if not all(archive.startswith("zip://") for archive in archives):
            return False
        if "://" in file:
            return self.hub_id is not None and file.startswith(f"hf://datasets/{self.hub_id}@")
        if self.folders is None:
            return not archives
        inside = os.path.normpath(file)
        return os.path.isabs(file) and any(Path(inside).is_relative_to(folder) for folder in self.folders)


def is_offline() -> bool:
    return constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE


def origin_of_folder(folder: Path, allow_urls: bool) -> Origin:
    return Origin((os.path.normpath(folder.absolute()), _unpacked()), None, allow_urls)


def origin_of_hub(hub_id: str, allow_urls: bool) -> Origin:
    cached = Path(constants.HF_HUB_CACHE) / f"datasets--{hub_id.replace('/', '--')}"
    return Origin((os.path.normpath(cached.absolute()), _unpacked()), hub_id, allow_urls)


def _unpacked() -> str:
    """The folder where `datasets` extracts archives and stores downloads."""
    return os.path.normpath(Path(datasets.config.DOWNLOADED_DATASETS_PATH).expanduser().absolute())


def check_card(name: str, folder: Path | None) -> None:
    """Rejects a dataset whose card refers to other folders or URLs for its rows.

    Args:
        name: Name of the dataset; its Hub id if it has no folder.
        folder: Its folder on this machine.

    Raises:
        RefusedError: Names the file.
    """
    for card in CARDS:
        path = folder / card if folder is not None else _card_of_hub(name, card)
        if path is None or not path.is_file():
            continue
        content = metadata_load(path) if path.suffix == ".md" else yaml.safe_load(path.read_bytes())
        configs = content.get("configs") if isinstance(content, dict) else None
        for file in _files_of(configs):
            if "://" in file or os.path.isabs(file) or ".." in Path(file).parts or file.startswith("~"):
                raise RefusedError(f"{name} is refused: its {card} places its rows in {file[:200]!r}, outside of it.")


def _card_of_hub(hub_id: str, card: str) -> Path | None:
    try:
        return Path(hf_hub_download(hub_id, card, repo_type="dataset"))
    except (HTTPError, OSError, ValueError):  # no card, or no connection, which `datasets` will report
        return None


def _files_of(content: Any, is_file: bool = False) -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _files_of(value, is_file or any(word in str(key) for word in ("file", "dir", "path")))
    elif isinstance(content, list):
        for value in content:
            yield from _files_of(value, is_file)
    elif is_file and isinstance(content, str):
        yield content


def check_saved(name: str, folder: Path) -> None:
    """Rejects a `save_to_disk` folder that refers to files in other folders.

    Raises:
        RefusedError: Names the file.
    """
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
    else:
        names = ["."]
    files = [each for each in names if each != "."]
    for split in [folder / each for each in names]:
        state = split / "state.json"
        if state.is_file():
            files += [each["filename"] for each in json.loads(state.read_bytes())["_data_files"]]
    for file in files:
        if Path(file).name != file or file == "..":
            raise RefusedError(
                f"{name} is refused: its state.json places its rows in {str(file)[:200]!r}, outside of it."
            )
