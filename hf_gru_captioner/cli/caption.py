"""`gru-captioner caption`: images in, one line per image out."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import UsageError, one_line
from ..files import MAX_NAME, atomic_path
from .caption_lines import LinesFile
from .find_images import find_images
from .shell import BAD_INPUT, add_backend, positive, say_what_runs


def add_command(commands) -> None:
    parser = commands.add_parser(
        "caption",
        help="caption images",
        description="Writes a caption of each image.",
        epilog="Exit code 0 if every image was captioned, 2 if something could not be read. Several processes "
        "(torchrun --nproc_per_node 2 scripts/caption.py) share the images.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, URL, folder of images, or pattern ('*.jpg')")
    parser.add_argument("--checkpoint", help="folder or Hub id (the checkpoint of the package)")
    parser.add_argument(
        "--json",
        action="store_true",
        help='one object per line: {"path", "caption", "score", "backend"} or {"path", "error"}',
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write these objects to a file instead; the same command resumes where a killed one stopped",
    )
    parser.add_argument("--num-beams", type=positive, help="beams of the search (the checkpoint's setting)")
    parser.add_argument("--num-captions", type=positive, default=1, help="captions per image, best first (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images captioned at once (%(default)s)")
    parser.add_argument("--attention", type=Path, metavar="DIR", help="draw the attention to each word, one PNG each")
    add_backend(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`gru-captioner caption`: prints captions, reports images that can't be read and goes on with the rest.

    Runs on every process; each captions its share, the first one merges their files.
    """
    paths = list(find_images(arguments.paths))
    processes = _Processes(arguments.output)
    # Where there is nothing to caption, it is said at once, before anything is loaded.
    captioner = _load_captioner(arguments) if any(map(_may_exist, paths)) else None
    if captioner and arguments.num_captions > (arguments.num_beams or captioner.num_beams):
        raise UsageError(
            f"{arguments.num_captions} captions per image need at least as many beams, found "
            f"{arguments.num_beams or captioner.num_beams}: add --num-beams {arguments.num_captions}."
        )
    drawings: dict[str, Path] = {}
    if captioner and arguments.attention is not None:
        if not captioner.has_attention:
            raise UsageError("this checkpoint has no attention to draw: leave out --attention.")
        arguments.attention.mkdir(parents=True, exist_ok=True)
        drawings = _drawing_paths(arguments.attention, paths)
    if arguments.output is None:
        failures = sum("error" in records[0] for _, records in _caption(captioner, paths, drawings, arguments))
        return BAD_INPUT if failures else 0

    file = LinesFile(arguments.output, processes.rank, arguments.num_captions)
    processes.wait()  # all have read what there was
    share = [path for path in paths if path not in file.lines][processes.rank :: processes.count]
    try:
        for path, records in _caption(captioner, share, drawings, arguments):
            file.write(path, records)
    finally:
        file.close()
    processes.wait()
    if processes.rank:
        return 0
    lines = file.gather(paths)
    failures = sum("error" in lines[path][0] for path in paths)
    print(f"written: {arguments.output}, {len(paths)} images, {failures} of them could not be read")
    return BAD_INPUT if failures else 0


def _load_captioner(arguments: argparse.Namespace):
    from ..captioner import Captioner

    captioner = Captioner.from_pretrained(arguments.checkpoint, backend=arguments.backend, graphs=arguments.graphs)
    if arguments.verbose:
        say_what_runs(captioner, arguments.num_captions, **_generation(arguments))
    return captioner


def _generation(arguments: argparse.Namespace) -> dict[str, int]:
    """Settings of generate()."""
    return {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}


def _may_exist(path: str) -> bool:
    return path.startswith(("http://", "https://")) or os.path.exists(os.path.expanduser(path))


def _caption(captioner, paths: Sequence[str], drawings: dict[str, Path], arguments) -> Iterator[tuple[str, list[dict]]]:
    """Path and records of each image; prints them unless they go to a file, and draws the attention if asked to."""
    from tqdm import tqdm

    from ..inference.prefetch import caption_all

    generation = _generation(arguments)
    backend = captioner and captioner.backend_for(arguments.num_captions, **generation)
    results = (
        map(_why_missing, paths)
        if captioner is None
        else caption_all(
            captioner, paths, num_captions=arguments.num_captions, batch_size=arguments.batch_size, **generation
        )
    )
    is_quiet = len(paths) <= arguments.batch_size or not sys.stderr.isatty()
    for path, result in zip(paths, tqdm(results, total=len(paths), unit="image", disable=is_quiet), strict=True):
        if isinstance(result, Exception):
            records = [{"path": path, "error": one_line(result)}]
        else:
            records = [
                {"path": path, "caption": each.text, "score": round(each.score, 4), "backend": backend}
                for each in result
            ]
            image = _read_again(path) if drawings else None
            if isinstance(image, Exception):
                records = [{"path": path, "error": one_line(image)}]
            elif image is not None:
                _save_attention(drawings[path], image, result[0])
        if arguments.output is None:
            for record in records:
                _print(record, arguments.json)
        yield path, records


class _Processes:
    """The processes that `accelerate launch` has started, or this one alone, which then doesn't import torch."""

    def __init__(self, output: Path | None):
        self.rank, self.count = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1:
            if output is None:
                raise UsageError("several processes would not print their lines in order: add --output FILE.")
            from accelerate import PartialState

            self._state = PartialState(cpu=True)
            self.rank = self._state.process_index

    def wait(self) -> None:
        if self.count > 1:
            self._state.wait_for_everyone()


def _print(record: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    elif "error" in record:
        print(f"gru-captioner: {record['error']}", file=sys.stderr)
    else:
        path = record["path"]
        print(f"{path if path.isprintable() else repr(path)[1:-1]}: {record['caption']}")


def _drawing_paths(folder: Path, paths: Sequence[str]) -> dict[str, Path]:
    """A file for each image; two images in different folders may have the same name."""
    drawings: dict[str, Path] = {}
    seen: Counter[str] = Counter()
    for path in paths:
        name = os.fsdecode(os.fsencode(Path(path).name)[:MAX_NAME])
        seen[name] += 1
        number = f".{seen[name]}" if seen[name] > 1 else ""
        drawings[path] = folder / f"{name}{number}.attention.png"
    return drawings


def _read_again(path: str):
    """The image in its original proportions, or the error if it can no longer be read."""
    from ..model import load_image

    try:
        return load_image(path)
    except (OSError, ValueError) as error:
        return error


def _why_missing(path: str) -> Exception:
    error = _read_again(path)
    return error if isinstance(error, Exception) else FileNotFoundError(f"{path}: no such file.")


def _save_attention(target: Path, image, caption) -> None:
    from ..visualization import draw_attention

    with atomic_path(target) as temporary:
        draw_attention(image, caption.words, caption.attention).save(temporary, format="PNG")
