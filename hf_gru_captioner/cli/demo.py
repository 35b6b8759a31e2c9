"""`gru-captioner demo`: a web page that captions images and shows the attention for each word."""

import argparse
import errno
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UsageError, counted, needs_extra
from ..files import GRAPHS_SETTINGS
from ..inference.backend import AUTO, PYTORCH

OWN = "shipped"  # name of the shipped checkpoint on the page
MAX_EXAMPLES = 50  # each is copied, and loaded with the page


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
    parser.add_argument("--images", nargs="+", help="example images, or folders of them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    _check_address(arguments.host, arguments.port)
    images = None if arguments.images is None else _examples(arguments.images)
    print("loading the page and its captioner ...", file=sys.stderr, flush=True)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with needs_extra("demo"):
        from ..web import ServicePool, serve
        from ..web.uploads import is_loopback

    from ..captioner import Captioner
    from ..checkpoint import SHIPPED_CHECKPOINT
    from ..hub import about_checkpoint, code_span, example_images, public_name
    from ..model import load_image

    paths = _by_name(arguments.checkpoints) or {OWN: None}
    first = Captioner.from_pretrained(next(iter(paths.values())))  # fails before the page is served
    loaded = {next(iter(paths)): first}
    pool = ServicePool(
        list(paths),
        lambda name: loaded.pop(name, None) or _load(paths, name),
        any_name=arguments.any_checkpoint,
    )
    about = []
    for name, path in paths.items():
        folder = SHIPPED_CHECKPOINT if path is None else Path(path)
        card = f"The model card of {code_span(name)} says what it knows, and its license."
        is_checkpoint = folder.is_dir() and not (folder / GRAPHS_SETTINGS).is_file()  # or on the Hub, or whole graphs
        about.append(about_checkpoint(folder, name) if is_checkpoint else card)
    is_local = is_loopback(arguments.host)

    def train_from(name: str) -> str | None:
        path = paths.get(name, name)
        return path if path is None else shlex.quote(path if is_local else public_name(path))

    serve(
        pool,
        load_image,
        host=arguments.host,
        port=arguments.port,
        examples=example_images() if images is None else images,
        about="\n\n".join(about),
        train_from=train_from,
    )
    return 0


def _by_name(checkpoints: Sequence[str]) -> dict[str, str | None]:
    """The checkpoints by their names on the page: Hub ids, names of folders, and of folders with the same name the part
    of the path in which they differ (`a` and `b` of `runs/a/checkpoint` and `runs/b/checkpoint`)."""
    reversed_parts: dict[tuple[str, ...], str] = {}
    for checkpoint in checkpoints:
        path = Path(os.path.abspath(checkpoint))
        reversed_parts.setdefault(path.parts[::-1] if path.is_dir() else (checkpoint,), checkpoint)
    named: dict[str, str | None] = {}
    for parts, checkpoint in reversed_parts.items():
        others = [other for other in reversed_parts if other[0] == parts[0] and other != parts and len(other) > 1]
        others = others if len(parts) > 1 else []  # a Hub id has no other name
        shared = min((_num_shared(parts, other) for other in others), default=0)
        needed = max((_num_shared(parts, other) for other in others), default=0) + 1
        name = "/".join(parts[shared:needed][::-1])
        while name in named:  # of a folder elsewhere, or a Hub id
            name = f"{name} ({len(named) + 1})"
        named[name] = checkpoint
    return named


def _num_shared(parts: Sequence[str], others: Sequence[str]) -> int:
    """How many parts two different paths, last part first, begin with in common."""
    return next(number for number, (part, other) in enumerate(zip(parts, others, strict=False)) if part != other)


def _check_address(host: str, port: int | None) -> None:
    """Checks that the page can be served at an address, before anything is loaded.

    Raises:
        UsageError: This machine has no such address, or the port can't be used.
    """
    if port is not None and not 0 < port < 1 << 16:
        raise UsageError(f"--port {port}: a port is a number from 1 to 65535.")
    try:
        # Gradio looks for a free port on this machine's own address, whatever the host.
        for name in (host, "127.0.0.1"):
            family, kind, _, _, address = socket.getaddrinfo(name.strip("[]"), port or 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"--port {port} is in use: choose another, or leave --port out for the next free one from 7860 on."
            ) from None
        if error.errno == errno.EACCES:
            raise UsageError(f"--port {port} is for administrators: choose one above 1023.") from None
        raise UsageError(
            f"--host {host} is not an address of this machine: 127.0.0.1 is for this machine alone, 0.0.0.0 for its "
            "network."
        ) from None


def _examples(named: Sequence[str]) -> list[Path]:
    """The images on a command line, and those in its folders.

    Raises:
        UsageError: One is not an image, there are none, or too many.
    """
    from ..untrusted_images import RefusedError, open_image, read_photo
    from .find_images import find_images

    found = find_images(named)
    paths = [*map(Path, found.paths)]
    if found.problems or not paths:
        deeper = (f"{name}: its photos are in folders inside it: name one of those." for name in found.deeper)
        raise UsageError(f"--images: {' '.join([*found.problems, *deeper])}")
    if len(paths) > MAX_EXAMPLES:
        raise UsageError(
            f"--images: {counted(len(paths), 'photo')}, but the page has room for {MAX_EXAMPLES}: name some."
        )
    for path in paths:
        try:
            open_image(read_photo(path))
        except FileNotFoundError:
            raise UsageError(f"--images {path}: there is no such file.") from None
        except (OSError, RefusedError) as error:
            reason = f"{error.strerror}." if isinstance(error, OSError) else str(error)
            raise UsageError(f"--images {path}: {reason}") from None
    return paths


def _load(paths: Mapping[str, str | None], name: str):
    """Loads a captioner; graphs of checkpoints named by visitors are not run, since they may be arbitrarily large."""
    from ..captioner import Captioner

    return Captioner.from_pretrained(paths.get(name, name), backend=AUTO if name in paths else PYTORCH)
