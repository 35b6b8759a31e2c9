"""Expands the paths of a command line into images."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import UsageError


def find_images(patterns: Sequence[str]) -> Iterator[str]:
    """Files, URLs, the images in folders, and what patterns match, in order, without duplicates."""
    from PIL import Image

    endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    found: dict[str, None] = {}
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))
        if not pattern:
            raise UsageError("an empty path: name an image, a folder or a pattern.")
        if pattern.startswith(("http://", "https://")):
            found[pattern] = None
        elif os.path.isdir(path):  # never raises, whatever the name: the error comes when the image is loaded
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in endings and file.is_file())
            if not inside:
                raise UsageError(f"{pattern}: no images in this folder.")
            found.update(dict.fromkeys(inside))
        elif not os.path.exists(path) and glob.has_magic(pattern):
            matches = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not matches:
                raise UsageError(f"{pattern}: no file matches.")
            found.update(dict.fromkeys(matches))
        else:
            found[pattern] = None
    return iter(found)
