"""Changes made by storing a caption, and the interface of storage places."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Change:
    """A change of one text in a file, made or planned.

    Args:
        file: The file.
        field: Name of the text, such as `"description"`.
        before: The old text; empty if there was none.
        after: The new text.
    """

    file: Path
    field: str
    before: str
    after: str


class Place(Protocol):
    """Where captions are stored, photo by photo."""

    def is_taken(self, photo: str) -> bool:
        """Whether it already has texts for this photo that must be kept, so that no caption is needed."""

    def keep(self, photo: str, captions: Sequence[str], dry_run: bool = False) -> list[Change]:
        """Stores a photo's captions, best first; with `dry_run` only returns the changes.

        Returns:
            The changes; empty if existing texts are kept.

        Raises:
            OSError: A file can't be read or written; it is unchanged.
            ValueError: This photo's captions can't be stored here; with the reason.
        """
