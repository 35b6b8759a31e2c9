"""`gru-captioner caption`: photos in, a line a photo out."""

import argparse
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .shell import BAD_INPUT, UsageError, needs_extra, one_line, positive, quiet_transformers


def add_command(commands) -> None:
    parser = commands.add_parser(
        "caption",
        help="write captions of photos",
        description="Writes a caption of each photo.",
        epilog="Exit code 0 when every photo was captioned, 2 when something could not be read.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="photo, address, folder of photos, or pattern ('*.jpg')"
    )
    parser.add_argument("--checkpoint", help="folder or Hub id; the checkpoint of the package when not given")
    parser.add_argument(
        "--json", action="store_true", help='one object a line: {"path", "caption", "score"} or {"path", "error"}'
    )
    parser.add_argument("--num-beams", type=positive, help="beams of the search; the checkpoint's own when not given")
    parser.add_argument("--num-captions", type=positive, default=1, help="captions of each photo, the best first")
    parser.add_argument("--batch-size", type=positive, default=16, help="photos captioned at once")
    parser.add_argument("--attention", type=Path, metavar="DIR", help="draw where the model looked, a PNG a photo")
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "openvino"),
        default="torch",
        help="what the model runs on; all but torch need the graphs of gru-captioner export (%(default)s)",
    )
    parser.add_argument("--graphs", help="folder of the graphs; onnx in the checkpoint when not given")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`gru-captioner caption`: prints a caption a photo, reports those that can't be read, goes on with the rest."""
    paths = list(_find_photos(arguments.paths))
    quiet_transformers()
    from tqdm import tqdm

    from ..captioning import Captioner

    with needs_extra(arguments.backend):
        captioner = Captioner.from_pretrained(arguments.checkpoint, backend=arguments.backend, graphs=arguments.graphs)
    generation = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
    beams = generation.get("num_beams", captioner.model.generation_config.num_beams or 1)
    if arguments.num_captions > beams:
        raise UsageError(
            f"{arguments.num_captions} captions of a photo need at least as many beams, found {beams}: add "
            f"--num-beams {arguments.num_captions}."
        )
    sheets: dict[str, Path] = {}
    if arguments.attention is not None:
        if captioner.model.config.attention_type == "none":
            raise UsageError("this checkpoint has no attention to draw: leave out --attention.")
        arguments.attention.mkdir(parents=True, exist_ok=True)
        sheets = _name_sheets(arguments.attention, paths)

    failures = 0
    progress = tqdm(
        total=len(paths), unit="photo", disable=len(paths) <= arguments.batch_size or not sys.stderr.isatty()
    )
    with progress:
        for start in range(0, len(paths), arguments.batch_size):
            batch = paths[start : start + arguments.batch_size]
            images, errors = _load_images(batch)
            captions = iter(
                captioner(list(images.values()), num_captions=arguments.num_captions, **generation) if images else []
            )
            for path in batch:
                if path in errors:
                    failures += 1
                    _report_failure(path, errors[path], arguments.json)
                    continue
                of_photo = next(captions)
                for each in of_photo:
                    _print_caption(path, each, arguments.json)
                if sheets:
                    _save_attention(sheets[path], images[path], of_photo[0])
            progress.update(len(batch))
    return BAD_INPUT if failures else 0


def _find_photos(patterns: Sequence[str]) -> Iterator[str]:
    """Files, addresses, the images in folders, and what patterns match, in order, each once."""
    from PIL import Image

    endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    found: dict[str, None] = {}
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))
        if not pattern:
            raise UsageError("an empty path: name a photo, a folder or a pattern.")
        if pattern.startswith(("http://", "https://")):
            found[pattern] = None
        elif path.is_dir():
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in endings and file.is_file())
            if not inside:
                raise UsageError(f"{pattern}: no images in this folder.")
            found.update(dict.fromkeys(inside))
        elif not path.exists() and glob.has_magic(pattern):
            matches = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not matches:
                raise UsageError(f"{pattern}: no file matches.")
            found.update(dict.fromkeys(matches))
        else:
            found[pattern] = None
    return iter(found)


def _load_images(paths: Sequence[str]):
    """Photos that can be read, and what is wrong with the others, both by path."""
    from ..model import load_image

    images, errors = {}, {}
    for path in paths:
        try:
            images[path] = load_image(path)
        except (OSError, ValueError) as error:
            errors[path] = one_line(error)
    return images, errors


def _print_caption(path: str, each, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": path, "caption": each.text, "score": round(each.score, 4)}, ensure_ascii=False))
    else:
        print(f"{path}: {each.text}")


def _report_failure(path: str, error: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": path, "error": error}, ensure_ascii=False))
    else:
        print(f"gru-captioner: {error}", file=sys.stderr)


def _name_sheets(folder: Path, paths: Sequence[str]) -> dict[str, Path]:
    """A file of its own for each photo, though two in different folders may have the same name."""
    sheets: dict[str, Path] = {}
    seen: Counter[str] = Counter()
    for path in paths:
        name = Path(path).name
        seen[name] += 1
        number = f".{seen[name]}" if seen[name] > 1 else ""
        sheets[path] = folder / f"{name}{number}.attention.png"
    return sheets


def _save_attention(target: Path, image, each) -> None:
    from ..visualization import draw_attention

    aside = target.with_suffix(".partial")
    draw_attention(image, each.words, each.attention).save(aside, format="PNG")
    aside.replace(target)
