"""`gru-captioner demo`: a page in the browser to caption photos and see where the model looks."""

import argparse
import os
from pathlib import Path

from ..errors import needs_extra
from .shell import quiet_transformers

OWN = "shipped"  # name of the shipped checkpoint on the page


def add_command(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="open a page to caption photos in",
        description="Serves a page on this machine. It fetches no fonts or scripts and sends nothing home.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="folders or Hub ids to choose from; the checkpoint of the package when none is given",
    )
    parser.add_argument(
        "--any-checkpoint",
        action="store_true",
        help="let visitors name any folder of this machine or Hub id: for your own machine, not for the open web",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network (%(default)s)")
    parser.add_argument("--port", type=int, help="7860 or the next free one when not given")
    parser.add_argument("--photos", nargs="+", type=Path, help="example photos")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet_transformers()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with needs_extra("demo"):
        from ..web import ServicePool, serve

    from ..captioner import Captioner
    from ..hub import example_images
    from ..model import load_image

    places = {(Path(name).name if Path(name).is_dir() else name): name for name in arguments.checkpoints} or {OWN: None}
    first = Captioner.from_pretrained(next(iter(places.values())))  # what can't be loaded is said before it is served
    loaded = {next(iter(places)): first}
    pool = ServicePool(
        list(places),
        lambda name: loaded.pop(name, None) or Captioner.from_pretrained(places.get(name, name)),
        any_name=arguments.any_checkpoint,
    )
    photos = arguments.photos if arguments.photos is not None else example_images()
    serve(pool, load_image, examples=photos, host=arguments.host, port=arguments.port)
    return 0
