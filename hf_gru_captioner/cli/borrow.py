"""`gru-captioner borrow`: captions for images with labels, from captions of other images with the same labels."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import counted, needs_extra
from .shell import positive, quiet_transformers

if TYPE_CHECKING:
    from ..data.borrowing import BorrowingReport


def add_command(commands) -> None:
    parser = commands.add_parser(
        "borrow",
        help="give images with labels captions of other images",
        description="Gives images that have labels but no captions the captions of other images with the same labels, "
        "as a dataset to train on. Captions that name a label which the image doesn't have are not used.",
    )
    parser.add_argument(
        "--images", required=True, metavar="SOURCE", help="images with a column labels: Hub id, folder or parquet file"
    )
    parser.add_argument(
        "--captions",
        required=True,
        nargs="+",
        metavar="SOURCE",
        help="captions with a column labels, images not needed: Hub ids, folders, parquet or JSON lines files",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of the new dataset")
    parser.add_argument(
        "--checkpoint",
        help="captioner that ranks the candidates by their likelihood given the image: folder or Hub id; without one, "
        "captions are drawn from the most typical candidates",
    )
    parser.add_argument("--per-image", type=positive, default=3, help="maximum captions per image (%(default)s)")
    parser.add_argument("--candidates", type=positive, default=30, help="captions to choose from (%(default)s)")
    parser.add_argument("--min-words", type=positive, default=6, help="in a borrowed caption (%(default)s)")
    parser.add_argument("--max-words", type=positive, default=14, help="in a borrowed caption (%(default)s)")
    parser.add_argument(
        "--synonyms",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="YAML of label: [words that name it], whose plurals count too; the words of null name no label "
        "(configs/synonyms has two: coco.yaml for COCO's labels, and colors.yaml, which excludes captions with colors)",
    )
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="download images that the dataset gives by URL, from the public web only; never with HF_HUB_OFFLINE",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    with needs_extra("train"):
        from ..data.borrowing import BorrowingOptions, borrow_captions
        from ..label_names import read_synonyms

    quiet_transformers()
    options = BorrowingOptions(
        per_image=arguments.per_image,
        candidates=arguments.candidates,
        min_words=arguments.min_words,
        max_words=arguments.max_words,
        seed=arguments.seed,
    )
    synonyms = read_synonyms(*arguments.synonyms)
    scorer = None
    if arguments.checkpoint:
        from ..captioner import Captioner
        from ..inference.backend import PYTORCH

        scorer = Captioner.from_pretrained(arguments.checkpoint, backend=PYTORCH).mean_log_probabilities
    report = borrow_captions(
        arguments.images,
        arguments.captions,
        arguments.output,
        options=options,
        synonyms=synonyms,
        scorer=scorer,
        scorer_name=arguments.checkpoint,
        allow_urls=arguments.allow_urls,
    )
    _print(report, options.candidates)
    print(f"\nwritten: {arguments.output}")
    return 0


def _print(report: "BorrowingReport", num_candidates: int) -> None:
    print(f"{report.num_captioned:,} of {report.num_images:,} images got captions, {report.num_captions:,} in total")
    if report.num_few:
        print(f"{report.num_few:,} of them had fewer than {num_candidates} candidates")
    for number, problem in (
        (report.num_without_candidates, "had no candidates"),
        (report.num_without_labels, "had no labels"),
        (report.num_unreadable, "couldn't be read"),
    ):
        if number:
            print(f"skipped: {counted(number, 'image')} that {problem}")
    if report.unnamed:
        commonest = ", ".join(f"{label} ({number})" for label, number in report.unnamed.most_common(5))
        print(f"labels of images without candidates: {commonest}; --synonyms says by which words captions name them")
    for name, labels, captions in report.examples:
        print(f"\n{name}: {', '.join(labels)}")
        for caption in captions:
            print(f"  {caption}")
