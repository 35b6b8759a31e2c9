"""`gru-captioner train`: a data set in, a checkpoint out. Its arguments are the fields of `TrainingConfig`."""

from collections.abc import Sequence

from ..errors import needs_extra
from .training_options import check_sources, read_config


def run(argv: Sequence[str]) -> int:
    """`gru-captioner train`, and `accelerate launch scripts/train.py`. Runs on every process."""
    with needs_extra("train"):
        config = read_config(argv, "train", "Trains a captioner. Options that are not given keep their defaults.")
        check_sources(config)

        from accelerate import PartialState

        from ..training import dry_run, train
        from ..training.curves import summary

    if config.dry_run:
        estimates = dry_run(config)
        if PartialState().is_main_process:
            print(estimates)
        return 0
    result = train(config)
    if PartialState().is_main_process:
        print(summary(result.history, result.selected_by))
        print(f"best checkpoint: {result.checkpoint}, curves: {result.checkpoint.parent / 'curves.png'}")
    return 0
