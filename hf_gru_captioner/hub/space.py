"""The demo as a Gradio Space on the Hub: app, package and checkpoint, side by side."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..files import GRAPHS_FOLDER, GRAPHS_SETTINGS
from .card import license_of
from .push import Content, files_of_checkpoint

PACKAGE = Path(__file__).parents[1]
DEMO_FOLDERS = (PACKAGE / "demo", PACKAGE.parent / "demo", PACKAGE.parent)  # in an installed package, a clone, a Space
LEFT_OUT = {"__pycache__", "pretrained", "demo"}  # the checkpoint is beside the package, not in it


def demo_folder() -> Path:
    """Folder with the demo's app.py, requirements, README header and examples.

    Raises:
        FileNotFoundError: This installation has none.
    """
    for folder in DEMO_FOLDERS:
        if (folder / "app.py").is_file():
            return folder
    raise FileNotFoundError(
        f"there is no demo (app.py) in {', '.join(map(str, DEMO_FOLDERS))}: install the package from its wheel."
    )


def example_images() -> list[Path]:
    """Example images of the demo; an empty list in an installation without the demo."""
    try:
        return sorted((demo_folder() / "examples").glob("*.jpg"))
    except FileNotFoundError:
        return []


def files_of_space(checkpoint: str | Path, card: Mapping[str, Content]) -> dict[str, Content]:
    """Path in the Space -> file or its content. The requirements include PyTorch only if the checkpoint has no graphs.

    Args:
        checkpoint: The folder.
        card: The checkpoint's card and its images, by path beside the weights.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing, or this installation has no demo.
        ValueError: A file is a link to outside the folder.
    """
    demo = demo_folder()
    header = (demo / "README.md").read_text()
    of_weights = json.dumps(license_of(checkpoint))  # the weights' license as a YAML string, whatever it contains
    header = re.sub("(?m)^license: .*$", lambda _: f"license: {of_weights}", header, count=1)
    requirements = (demo / "requirements.txt").read_text()
    published = files_of_checkpoint(checkpoint)
    if not _has_graphs(published):
        requirements += (demo / "requirements-torch.txt").read_text()
    files: dict[str, Content] = {"app.py": demo / "app.py", "requirements.txt": requirements.encode()}
    files["README.md"] = header.encode()
    files |= {f"checkpoint/{name}": content for name, content in card.items()}
    files |= {f"examples/{path.name}": path for path in sorted((demo / "examples").iterdir())}
    files |= {f"checkpoint/{name}": path for name, path in published.items()}
    for path in sorted(PACKAGE.rglob("*")):
        within = path.relative_to(PACKAGE)
        if path.is_file() and not LEFT_OUT & set(within.parts):
            files[f"{PACKAGE.name}/{within.as_posix()}"] = path
    return files


def _has_graphs(checkpoint: Mapping[str, Content]) -> bool:
    """Whether a checkpoint has float32 graphs, which are used by default."""
    settings = checkpoint.get(f"{GRAPHS_FOLDER}/{GRAPHS_SETTINGS}", b"{}")
    content = settings if isinstance(settings, bytes) else settings.read_bytes()
    return bool(json.loads(content).get("precision") == "float32")
