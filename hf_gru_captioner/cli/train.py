"""`gru-captioner train`: trains a checkpoint on a dataset. Its arguments are the fields of `TrainingConfig`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import needs_extra
from .training_options import check_sources, names_set, options_as_typed, read_config

if TYPE_CHECKING:
    from ..evaluation.caption_set import CaptionSet
    from ..training import TrainingConfig, TrainingResult

SHOWN = 10  # captions shown beside human ones
DESCRIPTION = (
    "Trains a captioner. With a SOURCE, options that are not given are chosen from the data, and training starts from "
    "the shipped checkpoint; with --config or --data.source they keep their defaults."
)


def run(argv: Sequence[str]) -> int:
    """`gru-captioner train`, and `accelerate launch scripts/train.py`. Runs on every process."""
    with options_as_typed(argv):
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    source = argv[0] if argv and not argv[0].startswith("-") else None
    with needs_extra("train"):
        if source:
            config = _chosen(source, argv[1:])
        else:
            config = read_config(argv, "train", DESCRIPTION)
            check_sources(config)

        from accelerate import PartialState

        from ..training import dry_run, train
        from ..training.curves import summary

    if config.dry_run:
        estimates = dry_run(config)
        if PartialState().is_main_process:
            print(estimates)
        return 0
    with _explains_resuming(config):
        result = train(config, print if source else None)
        if PartialState().is_main_process:
            if source:
                _conclude(config, result)
            else:
                print(summary(result.history, result.selected_by))
                print(f"best checkpoint: {result.checkpoint}, curves: {result.checkpoint.parent / 'curves.png'}")
    return 0


def _chosen(source: str, argv: Sequence[str]) -> "TrainingConfig":
    """The options of a run on one source, as of `TrainingConfig.recommended`."""
    name = Path(os.path.abspath(source)).stem  # of `.` too
    argv = [f"--data.source={source}", f"--output_dir={Path('runs') / name}", *argv]
    config = read_config(argv, "train", DESCRIPTION)
    check_sources(config)

    from ..training.recipe import recommend

    return recommend(config, names_set(argv, "train"))


@contextmanager
def _explains_resuming(config: "TrainingConfig") -> Iterator[None]:
    from ..training.checkpoints import STATES

    try:
        yield
    except KeyboardInterrupt:
        states = Path(config.output_dir) / STATES
        if any(states.glob("step-*")):
            print(f"\nstopped: the same command resumes from the newest state in {states}")
        else:
            print("\nstopped before the first state was saved: the same command starts again")
        raise


def _conclude(config: "TrainingConfig", result: "TrainingResult") -> None:
    """Scores the best checkpoint, writes a report, and prints both and the next command. Runs on one process."""
    from ..data.teachers import teachers_of
    from ..evaluation import choose_tokenizer
    from ..evaluation.metrics import few_images_note
    from ..scoring_run import caption_references, load_references, score

    (source,) = config.data.sources
    folder, checkpoint = result.checkpoint.parent, str(result.checkpoint)
    references = load_references(source.path, config.data.validation_split, **config.data.reading(source))
    tokenizer = choose_tokenizer(list(references.captions.values()), java=False)
    captions = caption_references(references, checkpoint)
    scored = score(references, captions, metrics=("cider", "bleu", "diversity"), tokenizer=tokenizer)
    scored.save(folder)
    scored.keep()
    best, number = result.best, len(references.captions)
    print(f"\nbest: epoch {best['epoch']:.0f} of {len(result.history)}, on {number} validation images")
    print(scored.scores.table())
    if note := few_images_note(number):
        print(note)
    if result.is_improving:
        print(f"still improving: --epochs {2 * config.optimization.epochs} continues from here and may help")
    exact = _exact(scored.scores.scores[captions.name].captions)
    if exact:
        print(f"{exact} of {number} captions match a reference word for word.")
    teachers = [each["name"] for each in teachers_of(source.path)]
    author = "teacher" if teachers else "people"
    print(f"\ncaptions of validation images, and what {' and '.join(teachers) or author} wrote")
    for (name, texts), caption in list(zip(references.captions.items(), captions.captions, strict=True))[:SHOWN]:
        print(f"  {name}: {caption.text or '(empty)'}\n      {author}: {texts[0]}")
    print(f"\nall of them with pictures: {folder / 'report.html'}, curves: {folder / 'curves.png'}")
    print(f"next: gru-captioner caption photo.jpg --checkpoint {checkpoint}")


def _exact(captions: "CaptionSet") -> int:
    """The number of captions whose words match a reference of their image."""
    return sum(caption in references for caption, references in captions)
