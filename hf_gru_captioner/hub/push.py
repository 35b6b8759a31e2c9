"""Publishes a checkpoint or a Space on the Hub in one commit; files are checked before anything is sent.

The Hub's commits are atomic, and large files are uploaded first. So whatever fails, a partial commit is never visible;
running the same command again uploads only what is missing.
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

from ..files import CONFIG, GRAPHS_FOLDER, SCORES, TRAINING_RECORD, WEIGHTS
from .card import license_of
from .names import CODE, with_public_names
from .timeout import default_timeout

PUBLISHED = (
    CONFIG,
    "generation_config.json",
    WEIGHTS,
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    *CODE,
    TRAINING_RECORD,
    SCORES,
)
OPTIONAL = ("generation_config.json", TRAINING_RECORD, SCORES)
EXAMPLE_IMAGES = "examples"  # folder of a card's images
OWN_CODE = (Path(__file__).parents[1] / "model").resolve()  # target of the shipped checkpoint's symlinks in a clone
GRAPH_FILES = re.compile(r"graphs\.json|tokenizer\.json|(encoder|step)\.(onnx|xml|bin)")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WITH_ORIGINS = (
    CONFIG,
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    TRAINING_RECORD,
)
STACK_TRACE = re.compile(rb'File "(?:/|[A-Za-z]:\\)')  # contains paths of the machine that exported a graph
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")  # a Hub access token

Content = Path | bytes


@dataclass(frozen=True)
class Pushed:
    """A commit on the Hub.

    Attributes:
        url: URL of the commit or pull request.
        revision: Hash of the commit.
    """

    url: str
    revision: str


def files_of_checkpoint(checkpoint: str | Path) -> dict[str, Content]:
    """The files of a checkpoint to publish: weights, settings, code, records, graphs; nothing else.

    Local paths in settings are replaced by public names.

    Raises:
        FileNotFoundError: A file that is needed to load the checkpoint is missing.
        ValueError: A settings file is damaged, a file is a link to outside the folder, or graphs contain paths of the
            machine that exported them.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint} is not the folder of a checkpoint.")
    missing = [name for name in PUBLISHED if name not in OPTIONAL and not (checkpoint / name).is_file()]
    pickles = sorted(path.name for path in checkpoint.iterdir() if path.suffix in PICKLES)
    if WEIGHTS in missing and pickles:
        raise FileNotFoundError(
            f"{checkpoint} has its weights as {pickles[0]}, a pickle, which can run any code when it is loaded and is "
            "not published: load it where you trust it and save it with save_pretrained(), which writes safetensors."
        )
    if missing:
        raise FileNotFoundError(
            f"{checkpoint} lacks {', '.join(missing)}: save model and processor there with save_pretrained()."
        )
    graphs = sorted(path for path in (checkpoint / GRAPHS_FOLDER).glob("*") if GRAPH_FILES.fullmatch(path.name))
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
            raise ValueError(f"{path} contains paths of the machine that it was exported on: export the graphs again.")
    return files | {f"{GRAPHS_FOLDER}/{path.name}": path for path in graphs}


def card_of_checkpoint(checkpoint: str | Path) -> dict[str, Path] | None:
    """A checkpoint's model card and its images; None without a card.

    Raises:
        ValueError: A file is a link to outside the folder, or the card's license differs from the weights'.
    """
    checkpoint = Path(checkpoint)
    card = checkpoint / "README.md"
    if not card.is_file():
        return None
    images = sorted((checkpoint / EXAMPLE_IMAGES).glob("*.jpg"))
    files = {"README.md": card} | {f"{EXAMPLE_IMAGES}/{image.name}": image for image in images}
    own_files(checkpoint, files)
    stated = (metadata_load(card) or {}).get("license")
    if license_of(checkpoint) not in ("other", stated):
        raise ValueError(
            f"{card} states license: {stated}, but the weights are under {license_of(checkpoint)}, see config.json: "
            "correct the card, or write it again with gru-captioner card."
        )
    return files


def own_files(folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """The same files, after checking that none is a link to outside the folder.

    Raises:
        ValueError: Names the first such link.
    """
    allowed = folder.resolve(), OWN_CODE
    for file in files.values():
        if not any(file.resolve().is_relative_to(path) for path in allowed):
            raise ValueError(f"{file} is a link to outside of {folder}: nothing was sent. Put a copy there.")
    return files


def check_name(repo_id: str) -> None:
    """Checks that this is a valid repository name.

    Raises:
        ValueError: It is not.
    """
    try:
        validate_repo_id(repo_id)
        is_name = repo_id.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(
            f"{repo_id!r} is not a valid repository name: it has the form user/name, of letters, digits and -, _ or . "
            "between them, at most 96 characters."
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
    """Publish files in one commit, creating the repository if it doesn't exist. Runs on one process.

    Args:
        files: Path in the repository -> file or its content.
        repo_id: `user/name`.
        kind: `"model"`, or `"space"` for a Gradio Space.
        message: Commit message.
        private: Whether a new repository is private; an existing one is not changed.
        revision: Branch, created from the main branch if it doesn't exist.
        create_pr: Open a pull request instead.
        token: Access token; by default that of `hf auth login`.

    Raises:
        ValueError: An invalid name, a repository that contains something else, or a file with an access token.
        OSError: No token, no permission, no network, or the Hub failed. Nothing is partially published.
    """
    check_name(repo_id)
    for path, content in files.items():
        if SECRET.search(content if isinstance(content, bytes) else content.read_bytes()):
            raise ValueError(
                f"{path} contains an access token of the Hub: nothing was sent. Remove it from the file and revoke it."
            )
    if (token or get_token()) is None:
        raise OSError("no access token: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(token=token, library_name="hf_gru_captioner")
    with _one_line_errors(repo_id), default_timeout():
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
    """Refuse to overwrite a repository that contains something else."""
    try:
        present = set(api.list_repo_files(repo_id, repo_type=kind))
    except RepositoryNotFoundError:
        return
    if kind == "space":
        ours, is_ours = "Space of this demo", "hf_gru_captioner/hub/push.py" in present
    else:
        ours, is_ours = "GRU captioner", False
        if CONFIG in present:
            settings = json.loads(Path(api.hf_hub_download(repo_id, CONFIG)).read_text())
            is_ours = settings.get("model_type") == "gru_captioner"
    if present - {".gitattributes", "README.md"} and not is_ours:
        raise ValueError(f"{repo_id} contains something else, not a {ours}: choose another name.")


@contextmanager
def _one_line_errors(repo_id: str) -> Iterator[None]:
    """Turns the Hub's errors into one line that says what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise OSError("HF_HUB_OFFLINE is set: unset it to publish.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            reason = "the access token is not valid: run `hf auth login` again, or set HF_TOKEN"
        elif status == 403:
            reason = (
                f"the access token has no write permission for {repo_id}: use one that has, or a repository of your own"
            )
        else:
            reason = f"status {status} ({error.server_message or 'no reason given'}): try again later"
        raise OSError(f"the Hub refused, and nothing was published: {reason}.") from error
    except (HTTPError, ConnectionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, HTTPError):  # not a failed upload
            raise
        raise OSError(
            f"{constants.ENDPOINT} can't be reached or closed the connection ({error}); nothing was published in part. "
            "Run the same command again: it uploads only what is missing."
        ) from error
