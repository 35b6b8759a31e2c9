"""The demo as a Gradio Space of the Hub: the page, this package and a checkpoint, side by side."""

from pathlib import Path

from .push import Content, files_of_checkpoint

PACKAGE = Path(__file__).parents[1]
# Where the demo lies: in an installed package, in a clone, in a Space.
PLACES = (PACKAGE / "demo", PACKAGE.parent / "demo", PACKAGE.parent)
DEMO = next(folder for folder in PLACES if (folder / "app.py").is_file())
EXAMPLES = DEMO / "examples"
LEFT_OUT = {"__pycache__", "pretrained", "demo"}  # the checkpoint lies beside the package, not in it


def files_of_space(checkpoint: str | Path) -> dict[str, Content]:
    """Path in the Space -> file or its content. The Space needs nothing but what its requirements.txt names.

    Raises:
        FileNotFoundError: The checkpoint's folder lacks something.
    """
    files: dict[str, Content] = {
        path.name: path for path in (DEMO / "app.py", DEMO / "README.md", DEMO / "requirements.txt")
    }
    files |= {f"examples/{path.name}": path for path in sorted(EXAMPLES.iterdir())}
    files |= {f"checkpoint/{name}": path for name, path in files_of_checkpoint(checkpoint).items()}
    for path in sorted(PACKAGE.rglob("*")):
        within = path.relative_to(PACKAGE)
        if path.is_file() and not LEFT_OUT & set(within.parts):
            files[f"{PACKAGE.name}/{within.as_posix()}"] = path
    return files
