"""`gru-captioner demo`: a web page that captions images and shows the attention for each word."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import needs_extra
from ..inference.backend import AUTO, PYTORCH

OWN = "shipped"  # name of the shipped checkpoint on the page


def add_command(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="caption images in the browser",
        description="Serves a web page on this machine. It fetches no fonts or scripts and sends no telemetry.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="folders or Hub ids to choose from (the package's checkpoint)",
    )
    parser.add_argument(
        "--any-checkpoint",
        action="store_true",
        help="let visitors load any folder on this machine or Hub id: for your own use, not for the public web",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address; 0.0.0.0 opens the page to the network (%(default)s)"
    )
    parser.add_argument("--port", type=int, help="port (7860 or the next free one)")
    parser.add_argument("--images", nargs="+", type=Path, help="example images")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    print("loading the page and its captioner ...", file=sys.stderr, flush=True)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with needs_extra("demo"):
        from ..web import ServicePool, serve

    from ..captioner import Captioner
    from ..checkpoint import SHIPPED_CHECKPOINT
    from ..hub import about_checkpoint, code_span, example_images, public_name
    from ..model import load_image

    paths = {(Path(name).name if Path(name).is_dir() else name): name for name in arguments.checkpoints} or {OWN: None}
    first = Captioner.from_pretrained(next(iter(paths.values())))  # fails before the page is served
    loaded = {next(iter(paths)): first}
    pool = ServicePool(
        list(paths),
        lambda name: loaded.pop(name, None) or _load(paths, name),
        any_name=arguments.any_checkpoint,
    )
    images = arguments.images if arguments.images is not None else example_images()
    about = []
    for name, path in paths.items():
        folder = SHIPPED_CHECKPOINT if path is None else Path(path)
        card = f"The model card of {code_span(name)} says what it knows, and its terms."
        about.append(about_checkpoint(folder, name) if folder.is_dir() else card)
    first_path = next(iter(paths.values()))
    serve(
        pool,
        load_image,
        host=arguments.host,
        port=arguments.port,
        examples=images,
        about="\n\n".join(about),
        train_from=None if first_path is None else shlex.quote(public_name(first_path)),
    )
    return 0


def _load(paths: Mapping[str, str | None], name: str):
    """Loads a captioner; graphs of checkpoints named by visitors are not run, since they may be arbitrarily large."""
    from ..captioner import Captioner

    return Captioner.from_pretrained(paths.get(name, name), backend=AUTO if name in paths else PYTORCH)
