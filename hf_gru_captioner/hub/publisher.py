"""Publishes checkpoints in the background of a training run."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..errors import one_line, reason_of
from .card import render_card
from .push import check_name, files_of_checkpoint, push


class Publisher:
    """Publishes each new best checkpoint of a run in a thread, without delaying training or making it fail.

    Args:
        repo_id: `user/name` on the Hub.
        say: Called with a line about each upload.
    """

    def __init__(self, repo_id: str, say: Callable[[str], None]):
        check_name(repo_id)
        self.repo_id = repo_id
        self.say = say
        self._thread = ThreadPoolExecutor(1)
        self._newest: Future[None] | None = None

    def __call__(self, checkpoint: Path) -> None:
        """Reads the checkpoint now, since the next best one replaces it, and publishes it later, in place of one that
        is still waiting."""
        with self._reporting():
            contents = files_of_checkpoint(checkpoint).items()
            files = {path: each if isinstance(each, bytes) else each.read_bytes() for path, each in contents}
            files["README.md"] = str(render_card(checkpoint, self.repo_id)).encode()
            if self._newest is not None:
                self._newest.cancel()
            self._newest = self._thread.submit(self._push, files)

    def close(self) -> None:
        """Waits for the last upload."""
        self._thread.shutdown()

    def _push(self, files: dict[str, bytes]) -> None:
        with self._reporting():
            pushed = push(files, self.repo_id, message="Best checkpoint so far")
            self.say(f"published: {pushed.url}")

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Reports any error, which would end training here, or go unseen in the thread."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.say(f"not published: {one_line(error)}")
        except Exception as error:  # the client of the Hub raises errors of many kinds
            self.say(f"not published: {reason_of(error)}")
