"""`gru-captioner score`: a checkpoint on photos with captions, or other systems' result files, -> figures.

Writes into the output folder
    predictions.json    what the checkpoint wrote, in COCO's results format
    metrics.json        figures, intervals, and all that two figures must share to be comparable
    report.html         the same for eyes, with photos
"""

import argparse
import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UsageError, needs_extra
from ..files import WEIGHTS, sha256_of, write_atomically
from .shell import add_backend, positive, quiet_transformers

SIGNED = ("num_beams", "length_penalty", "no_repeat_ngram_size")  # settings of generate() that change scores
LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "pycocoevalcap")


def add_command(commands) -> None:
    parser = commands.add_parser(
        "score",
        help="score captions against people's",
        description="Scores a checkpoint on photos with captions, or result files of other systems, or both.",
        epilog="Under accelerate launch (scripts/score.py), the processes share the photos; the figures are the same.",
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="COCO-format results of other systems")
    references = parser.add_mutually_exclusive_group(required=True)
    references.add_argument("--data", help="Hub id or folder of photos with captions")
    references.add_argument("--references", type=Path, help="COCO-format annotations that RESULTS are scored against")
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch photos whose addresses the data set gives, from the public web only; never with HF_HUB_OFFLINE",
    )
    parser.add_argument("--split", default="validation", help="split of --data (%(default)s)")
    parser.add_argument("--checkpoint", help="folder or Hub id; the checkpoint of the package when not given")
    add_backend(parser)
    parser.add_argument("--num-beams", type=positive, help="beams of the search; the checkpoint's own when not given")
    parser.add_argument("--batch-size", type=positive, default=32, help="photos captioned at once (%(default)s)")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["cider", "meteor", "bleu", "rouge_l", "diversity"],
        help="also cider_cosine and evaluate/bleu, which is not comparable with any other (%(default)s)",
    )
    parser.add_argument(
        "--tokenizer", choices=["ptb", "simple"], default="ptb", help="%(default)s; simple needs no Java"
    )
    parser.add_argument("--no-brevity-penalty", action="store_true", help="BLEU as papers had it before 2015")
    parser.add_argument("--training-data", help="Hub id or folder: its train split tells which captions are new")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the intervals; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("runs/score"), help="folder of the files (%(default)s)")
    parser.add_argument("--card", type=Path, help="model card to write the checkpoint's figures into (model-index)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the figures in the checkpoint's folder, where its own card finds them"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs on every process; captions are shared out, the first process scores and writes."""
    if arguments.references and not arguments.results:
        raise UsageError("--references needs RESULTS, the files to score; to score a checkpoint pass --data.")
    if arguments.references and arguments.checkpoint:
        raise UsageError("--checkpoint needs the photos: pass --data instead of --references.")
    scores_checkpoint = bool(arguments.data and (arguments.checkpoint or not arguments.results))
    for option in ("card", "keep"):
        if getattr(arguments, option) and not scores_checkpoint:
            raise UsageError(f"--{option} takes the figures of a checkpoint, and none is scored here.")
    if arguments.keep and arguments.checkpoint and not Path(arguments.checkpoint).is_dir():
        raise UsageError(f"--keep writes into the checkpoint's folder, and {arguments.checkpoint} is none.")
    quiet_transformers()
    with needs_extra("score"):
        from accelerate import PartialState

        from ..data import decode_images, load_captions
        from ..evaluation import by_length, by_word, compare, score_captions
        from ..evaluation.coco import match, read_references, read_results, write_results
        from ..evaluation.report import write_report
        from ..hub import eval_results, keep_scores, write_model_index

    state = PartialState()
    settings: dict[str, Any] = {}
    systems: dict[str, list[str]] = {}
    decoding: dict[str, str] = {}
    rows = None
    if arguments.data:
        with state.main_process_first():
            rows = load_captions(arguments.data, arguments.split, allow_urls=arguments.allow_urls)
        references = dict(zip(rows["image_id"], rows["captions"], strict=True))
        if len(references) < len(rows):
            raise UsageError(f"{arguments.data} has several photos of the same image_id.")
        settings = {"data": arguments.data, "split": arguments.split}
        if scores_checkpoint:
            name, written, captioner = _caption(arguments, rows, state)
            systems[name] = [caption.text for caption in written]
            settings |= _checkpoint_settings(captioner, arguments.num_beams)
            generation = settings["generation"]
            decoding[name] = "|".join(f"{key}:{generation[key]}" for key in SIGNED if key in generation)
    else:
        references = read_references(arguments.references)
        settings = {"references": str(arguments.references)}
    if not state.is_main_process:
        return 0

    image_ids = list(references)
    for path in arguments.results:
        if path.stem in systems:
            raise UsageError(f"two systems are called {path.stem}: rename a file.")
        _, systems[path.stem], _ = match(read_results(path), references)
    known = None
    if arguments.training_data:
        training_set = load_captions(arguments.training_data, "train", allow_urls=arguments.allow_urls)
        known = [caption for captions in training_set["captions"] for caption in captions]
    scores = {
        name: score_captions(
            predictions,
            list(references.values()),
            metrics=arguments.metrics,
            tokenizer=arguments.tokenizer,
            brevity_penalty=not arguments.no_brevity_penalty,
            training_captions=known,
            decoding=decoding.get(name, ""),
            bootstrap=arguments.bootstrap,
        )
        for name, predictions in systems.items()
    }
    settings["versions"] = {"hf_gru_captioner": __version__, "python": platform.python_version()}
    settings["versions"] |= {name: version(name) for name in LIBRARIES}

    first, *others = scores
    comparisons = {name: compare(scores[first], scores[name]) for name in others} if arguments.bootstrap else {}
    for name, each in scores.items():
        print(f"{name}\n{each.table()}\n")
    for name, figures in comparisons.items():
        print(f"{name} less {first}, with 95 % interval and p-value")
        for figure, gap in figures.items():
            print(f"  {figure:<20}{gap.difference:>9.4f}  {gap.low:>8.4f} to {gap.high:.4f}  p = {gap.p_value:.3f}")

    arguments.output.mkdir(parents=True, exist_ok=True)
    if scores_checkpoint:
        write_results(arguments.output / "predictions.json", image_ids, systems[first])
    _write_json(arguments.output / "metrics.json", {**settings, "systems": _as_json(scores, comparisons)})
    if rows is not None:
        write_report(
            arguments.output / "report.html",
            scores,
            predictions=systems,
            images=lambda index: decode_images(rows, [index])[0],
            references=list(references.values()),
            image_ids=image_ids,
            settings=settings,
            attention=_attention_of(rows, written) if scores_checkpoint else None,
        )
    if scores_checkpoint:
        own = scores[first]
        if arguments.card:
            location = {"dataset": arguments.data, "split": arguments.split, "signature": own.signature}
            write_model_index(arguments.card, first, eval_results(own.figures, **location))
        if arguments.keep:
            kept = {"data": Path(arguments.data).name, "split": arguments.split, "settings": own.settings}
            kept |= {"decoding": own.decoding, "signature": own.signature, "figures": own.figures}
            kept |= {"intervals": own.intervals, "people": own.human}
            kept["by_word"] = [dataclasses.asdict(record) for record in by_word(own.captions)]
            if "cider" in own.per_image:
                records = by_length(own.captions, own.per_image["cider"])
                kept["by_length"] = [dataclasses.asdict(record) for record in records]
            keep_scores(captioner.model.name_or_path, kept)
    print(f"\nwritten: {', '.join(str(path) for path in sorted(arguments.output.iterdir()))}")
    return 0


def _caption(arguments, rows, state):
    """Name of the checkpoint, its captions in the order of the rows, the captioner. Each process writes its share."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    from ..captioner import Captioner
    from ..data import decode_images

    with needs_extra(arguments.backend):
        captioner = Captioner.from_pretrained(
            arguments.checkpoint, device=state.device, backend=arguments.backend, graphs=arguments.graphs
        )
    generation = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
    written = []
    with state.split_between_processes(list(range(len(rows)))) as share:
        starts = range(0, len(share), arguments.batch_size)
        for start in tqdm(starts, "captioning", unit="batch", disable=not state.is_main_process):
            batch = decode_images(rows, share[start : start + arguments.batch_size])
            written += captioner(batch, batch_size=arguments.batch_size, **generation)
    name = Path(arguments.checkpoint).name if arguments.checkpoint else "shipped checkpoint"
    return name, gather_object(written), captioner


def _checkpoint_settings(captioner, num_beams: int | None) -> dict[str, Any]:
    from transformers.utils import cached_file

    folder = captioner.model.name_or_path
    revision = getattr(captioner.model.config, "_commit_hash", None)  # that was loaded: the main branch may have moved
    weights = Path(cached_file(folder, WEIGHTS, revision=revision))
    generation = captioner.model.generation_config.to_diff_dict()
    return {
        "checkpoint": folder,
        "checkpoint_sha256": sha256_of(weights),
        "generation": generation if num_beams is None else {**generation, "num_beams": num_beams},
    }


def _attention_of(rows, written: Sequence):
    from ..data import decode_images
    from ..visualization import draw_attention

    def draw(index: int):
        caption = written[index]
        if caption.attention is None:
            return None
        return draw_attention(decode_images(rows, [index])[0], caption.words, caption.attention)

    return draw


def _as_json(scores, comparisons) -> dict[str, Any]:
    return {
        name: {
            "figures": each.figures,
            "intervals": each.intervals,
            "people": each.human,
            "signature": each.signature,
            "less_first": {figure: dataclasses.asdict(c) for figure, c in comparisons.get(name, {}).items()},
        }
        for name, each in scores.items()
    }


def _write_json(path: Path, content) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
