"""`gru-captioner demo`: a page in the browser to caption photos and see where the model looks."""

import argparse
import os
from pathlib import Path

from .shell import needs_extra, quiet_transformers


def add_command(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="open a page to caption photos in",
        description="Serves a page on this machine. It fetches no fonts or scripts and sends nothing home.",
    )
    parser.add_argument("checkpoint", nargs="?", help="folder or Hub id; the checkpoint of the package when not given")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network (%(default)s)")
    parser.add_argument("--port", type=int, help="7860 or the next free one when not given")
    parser.add_argument("--photos", nargs="+", type=Path, help="example photos")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet_transformers()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with needs_extra("demo"):
        from ..web.page import serve

    from ..captioning import Captioner
    from ..hub import EXAMPLES
    from ..model import load_image

    photos = arguments.photos if arguments.photos is not None else sorted(EXAMPLES.glob("*.jpg"))
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    serve(captioner, load_image, photos=photos, host=arguments.host, port=arguments.port)
    return 0
