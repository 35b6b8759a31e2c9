"""A checkpoint or a Space onto the Hub: what goes there, checked before anything is sent, in one commit.

The Hub makes a commit whole or not at all, and large files are sent before it. So whatever breaks on the way, nothing
half is ever seen; the same command again sends only what is missing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, metadata_load
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .card import license_of
from .names import CODE, with_public_names
from .scores import SCORES, WEIGHTS
from .silence import not_for_ever

PUBLISHED = (
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *CODE,
    "training.json",
    SCORES,
)
MAY_LACK = ("generation_config.json", "training.json", SCORES)
EXAMPLE_PICTURES = "examples"  # folder of a card's pictures
OWN_CODE = (Path(__file__).parents[1] / "model").resolve()  # which the shipped checkpoint's links lead to, in a clone
GRAPHS = "onnx"  # folder that gru-captioner export writes into a checkpoint
GRAPH_FILES = re.compile(r"graphs\.json|tokenizer\.json|(encoder|step)\.(onnx|xml|bin)")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WITH_ORIGINS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "training.json",
)
STACK_TRACE = re.compile(rb'File "(?:/|[A-Za-z]:\\)')  # of the machine that a graph was exported on
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")  # an access token of the Hub

Content = Path | bytes


@dataclass(frozen=True)
class Pushed:
    """Where it went.

    Attributes:
        url: Of the commit, or of the pull request.
        revision: Hash of the commit.
    """

    url: str
    revision: str


def files_of_checkpoint(checkpoint: str | Path) -> dict[str, Content]:
    """What of a checkpoint's folder is for others: weights, settings, code, records, graphs. Nothing else is.

    Settings that name local paths are given as they are for others, without them.

    Raises:
        FileNotFoundError: Something that others need is not there.
        ValueError: A file of settings is damaged, a file is a link that leads outside of the folder, or graphs hold
            paths of the machine that they were exported on.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint} is no folder of a checkpoint.")
    missing = [name for name in PUBLISHED if name not in MAY_LACK and not (checkpoint / name).is_file()]
    pickles = sorted(path.name for path in checkpoint.iterdir() if path.suffix in PICKLES)
    if WEIGHTS in missing and pickles:
        raise FileNotFoundError(
            f"{checkpoint} has its weights as {pickles[0]}, a pickle, which can run any code when it is loaded and is "
            "not shared: load it where you trust it and save it with save_pretrained(), which writes safetensors."
        )
    if missing:
        raise FileNotFoundError(
            f"{checkpoint} lacks {', '.join(missing)}: save model and processor there with save_pretrained()."
        )
    graphs = sorted(path for path in (checkpoint / GRAPHS).glob("*") if GRAPH_FILES.fullmatch(path.name))
    paths = {name: checkpoint / name for name in PUBLISHED if (checkpoint / name).is_file()}
    own_files(checkpoint, paths | {path.name: path for path in graphs})
    files: dict[str, Content] = dict(paths)
    for name in set(WITH_ORIGINS) & paths.keys():
        content = paths[name].read_bytes()
        try:
            public = with_public_names(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{paths[name]} can't be read, it may be damaged: {error}.") from error
        files[name] = paths[name] if public == content else public
    for path in graphs:
        if STACK_TRACE.search(path.read_bytes()):
            raise ValueError(f"{path} holds paths of the machine that it was exported on: export the graphs again.")
    return files | {f"{GRAPHS}/{path.name}": path for path in graphs}


def card_of_checkpoint(checkpoint: str | Path) -> dict[str, Path] | None:
    """The card that lies in a checkpoint's folder, and its pictures; None where there is none.

    Raises:
        ValueError: A file is a link that leads outside of the folder, or the card says another licence than the
            weights' own.
    """
    checkpoint = Path(checkpoint)
    card = checkpoint / "README.md"
    if not card.is_file():
        return None
    pictures = sorted((checkpoint / EXAMPLE_PICTURES).glob("*.jpg"))
    files = {"README.md": card} | {f"{EXAMPLE_PICTURES}/{picture.name}": picture for picture in pictures}
    own_files(checkpoint, files)
    said = (metadata_load(card) or {}).get("license")
    if license_of(checkpoint) not in ("other", said):
        raise ValueError(
            f"{card} says license: {said}, and the weights are under {license_of(checkpoint)}, as config.json says: "
            "put that into the card, or write it anew with gru-captioner card."
        )
    return files


def own_files(folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """The same files, all of them of this folder: what a link leads to outside of it is not for others.

    Raises:
        ValueError: Names the first that is not.
    """
    homes = folder.resolve(), OWN_CODE
    for file in files.values():
        if not any(file.resolve().is_relative_to(home) for home in homes):
            raise ValueError(f"{file} is a link that leads outside of {folder}: nothing was sent. Put a copy there.")
    return files


def check_name(repo_id: str) -> None:
    """Refuses what the Hub has no repository of.

    Raises:
        ValueError: Says what a name is like.
    """
    try:
        validate_repo_id(repo_id)
        is_name = repo_id.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(
            f"{repo_id!r} is no name of a repository: it has the form user/name, of letters, digits and -, _ or . "
            "between them, 96 at most."
        )


def push(
    files: Mapping[str, Content],
    repo_id: str,
    *,
    kind: str = "model",
    message: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Pushed:
    """Publishes files in one commit, in a repository that is made if it is not there. Runs on one process.

    Args:
        files: Path in the repository -> file, or its content.
        repo_id: `user/name`.
        kind: `"model"`, or `"space"` for a Gradio Space.
        message: Of the commit.
        private: Of a repository that is made now; one that is there stays as it is.
        revision: Branch, made from the main one if it is not there.
        create_pr: Propose the commit instead of making it.
        token: Access token; the one that `hf auth login` keeps when not given.

    Raises:
        ValueError: A name that the Hub doesn't have, a repository that holds something else, a file that holds an
            access token.
        OSError: No token, no right, no network, or the Hub failed. Nothing half is published.
    """
    check_name(repo_id)
    for path, content in files.items():
        if SECRET.search(content if isinstance(content, bytes) else content.read_bytes()):
            raise ValueError(f"{path} holds an access token of the Hub: nothing was sent. Take it out, and revoke it.")
    if (token or get_token()) is None:
        raise OSError("no access token: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(token=token, library_name="hf_gru_captioner")
    with _plainly(repo_id), not_for_ever():
        _check_is_ours(api, repo_id, kind)
        api.create_repo(
            repo_id,
            repo_type=kind,
            private=private,
            exist_ok=True,
            space_sdk="gradio" if kind == "space" else None,
        )
        if revision is not None and not create_pr:
            api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            repo_type=kind,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )
    return Pushed(commit.pr_url or commit.commit_url, commit.oid)


def _check_is_ours(api: HfApi, repo_id: str, kind: str) -> None:
    """Refuses to write over a repository of something else."""
    try:
        present = set(api.list_repo_files(repo_id, repo_type=kind))
    except RepositoryNotFoundError:
        return
    if kind == "space":
        ours, is_ours = "Space of this demo", "hf_gru_captioner/hub/push.py" in present
    else:
        ours, is_ours = "GRU captioner", False
        if "config.json" in present:
            settings = json.loads(Path(api.hf_hub_download(repo_id, "config.json")).read_text())
            is_ours = settings.get("model_type") == "gru_captioner"
    if present - {".gitattributes", "README.md"} and not is_ours:
        raise ValueError(f"{repo_id} holds something else, no {ours}: take another name.")


@contextmanager
def _plainly(repo_id: str) -> Iterator[None]:
    """Says what went wrong in words for the person at the keyboard."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise OSError("the Hub is switched off by HF_HUB_OFFLINE: unset it to publish.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            reason = "it doesn't know the access token: run `hf auth login` again, or set HF_TOKEN"
        elif status == 403:
            reason = f"the access token may not write to {repo_id}: take one with that right, or a name of your own"
        else:
            reason = f"it failed with status {status} ({error.server_message or 'no reason given'}): try again later"
        raise OSError(f"the Hub refused, and nothing was published; {reason}.") from error
    except (HTTPError, ConnectionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, HTTPError):  # else: while uploading
            raise
        raise OSError(
            f"{constants.ENDPOINT} can't be reached or cut the line ({error}); nothing half was published. "
            "The same command again sends what is missing."
        ) from error
