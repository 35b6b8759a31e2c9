"""A pretrained vision encoder to begin with: safetensors only, files of one commit, looked at before it is built."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from .captioning import WEIGHTS, _folder
from .checking import check_encoder, check_layers, read_json

INDEX = f"{WEIGHTS}.index.json"  # of weights in several files


def encoder_folder(name: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Folder of an encoder's files, fetched from the Hub where `name` is none.

    Args:
        name: Hub id or folder.
        revision, token: As in `AutoModel.from_pretrained`.

    Raises:
        FileNotFoundError: Nothing of that name.
        OSError: The Hub failed, fell silent or cut the line.
        ValueError: Not an encoder, weights that are no safetensors, or a damaged one.
    """
    location = {"revision": revision, "token": token}
    folder = _folder(name, ["config.json"], location)
    _check_config(name, folder / "config.json")
    files = ["config.json", "preprocessor_config.json", "processor_config.json", "model*.safetensors", INDEX]
    folder = _folder(name, files, {**location, "revision": folder.name})  # of the same commit
    try:
        _check_sizes(folder, _weights(name, folder))
    except (OSError, UnsafeWeightsError):
        raise
    except Exception as error:  # a damaged file raises whatever the library that reads it stumbles over
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the encoder {name} is damaged or its files don't fit together ({type(error).__name__}: {reason})."
        ) from error
    return folder


class UnsafeWeightsError(ValueError):
    """Weights in another format than safetensors."""


def _check_config(name: str, path: Path) -> None:
    """Refuses what would be built without end, before any other file is fetched or read."""
    if not path.is_file():
        raise ValueError(f"{name} is not an encoder: it has no config.json.")
    try:
        config = read_json(path)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not an encoder: its config.json can't be read.") from error
    check_layers(f"encoder {name}", config)
    # timm's configuration says by `pretrained_cfg` where its own weights come from, which are not asked for
    check_encoder(name, config)


def _weights(name: str, folder: Path) -> Sequence[Path]:
    """The files of weights, as transformers would choose them."""
    if (whole := folder / WEIGHTS).is_file():
        return [whole]
    names = []
    if (index := folder / INDEX).is_file():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    if not names or not all(each.endswith(".safetensors") and Path(each).name == each for each in names):
        raise UnsafeWeightsError(
            f"the encoder {name} has no weights as safetensors, and others are not loaded: a pickle can run any code. "
            "Load it where you trust it and save it with save_pretrained(), which writes safetensors."
        )
    return [folder / each for each in names]


def _check_sizes(folder: Path, weights: Sequence[Path]) -> None:
    """Refuses an encoder that its files are not of, before memory is taken for what they lack."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):  # which has sizes and no memory
        wanted = AutoModel.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
        ).state_dict()
    num_found = 0
    for path in weights:
        with safe_open(path, "np") as file:
            num_found += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118, no dict
    if sum(values.numel() for values in wanted.values()) > 2 * num_found:
        raise ValueError("the files lack most of its weights")
