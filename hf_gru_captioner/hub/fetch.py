"""Downloads a checkpoint from the Hub: all files from a single commit, before any is read.

transformers requests files one by one as needed, and treats some failed downloads as missing files, which changes the
captions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

from ..errors import brief
from .timeout import default_timeout


class TransientBar(tqdm):
    """A progress bar that is only shown in a terminal, and removed at the end."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"disable": None, **settings, "leave": False})  # type: ignore[no-untyped-call]


def fetch(
    repo_id: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    max_bytes: Mapping[str, int] | None = None,
) -> Path:
    """Return the folder of a model repository's files, downloaded or cached; the folder's name is the commit.

    Args:
        repo_id: `user/name`.
        files: Patterns of the paths to download.
        revision: Branch, tag or commit; by default the main branch.
        token: As in `huggingface_hub.snapshot_download`.
        max_bytes: Maximum file sizes by path; nothing is downloaded from a repository that exceeds one.

    Raises:
        ValueError: A file is too large.
        FileNotFoundError: No such repository or revision, or no access to it; or HF_HUB_OFFLINE is set.
        OSError: The Hub failed, timed out or closed the connection.
    """
    try:
        with default_timeout():
            if max_bytes and not constants.HF_HUB_OFFLINE:
                _check_sizes(HfApi(token=token), repo_id, revision, max_bytes)
            return Path(
                snapshot_download(
                    repo_id, allow_patterns=list(files), revision=revision, token=token, tqdm_class=TransientBar
                )
            )
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id} is neither a folder nor a model on the Hub.") from error
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{repo_id} is gated: accept its terms on {constants.ENDPOINT}/{repo_id} and run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is neither a folder nor a model on the Hub; if it is private, run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no revision {revision} on the Hub.") from error
    except (HTTPError, OSError) as error:
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            raise FileNotFoundError(
                f"{repo_id} is neither a folder nor complete in the cache, and HF_HUB_OFFLINE is set."
            ) from error
        raise OSError(f"{repo_id} can't be downloaded from the Hub: try again ({brief(error)})") from error


def _check_sizes(api: HfApi, repo_id: str, revision: str | None, max_bytes: Mapping[str, int]) -> None:
    try:
        entries = list(api.list_repo_tree(repo_id, revision=revision))
    except (HTTPError, OSError, HFValidationError):  # the cache may suffice, or the download fails with the reason
        return
    for entry in entries:
        limit = max_bytes.get(entry.path)
        if isinstance(entry, RepoFile) and limit is not None and entry.size > limit:
            raise ValueError(f"{entry.path} of {repo_id} is larger than {limit / 1e6:.0f} MB: it is not downloaded.")
