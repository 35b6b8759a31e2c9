"""Options for reading a source of captioned images, and their names in messages."""

from dataclasses import dataclass

from .tables import ChosenColumns


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading a source.

    Raises:
        ValueError: `max_skipped` is not from 0 to 1.
    """

    images: str | None = None
    """Folder of the images that a caption file refers to; None to search beside the file."""
    image_column: str | None = None
    """Column with the images; None to recognize it by its name."""
    caption_column: str | None = None
    """Column with the captions, or several separated by commas; None to recognize them by their names."""
    max_skipped: float = 0.01
    """Fraction of the rows that may be skipped."""
    allow_urls: bool = False
    """Fetch images by their URLs."""
    spelling: str = "{}"
    """How an option is typed, with `{}` for its name: `--data.{}` on the command line, where names have dashes."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_skipped <= 1:
            raise ValueError(f"{self.called('max_skipped')} must be from 0 to 1, found {self.max_skipped}.")

    @property
    def columns(self) -> ChosenColumns:
        return ChosenColumns(self.image_column, self.caption_column)

    def called(self, option: str) -> str:
        """An option's name as typed."""
        on_command_line = self.spelling.startswith("--")
        return self.spelling.format(option.replace("_", "-") if on_command_line else option)

    def setting(self, option: str, value: object = "") -> str:
        """An option with a value as typed; without a value, a Python argument ends in `=`."""
        if value == "":
            return self.called(option) + "=" * (self.spelling == "{}")
        between = " " if self.spelling.startswith("--") else "="
        return f"{self.called(option)}{between}{value}"
