"""`gru-captioner label`: captions unlabelled photos with a teacher, into a file to train on."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, counted, needs_extra
from .shell import BAD_INPUT, beams, positive, quiet_transformers

if TYPE_CHECKING:
    from ..labelling.run import Labelled

ENDINGS = (".jsonl", ".csv")
NAMED = 50  # photos without a caption to list at the end
SHOWN = 5  # captions to show at the end
SECONDS = 60.0  # between progress lines without a terminal


def add_command(commands) -> None:
    parser = commands.add_parser(
        "label",
        help="have another captioner write captions to train on",
        description="Captions unlabelled photos with a large captioner as the teacher, into a file for gru-captioner "
        "train. The same command resumes a killed one.",
        epilog="Exit code 0 if every photo has a caption, 2 if some could not be read. Costs, and how captions are "
        "cleaned: docs/distillation.md.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="photo, folder of photos, or pattern ('*.jpg')")
    parser.add_argument("--recursive", action="store_true", help="include subfolders")
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="MODEL",
        help="Hub id or folder: BLIP, BLIP-2, GIT, ViT-GPT2, Florence-2, SmolVLM and others that transformers loads as "
        "image-text-to-text, or a checkpoint of this package",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="file of captions for train, .jsonl or .csv"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace captions from another teacher or with other settings"
    )

    writing = parser.add_argument_group("how captions are generated")
    writing.add_argument(
        "--num-captions",
        type=positive,
        default=1,
        help="per photo: one by beam search, several by sampling (%(default)s)",
    )
    writing.add_argument("--prompt", metavar="TEXT", help="the teacher's prompt (what its family needs)")
    writing.add_argument("--num-beams", type=beams, help="number of beams (3; for chat models 1)")
    writing.add_argument("--top-p", type=float, default=0.9, help="nucleus size for sampling (%(default)s)")
    writing.add_argument("--temperature", type=float, default=1.0, help="for sampling (%(default)s)")
    writing.add_argument("--seed", type=int, default=0, help="for sampling (%(default)s)")
    writing.add_argument("--max-new-tokens", type=positive, help="maximum length of a caption (50)")
    writing.add_argument(
        "--no-cleaning", action="store_true", help='keep raw captions, including "arafed" and "there is"'
    )

    running = parser.add_argument_group("where it runs")
    running.add_argument("--batch-size", type=positive, default=8, help="photos per batch (%(default)s)")
    running.add_argument("--device", help="cpu, cuda, cuda:1, mps (a GPU if there is one)")
    running.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="precision (bfloat16 on a GPU, float32 on a CPU)"
    )
    running.add_argument("--revision", help="teacher's revision on the Hub: branch, tag, commit or refs/pr/N")
    running.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python files of the teacher's repository, with all your rights: read them, and pin their --revision",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from ..library.caption_file import CaptionFile
    from .find_images import find_images

    if arguments.output.suffix.lower() not in ENDINGS:
        raise UsageError(f"{arguments.output}: name a file that ends in {' or '.join(ENDINGS)}, which train takes.")

    found = find_images(arguments.paths, arguments.recursive)
    _tell(*found.problems)
    if not found.paths:
        raise UsageError("no photo to label.")
    photos = _seen_from(arguments.output, found.paths)
    file = CaptionFile(arguments.output)
    try:
        num_left_out = _Run(arguments, photos, file).run()
    except KeyboardInterrupt:
        _tell("stopped; the same command resumes from here")
        raise
    finally:
        file.close()
    _tell(*found.summary())
    return BAD_INPUT if num_left_out or found.problems or found.left_out else 0


def _seen_from(output: Path, paths: Sequence[str]) -> list[str]:
    """Paths that resolve from the output file: unchanged if it is in the working directory, else absolute."""
    if output.absolute().parent == Path.cwd():
        return [os.path.expanduser(path) for path in paths]
    return [path if "://" in path else os.path.abspath(os.path.expanduser(path)) for path in paths]


class _Run:
    """A run of the command on its photos."""

    def __init__(self, arguments: argparse.Namespace, photos: Sequence[str], file: Any):
        with needs_extra("torch"):
            import torch  # noqa: F401

        from ..labelling.cleaning import Cleaner
        from ..labelling.teacher import MAX_NEW_TOKENS, TeacherOptions, load_teacher

        self._arguments, self._photos, self._file = arguments, photos, file
        options = TeacherOptions(
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            device=arguments.device,
            dtype=arguments.dtype,
            prompt=arguments.prompt,
            num_beams=arguments.num_beams,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        quiet_transformers()
        _quiet_generation()
        self._teacher = load_teacher(arguments.teacher, options)
        self._most = arguments.max_new_tokens or MAX_NEW_TOKENS
        self._cleaner = Cleaner(self._teacher.prompt, is_on=not arguments.no_cleaning)
        self._made_by = (
            f"teacher {self._teacher.name}, revision {self._teacher.revision}, "
            f"{self._teacher.settings(arguments.num_captions)}, {'not ' * arguments.no_cleaning}cleaned"
        )

    def run(self) -> int:
        """Captions the photos; returns the number of photos without a caption."""
        file = self._file
        file.collect()
        standing = file.open(self._photos, self._made_by)
        if standing.others and not self._arguments.overwrite:
            raise UsageError(
                f"{file.path} has captions of {standing.others:,} of these photos by {standing.made_by}; now it would "
                f"be {self._made_by}. Name another file, or add --overwrite to label them again."
            )
        if standing.done or standing.changed:
            _tell(
                f"resuming: {len(standing.done):,} of {len(self._photos):,} photos have captions; changed since then: "
                f"{standing.changed:,}",
                named=False,
            )
        wanted = [photo for photo in self._photos if photo not in standing.done]
        problems: list[str] = []
        examples: list[Labelled] = []
        num_cut = 0
        for labelled in self._labelled(wanted):
            num_cut += labelled.num_cut
            if labelled.problem:
                problems.append(labelled.problem)
                continue
            file.write(self._rows(labelled))
            if len(examples) < SHOWN:
                examples.append(labelled)
        file.stop()  # not close(), which would discard parts
        file.finish(self._photos)
        self._summarize(problems, num_cut, examples)
        return len(problems)

    def _labelled(self, photos: Sequence[str]) -> "Iterator[Labelled]":
        from tqdm import tqdm

        from ..labelling.run import label_photos

        arguments = self._arguments
        labelled = label_photos(
            self._teacher,
            photos,
            self._cleaner,
            num_captions=arguments.num_captions,
            batch_size=arguments.batch_size,
        )
        if sys.stderr.isatty():
            initial = len(self._photos) - len(photos)
            yield from tqdm(labelled, total=len(self._photos), initial=initial, unit="photo", smoothing=0.05)
        else:
            yield from _with_progress(labelled, len(photos))

    def _rows(self, labelled: "Labelled") -> list[dict[str, Any]]:
        provenance = {
            "teacher": self._teacher.name,
            "teacher_revision": self._teacher.revision,
            "photo_version": labelled.version,  # None for a URL
            "made_by": self._made_by,
        }
        provenance = {name: value for name, value in provenance.items() if value is not None}
        return [{"path": labelled.photo, "caption": caption, **provenance} for caption in labelled.captions]

    def _summarize(self, problems: Sequence[str], num_cut: int, examples: "Sequence[Labelled]") -> None:
        teacher, output = self._teacher, self._arguments.output
        num_photos = len(self._photos)
        print(
            f"written: {output}, captions of {num_photos - len(problems):,} of {num_photos:,} photos by {teacher.name} "
            f"({teacher.revision[:20]})"
        )
        for labelled in examples:
            print(f"  {_shown(os.path.basename(labelled.photo))}: {' | '.join(labelled.captions)}")
        if self._cleaner.counts:
            habits = ", ".join(f"{name} ({number:,})" for name, number in self._cleaner.counts.most_common() if number)
            print(f"cleaned of: {habits or 'nothing'}; --no-cleaning keeps raw captions")
        if num_cut:
            _tell(
                f"{counted(num_cut, 'caption was', 'captions were')} truncated: add --max-new-tokens {2 * self._most}"
            )
        if problems:
            _tell(f"{len(problems):,} of {num_photos:,} photos have no caption:")
            _tell(*(f"  {problem}" for problem in problems[:NAMED]), named=False)
            if len(problems) > NAMED:
                _tell(f"  and {len(problems) - NAMED:,} more", named=False)
        if len(problems) < num_photos:
            print(f"next: gru-captioner train {output}")


def _with_progress(labelled: "Iterator[Labelled]", total: int) -> "Iterator[Labelled]":
    """The same items, with occasional progress lines for a log."""
    begin = last = time.monotonic()
    for number, each in enumerate(labelled, 1):
        yield each
        if (now := time.monotonic()) - last > SECONDS and number < total:
            last = now
            minutes = (now - begin) / number * (total - number) / 60
            _tell(f"{number:,} of {total:,} photos, about {minutes:,.1f} minutes left", named=False)


def _quiet_generation() -> None:
    """Hides transformers' warnings about teachers' generation settings."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def _tell(*lines: str, named: bool = True) -> None:
    for line in lines:
        print(f"gru-captioner: {line}" if named else line, file=sys.stderr)


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]
