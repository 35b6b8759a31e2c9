"""`gru-captioner caption`: captions images; prints captions, writes them to a file, or stores them with the photos."""

import argparse
import heapq
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError, counted, one_line
from ..files import atomic_path, distinct_names
from .shell import BAD_INPUT, add_backend, beams, positive, say_what_runs

if TYPE_CHECKING:
    from ..library.caption_file import Standing
    from .find_images import Found

Item = TypeVar("Item")

TXT, XMP, METADATA = "txt", "xmp", "metadata"  # choices of --write
TO_LOOK_AT = 20  # captions below --min-score to list


def add_command(commands) -> None:
    parser = commands.add_parser(
        "caption",
        help="caption images",
        description="Captions images.",
        epilog="Exit code 0 if every image was captioned, 2 if something could not be read. Several processes "
        "(torchrun --nproc_per_node 2 scripts/caption.py) share the images.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image, URL, folder of images, or pattern ('*.jpg')")
    parser.add_argument("--recursive", action="store_true", help="include subfolders")
    parser.add_argument("--checkpoint", help="folder or Hub id (the package's checkpoint)")
    parser.add_argument("--num-beams", type=beams, help="number of beams (the checkpoint's setting)")
    parser.add_argument("--num-captions", type=positive, default=1, help="captions per image, best first (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=16, help="images per batch (%(default)s)")
    add_backend(parser)

    text = parser.add_argument_group("the text")
    text.add_argument("--begin", default="", metavar="WORDS", help="words that each caption starts with and continues")
    text.add_argument("--prefix", default="", metavar="TEXT", help="text to prepend to each caption")
    text.add_argument("--suffix", default="", metavar="TEXT", help="text to append to each caption")
    text.add_argument(
        "--min-score",
        type=float,
        metavar="SCORE",
        help="list captions that score lower, worst first, and don't --write them (scores are at most 0)",
    )

    kept = parser.add_argument_group("where captions go")
    kept.add_argument(
        "--json",
        action="store_true",
        help='one object per line: {"path", "caption", "score", "backend"} or {"path", "error"}',
    )
    kept.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write to a .jsonl, .csv or .parquet file; the same command resumes a killed one, retries what could not "
        "be read, and captions changed photos again",
    )
    kept.add_argument(
        "--write",
        action="append",
        choices=[TXT, XMP, METADATA],
        default=[],
        help="store captions with the photos: photo.txt, photo.jpg.xmp, or the photo's own metadata; may be repeated",
    )
    existing = kept.add_mutually_exclusive_group()
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing texts, and captions in --output made with other settings",
    )
    existing.add_argument("--append", action="store_true", help="add captions to existing text files")
    kept.add_argument("--dry-run", action="store_true", help="show what --write would change, and write nothing")
    kept.add_argument("--attention", type=Path, metavar="DIR", help="draw attention maps, a PNG per image")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints or stores captions; images that can't be read are reported and skipped.

    Runs on every process; each captions a shard, the first one merges their files.
    """
    from .find_images import find_images

    _check(arguments)
    found = find_images(arguments.paths, arguments.recursive)
    processes = _Processes(arguments.output)
    printer = _Printer(processes.rank)
    for line in found.problems if not processes.rank else []:
        printer.problem(line)
    succeeded = not (found.problems or found.left_out)
    if any(map(_may_exist, found.paths)) or (found.paths and _has_file(arguments)):  # which has a row for each failure
        succeeded &= _caption_found(arguments, found, processes, printer)
    else:  # report right away, before anything is loaded
        for path in found.paths:
            printer.row({"path": path, "error": one_line(_read_again(path))}, arguments.json)
        succeeded &= not found.paths
    for line in found.summary() if not processes.rank else []:
        printer.problem(line)
    return 0 if succeeded else BAD_INPUT


def _check(arguments: argparse.Namespace) -> None:
    if arguments.dry_run and not arguments.write:
        raise UsageError("--dry-run shows what --write would change: add --write txt, xmp or metadata.")
    if arguments.json and (arguments.output or arguments.dry_run):
        other = "--dry-run" if arguments.dry_run else "--output"
        raise UsageError(f"--json prints captions, and {other} prints none: omit one of them.")
    if arguments.append and arguments.write != [TXT]:
        raise UsageError("--append adds lines to text files: use it with --write txt alone.")


def _has_file(arguments: argparse.Namespace) -> bool:
    return arguments.output is not None and not arguments.dry_run


def _caption_found(arguments: argparse.Namespace, found: "Found", processes: "_Processes", printer: "_Printer") -> bool:
    """Whether all images could be read and all texts be written."""
    from ..library.caption_file import CaptionFile

    # Raises before any work is done.
    file = CaptionFile(arguments.output, processes.rank) if _has_file(arguments) else None
    try:
        run = _Run(arguments, found.paths, file, processes, printer)
        return run.to_file() if file is not None else run.to_screen()
    except KeyboardInterrupt:
        if file is not None:
            printer.problem("stopped; the same command resumes from here")
        raise
    finally:
        if file is not None:
            file.close()


class _Run:
    """A run of the command on its images."""

    def __init__(self, arguments, paths: Sequence[str], file, processes: "_Processes", printer: "_Printer"):
        self._arguments, self._paths, self._file = arguments, paths, file
        self._processes, self._printer = processes, printer
        self._places = _places(arguments, paths)
        self._captioner = _load_captioner(arguments)
        num_beams = arguments.num_beams or self._captioner.num_beams
        if arguments.num_captions > num_beams:
            raise UsageError(
                f"{arguments.num_captions} captions per image need at least as many beams, found {num_beams}: "
                f"add --num-beams {arguments.num_captions}."
            )
        self._backend = self._captioner.backend_for(arguments.num_captions, **_generation(arguments))
        self._drawings: dict[str, Path] = {}
        if arguments.attention is not None and not arguments.dry_run:
            if not self._captioner.has_attention:
                raise UsageError("this checkpoint has no attention to draw: omit --attention.")
            arguments.attention.mkdir(parents=True, exist_ok=True)
            self._drawings = _drawing_paths(arguments.attention, paths)
        self._made_by = _made_by(self._captioner, num_beams, arguments)
        self._kept = _Kept()
        self._low: list[tuple[float, str, str]] = []  # heap of the worst captions below --min-score
        self._num_low = 0

    def to_screen(self) -> bool:
        wanted = self._paths
        if self._arguments.dry_run and self._arguments.output is not None:
            wanted = self._keep_earlier()
        elif self._places and not self._arguments.dry_run:
            checked = self._with_bar(self._paths, self._paths, "looking for texts")
            wanted = [path for path in checked if not all(place.is_taken(path) for place in self._places)]
            self._kept.num_taken += len(self._paths) - len(wanted)
        failures = 0
        for path, rows in self._captioned(wanted):
            failures += "error" in rows[0]
            if not self._arguments.dry_run:
                for row in rows:
                    self._printer.row(row, self._arguments.json)
            elif "error" in rows[0]:
                self._printer.problem(rows[0]["error"])
            self._keep(path, rows)
        self._summarize()
        return not failures and not self._kept.num_refused

    def _keep_earlier(self) -> list[str]:
        """On a dry run, shows what would become of the captions in --output; returns the photos without one."""
        from ..library.caption_file import CaptionFile

        with closing(CaptionFile(self._arguments.output, reads_only=True)) as file:
            file.collect()
            standing = file.open(self._paths, self._made_by)
            self._refuse_others(standing)
            for path in self._paths:
                if path in standing.done:
                    self._keep(path, file.rows(path))
        return [path for path in self._paths if path not in standing.done]

    def _refuse_others(self, standing: "Standing") -> None:
        if standing.others and not self._arguments.overwrite:
            raise UsageError(
                f"{self._arguments.output} has captions of {standing.others:,} of these images by {standing.made_by}; "
                f"now it would be {self._made_by}. Name another file, or add --overwrite to caption them again."
            )

    def to_file(self) -> bool:
        file, processes = self._file, self._processes
        if not processes.rank:
            file.collect()
        processes.wait()  # until the earlier results are merged
        standing = file.open(self._paths, self._made_by, self._is_drawn)
        processes.wait()
        self._refuse_others(standing)
        if not processes.rank and (standing.done or standing.changed or standing.failed):
            self._printer.line(
                f"resuming: {len(standing.done):,} of {len(self._paths):,} images are captioned; "
                f"changed since then: {standing.changed:,}; tried again: {standing.failed:,}"
            )
        needs_done = self._places or self._arguments.min_score is not None
        for path in self._shard([path for path in self._paths if path in standing.done] if needs_done else []):
            rows = file.rows(path)
            if self._keep(path, rows):  # writing metadata changes the version of a photo
                file.write(_with_version(rows, path))
        shard = self._shard([path for path in self._paths if path not in standing.done])
        for path, rows in self._captioned(shard):
            if self._keep(path, rows):
                rows = _with_version(rows, path)
            file.write(rows)
        file.stop()
        processes.wait()
        self._summarize()
        if processes.rank:
            return True
        failures = file.finish(self._paths)
        print(f"written: {file.path}, {counted(len(self._paths), 'image')}, {failures:,} of them could not be read")
        return not failures and not self._kept.num_refused

    def _shard(self, paths: Sequence[str]) -> Sequence[str]:
        return paths[self._processes.rank :: self._processes.count]

    def _is_drawn(self, path: str, row: dict[str, Any]) -> bool:
        drawing = self._drawings.get(path)
        return drawing is None or (row.get("attention") == str(drawing) and drawing.exists())

    def _captioned(self, paths: Sequence[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Path and rows of each image; draws the attention if requested."""
        from ..inference.prefetch import caption_all
        from ..library.caption_file import photo_version

        arguments = self._arguments
        generation = _generation(arguments)
        versions: dict[str, str | None] = {}  # of images in progress, taken before they are read

        def sources() -> Iterator[str]:
            for path in paths:
                versions[path] = photo_version(path) if self._file is not None else None
                yield path

        results = caption_all(
            self._captioner,
            sources(),
            num_captions=arguments.num_captions,
            batch_size=arguments.batch_size,
            begin=arguments.begin,
            **generation,
        )
        for path, result in zip(paths, self._with_bar(results, paths), strict=True):
            version = versions.pop(path)
            rows = self._rows(path, result)
            if self._file is not None:
                provenance = {"photo_version": version, "made_by": self._made_by}
                rows = [row | {name: value for name, value in provenance.items() if value is not None} for row in rows]
            yield path, rows

    def _with_bar(self, items: Iterable[Item], paths: Sequence[str], what: str | None = None) -> Iterator[Item]:
        """The items, one per image, with a progress bar in a terminal if there are many."""
        from tqdm import tqdm

        is_quiet = len(paths) <= self._arguments.batch_size or not sys.stderr.isatty() or self._processes.rank > 0
        yield from tqdm(items, what, total=len(paths), unit="image", disable=is_quiet)

    def _rows(self, path: str, result: Any) -> list[dict[str, Any]]:
        if isinstance(result, Exception):
            return [{"path": path, "error": one_line(result)}]
        arguments = self._arguments
        rows: list[dict[str, Any]] = [
            {
                "path": path,
                "caption": f"{arguments.prefix}{caption.text}{arguments.suffix}",
                "score": round(caption.score, 4),
                "backend": self._backend,
            }
            for caption in result
        ]
        if path in self._drawings:
            image = _read_again(path)
            if isinstance(image, Exception):
                return [{"path": path, "error": one_line(image)}]
            _save_attention(self._drawings[path], image, result[0])
            if self._file is not None:
                rows = [row | {"attention": str(self._drawings[path])} for row in rows]
        return rows

    def _keep(self, path: str, rows: Sequence[dict[str, Any]]) -> bool:
        """Stores captions according to --write; returns whether a file changed."""
        if "error" in rows[0]:
            return False
        if self._arguments.min_score is not None and rows[0].get("score", 0) < self._arguments.min_score:
            self._num_low += 1
            item = (-rows[0]["score"], path, rows[0]["caption"])
            (heapq.heappush if len(self._low) < TO_LOOK_AT else heapq.heappushpop)(self._low, item)
            return False
        captions = [row["caption"] for row in rows if row["caption"]]
        if not self._places:
            return False
        if not captions:
            self._kept.num_empty += 1
            return False
        changes, is_refused = [], False
        for place in self._places:
            try:
                changes += place.keep(path, captions, self._arguments.dry_run)
            except (OSError, ValueError) as error:
                is_refused = True
                self._printer.problem(one_line(error))
        self._kept.num_refused += is_refused
        self._kept.num_written += bool(changes)
        self._kept.num_taken += not (changes or is_refused)
        if self._arguments.dry_run:
            for change in changes:
                before = f" in place of {json.dumps(change.before, ensure_ascii=False)}" if change.before else ""
                after = json.dumps(change.after.rstrip("\n"), ensure_ascii=False)
                self._printer.result(f"{_shown(str(change.file))}: {change.field} {after}{before}")
        return bool(changes) and not self._arguments.dry_run

    def _summarize(self) -> None:
        if self._places:
            will = "would be written" if self._arguments.dry_run else "written"
            refused = f", {self._kept.num_refused:,} could not take them everywhere" if self._kept.num_refused else ""
            empty = f", {self._kept.num_empty:,} have an empty caption" if self._kept.num_empty else ""
            number = counted(self._kept.num_written, "image")
            self._printer.line(
                f"{will}: captions of {number} to {', '.join(self._arguments.write)}, "
                f"{self._kept.num_taken:,} had texts that stay{refused}{empty}"
            )
        if self._num_low:
            scored = counted(self._num_low, "caption scores", "captions score")
            self._printer.problem(f"{scored} below {self._arguments.min_score:g}, look at them:")
            for score, path, caption in sorted(self._low, reverse=True):
                self._printer.problem(f"  {-score:.2f} {_shown(path)}: {caption}", named=False)
            if self._num_low > len(self._low):
                self._printer.problem(f"  and {self._num_low - len(self._low):,} more", named=False)


class _Kept:
    """Counts for --write."""

    def __init__(self) -> None:
        self.num_written = self.num_taken = self.num_refused = self.num_empty = 0


class _Printer:
    """Prints without breaking a progress bar."""

    def __init__(self, rank: int):
        self._rank = rank

    def line(self, text: str) -> None:
        _write(f"process {self._rank}: {text}" if self._rank else text, sys.stderr)

    def result(self, text: str) -> None:
        _write(text, sys.stdout)

    def problem(self, text: str, named: bool = True) -> None:
        _write(f"gru-captioner: {text}" if named else text, sys.stderr)

    def row(self, row: dict[str, Any], as_json: bool) -> None:
        if as_json:
            self.result(json.dumps(row, ensure_ascii=False))
        elif "error" in row:
            self.problem(row["error"])
        else:
            self.result(f"{_shown(row['path'])}: {row['caption']}")


def _write(text: str, stream) -> None:
    from tqdm import tqdm

    with tqdm.external_write_mode(stream):  # clears the bar, and redraws it below
        print(text, file=stream)


def _shown(path: str) -> str:
    return path if path.isprintable() else repr(path)[1:-1]


def _places(arguments, paths: Sequence[str]) -> list:
    """Where --write stores captions."""
    from ..library.metadata import Metadata
    from ..library.sidecars import Existing, TextSidecars

    places: list[Any] = []
    if TXT in arguments.write:
        existing: Existing = "overwrite" if arguments.overwrite else "append" if arguments.append else "skip"
        places.append(TextSidecars(paths, existing))
    if XMP in arguments.write or METADATA in arguments.write:
        places.append(Metadata(METADATA in arguments.write, XMP in arguments.write, arguments.overwrite))
    return places


def _load_captioner(arguments: argparse.Namespace):
    from ..captioner import Captioner

    captioner = Captioner.from_pretrained(arguments.checkpoint, backend=arguments.backend, graphs=arguments.graphs)
    if arguments.verbose:
        say_what_runs(captioner, arguments.num_captions, **_generation(arguments))
    return captioner


def _generation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Generation settings."""
    return {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}


def _may_exist(path: str) -> bool:
    from ..untrusted_images import ADDRESSES

    return path.startswith(ADDRESSES) or os.path.exists(os.path.expanduser(path))


def _made_by(captioner, num_beams: int, arguments: argparse.Namespace) -> str:
    """Checkpoint and settings, to recognize captions made with others."""
    parts = [f"checkpoint {captioner.fingerprint}", f"num_beams {num_beams}", f"num_captions {arguments.num_captions}"]
    for name in ("begin", "prefix", "suffix"):
        if getattr(arguments, name):
            parts.append(f"{name} {json.dumps(getattr(arguments, name), ensure_ascii=False)}")
    return ", ".join(parts)


def _with_version(rows: Sequence[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    from ..library.caption_file import photo_version

    return [row | {"photo_version": photo_version(path)} for row in rows]


class _Processes:
    """The processes started by `accelerate launch`, or a single one, which doesn't import torch."""

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


def _drawing_paths(folder: Path, paths: Sequence[str]) -> dict[str, Path]:
    """An output file for each image; images in different folders may have the same name."""
    names = distinct_names(Path(path).name for path in paths)
    return {path: folder / f"{name}.attention.png" for path, name in zip(paths, names, strict=True)}


def _read_again(path: str):
    """The image in its original proportions, or the error if it can no longer be read."""
    from ..model import load_image

    try:
        return load_image(path)
    except (OSError, ValueError) as error:
        return error


def _save_attention(target: Path, image, caption) -> None:
    from ..visualization import draw_attention

    with atomic_path(target) as temporary:
        draw_attention(image, caption.words, caption.attention).save(temporary, format="PNG")
