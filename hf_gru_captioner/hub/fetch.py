"""A checkpoint from the Hub: its files of one commit, all of them before any is read.

transformers asks for file after file as it needs them, and takes some that can't be had just now for not being there;
then the captions are others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm

from .silence import not_for_ever


class PassingBar(tqdm):
    """A progress bar that is shown in a terminal only, and not any more when all is there."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **{"disable": None, **settings, "leave": False})


def fetch(
    repo_id: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    most_bytes: Mapping[str, int] | None = None,
) -> Path:
    """Folder of the files of a model repository, from the cache where they are; its name is the commit.

    Args:
        repo_id: `user/name`.
        files: Patterns of the paths that are wanted.
        revision: Branch, tag or commit; the main branch when not given.
        token: As in `huggingface_hub.snapshot_download`.
        most_bytes: How large files may be, by path; a repository with a larger one is not fetched from.

    Raises:
        ValueError: A file is too large.
        FileNotFoundError: No such repository or revision, for this user at least; or the Hub is switched off.
        OSError: The Hub failed, fell silent or cut the line.
    """
    try:
        with not_for_ever():
            if most_bytes and not constants.HF_HUB_OFFLINE:
                _check_sizes(HfApi(token=token), repo_id, revision, most_bytes)
            return Path(
                snapshot_download(
                    repo_id, allow_patterns=list(files), revision=revision, token=token, tqdm_class=PassingBar
                )
            )
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id} is neither a folder nor a model on the Hub.") from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{repo_id} asks its users for consent: give it on {constants.ENDPOINT}/{repo_id} and run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is neither a folder nor a model on the Hub; to have a private one, run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no revision {revision} on the Hub.") from error
    except (HTTPError, OSError) as error:
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            raise FileNotFoundError(
                f"{repo_id} is neither a folder nor whole in the cache, and the Hub is switched off by HF_HUB_OFFLINE."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{repo_id} can't be had from the Hub just now: try again ({reason})") from error


def _check_sizes(api: HfApi, repo_id: str, revision: str | None, most_bytes: Mapping[str, int]) -> None:
    try:
        entries = list(api.list_repo_tree(repo_id, revision=revision))
    except (HTTPError, OSError, HFValidationError):  # what is in the cache will do, or what fetches says why not
        return
    for entry in entries:
        most = most_bytes.get(entry.path)
        if isinstance(entry, RepoFile) and most is not None and entry.size > most:
            raise ValueError(f"{entry.path} of {repo_id} is larger than {most / 1e6:.0f} MB: it is not fetched.")
