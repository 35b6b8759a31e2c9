"""`gru-captioner score`: scores a checkpoint on images with reference captions, or result files of other systems."""

import argparse
import sys
from pathlib import Path

from ..errors import UsageError, counted, needs_extra
from ..evaluation.metrics import METRICS, choose_metrics
from ..files import WEIGHTS
from ..scoring_run import DEFAULT_METRICS, system_name
from .shell import add_backend, beams, positive, quiet_transformers

READING = ("images", "image_column", "caption_column", "max_skipped", "allow_urls")  # options for reading --data


def add_command(commands) -> None:
    parser = commands.add_parser(
        "score",
        help="score captions against reference captions",
        description="Scores a checkpoint on images with reference captions, or result files of other systems, or both.",
        epilog="Under accelerate launch (scripts/score.py), the processes share the images; the scores are the same.",
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULTS",
        help="results of other systems: COCO format, or a table of image_id and caption",
    )
    references = parser.add_mutually_exclusive_group(required=True)
    references.add_argument("--data", help="Hub id or folder of images with captions")
    references.add_argument(
        "--references",
        type=Path,
        help="reference captions for RESULTS: COCO-format annotations, or a table of images and captions",
    )
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="download images that the dataset gives by URL, from the public web only; never with HF_HUB_OFFLINE",
    )
    parser.add_argument("--images", help="folder of the images named by a caption file of --data; by default beside it")
    parser.add_argument("--image-column", help="column with the images, or their ids; by default recognized by name")
    parser.add_argument(
        "--caption-column", help="column with the captions, several separated by commas; by default recognized by name"
    )
    parser.add_argument(
        "--max-skipped", type=float, default=0.01, help="fraction of the images that may be unusable (%(default)s)"
    )
    parser.add_argument(
        "--split", default="validation", help="split of --data; all for the whole, if it has no splits (%(default)s)"
    )
    parser.add_argument("--checkpoint", help="folder or Hub id; by default the package's checkpoint")
    add_backend(parser)
    parser.add_argument("--num-beams", type=beams, help="number of beams; by default the checkpoint's")
    parser.add_argument("--batch-size", type=positive, default=32, help="images per batch (%(default)s)")
    parser.add_argument("--metrics", nargs="+", default=list(DEFAULT_METRICS), help=_metrics_help())
    parser.add_argument(
        "--tokenizer",
        choices=["auto", "ptb", "simple", "char"],
        default="auto",
        help="auto: ptb, or char for scripts without spaces; simple needs no Java (%(default)s)",
    )
    parser.add_argument("--no-brevity-penalty", action="store_true", help="BLEU as in papers before 2015")
    parser.add_argument("--training-data", help="Hub id or folder: its train split determines which captions are novel")
    parser.add_argument(
        "--synonyms",
        type=Path,
        metavar="FILE",
        help="YAML of label: [words that name it], to count labels that captions name, of data with a column labels",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the intervals; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("runs/score"), help="folder of the files (%(default)s)")
    parser.add_argument("--card", type=Path, help="model card to write the checkpoint's scores into (model-index)")
    parser.add_argument(
        "--keep", action="store_true", help="store the scores in the checkpoint's folder, for its model card"
    )
    parser.set_defaults(run=run)


def _metrics_help() -> str:
    java = ", ".join(name for name, metric in METRICS.items() if metric.needs_java)
    return f"any of {', '.join(METRICS)}; needs Java: {java}; not comparable with others: evaluate/bleu (%(default)s)"


def run(arguments: argparse.Namespace) -> int:
    """Runs on every process: captioning is shared, the first process scores and writes."""
    from ..hub import read_card
    from ..label_names import read_synonyms

    _read_images_of_references(arguments)
    scores_checkpoint = bool(arguments.data and (arguments.checkpoint or not arguments.results))
    _check(arguments, scores_checkpoint)
    synonyms = read_synonyms(arguments.synonyms) if arguments.synonyms else None
    if arguments.card:
        read_card(arguments.card)
    reading = {name: getattr(arguments, name) for name in READING} | {"spelling": "--{}"}
    drawn = False
    if arguments.data:  # before anything heavy is loaded
        with needs_extra("score"):
            from ..data import ReadingOptions, check_source, is_drawn

            check_source(arguments.data, [arguments.split], ReadingOptions(**reading))
            drawn = is_drawn(arguments.data, arguments.split, ReadingOptions(**reading))
    with needs_extra("score"):
        from accelerate import PartialState

    from ..scoring_run import caption_references, load_references, plan_scoring, read_references

    quiet_transformers()
    state = PartialState()
    captions = None
    if arguments.data:
        with state.main_process_first():
            references = load_references(arguments.data, arguments.split, **reading)
    else:
        references = read_references(arguments.references, arguments.image_column, arguments.caption_column)
    with state.main_process_first():
        plan = plan_scoring(
            references,
            checkpoint_name=system_name(arguments.checkpoint) if scores_checkpoint else None,
            results=arguments.results,
            training_data=arguments.training_data,
            allow_urls=arguments.allow_urls,
            metrics=arguments.metrics,
            tokenizer=arguments.tokenizer,
            brevity_penalty=not arguments.no_brevity_penalty,
            bootstrap=arguments.bootstrap,
            synonyms=synonyms,
        )
        arguments.output.mkdir(parents=True, exist_ok=True)
    if scores_checkpoint:
        captions = caption_references(
            references,
            arguments.checkpoint,
            backend=arguments.backend,
            graphs=arguments.graphs,
            num_beams=arguments.num_beams,
            batch_size=arguments.batch_size,
        )
    if not state.is_main_process:
        return 0
    if captions:
        captions.save(arguments.output, references)  # kept whatever happens to the scores
        if arguments.verbose:
            print(f"backend: {captions.settings['backend']}", file=sys.stderr)
    scored = plan.score(captions)
    print(scored.scores.table())
    if drawn:
        number = counted(len(references.captions), "image")
        print(
            f"{arguments.data} has no split {arguments.split}; scored: {number} that training uses for it. "
            "--split all scores every image, which is meaningful if none was trained on."
        )
    if scored.mentions is not None:
        print(f"\n{scored.mentions.table()}")
    written = scored.save(arguments.output)
    if arguments.card:
        scored.write_model_index(arguments.card)
        written.append(arguments.card)
    if arguments.keep:
        written.append(scored.keep())
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _read_images_of_references(arguments: argparse.Namespace) -> None:
    """A table of captions names its images, so a checkpoint can be scored on it as on `--data`."""
    if arguments.references and not arguments.results and arguments.references.suffix.lower() != ".json":
        arguments.data, arguments.references = str(arguments.references), None


def _check(arguments: argparse.Namespace, scores_checkpoint: bool) -> None:
    """Raise a `ValueError` for options that don't go together, or have impossible values."""
    choose_metrics(arguments.metrics)
    if arguments.bootstrap < 0:
        raise UsageError(f"--bootstrap must be at least 0, found {arguments.bootstrap}.")
    if arguments.references and not arguments.results:
        raise UsageError("--references needs RESULTS, the files to score; to score a checkpoint pass --data.")
    if arguments.references and arguments.checkpoint:
        raise UsageError("--checkpoint needs the images: pass --data instead of --references.")
    for option in ("card", "keep"):
        if getattr(arguments, option) and not scores_checkpoint:
            raise UsageError(f"--{option} stores the scores of a checkpoint, but none is scored: pass --data.")
    if arguments.keep and arguments.checkpoint:
        if not Path(arguments.checkpoint).is_dir():
            raise UsageError(f"--keep writes into the checkpoint's folder, but {arguments.checkpoint} is not a folder.")
        if not Path(arguments.checkpoint, WEIGHTS).is_file():
            raise UsageError(
                f"--keep stores the scores of weights, but {arguments.checkpoint} has no {WEIGHTS}: score the "
                "checkpoint that it was exported from."
            )
