"""What keeping a caption changes, and what each place to keep it in can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Change:
    """One text in one file, written or about to be.

    Args:
        file: The file.
        field: Which of its texts, such as `"description"`.
        before: What was there; empty if nothing was.
        after: What is there now.
    """

    file: Path
    field: str
    before: str
    after: str


class Place(Protocol):
    """Where the captions of photos are kept, one photo at a time."""

    def is_taken(self, photo: str) -> bool:
        """Whether it has texts for this photo already, which are to stay: no caption is needed then."""

    def keep(self, photo: str, captions: Sequence[str], dry_run: bool = False) -> list[Change]:
        """Writes captions of a photo, the best first; with `dry_run` only tells what that would change.

        Returns:
            The changes; none where texts are there that stay.

        Raises:
            OSError: A file can't be read or written; it is as it was.
            ValueError: The place can't take captions of this photo; says why.
        """
