"""The demo as a Gradio Space of the Hub: the page, this package and a checkpoint, side by side."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from .card import license_of
from .push import Content, files_of_checkpoint

PACKAGE = Path(__file__).parents[1]
# Where the demo lies: in an installed package, in a clone, in a Space.
PLACES = (PACKAGE / "demo", PACKAGE.parent / "demo", PACKAGE.parent)
DEMO = next(folder for folder in PLACES if (folder / "app.py").is_file())
EXAMPLES = DEMO / "examples"
LEFT_OUT = {"__pycache__", "pretrained", "demo"}  # the checkpoint lies beside the package, not in it


def files_of_space(checkpoint: str | Path, card: Mapping[str, Content]) -> dict[str, Content]:
    """Path in the Space -> file, or its content. The Space needs nothing but what its requirements.txt names.

    Args:
        checkpoint: The folder.
        card: The checkpoint's card and its pictures, by path beside the weights.

    Raises:
        FileNotFoundError: The checkpoint's folder lacks something.
        ValueError: A file is a link that leads outside of the folder.
    """
    header = (DEMO / "README.md").read_text()
    licence = json.dumps(license_of(checkpoint))  # that of the weights; whatever it says, one string of YAML
    header = re.sub("(?m)^license: .*$", lambda _: f"license: {licence}", header, count=1)
    files: dict[str, Content] = {path.name: path for path in (DEMO / "app.py", DEMO / "requirements.txt")}
    files["README.md"] = header.encode()
    files |= {f"checkpoint/{name}": content for name, content in card.items()}
    files |= {f"examples/{path.name}": path for path in sorted(EXAMPLES.iterdir())}
    files |= {f"checkpoint/{name}": path for name, path in files_of_checkpoint(checkpoint).items()}
    for path in sorted(PACKAGE.rglob("*")):
        within = path.relative_to(PACKAGE)
        if path.is_file() and not LEFT_OUT & set(within.parts):
            files[f"{PACKAGE.name}/{within.as_posix()}"] = path
    return files
