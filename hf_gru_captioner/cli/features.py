"""`gru-captioner features`: encodes the images of a training run in advance. It takes the options of `train`."""

from collections.abc import Sequence

from ..errors import UsageError, counted, needs_extra
from .shell import quiet_transformers
from .training_options import check_sources, options_as_typed, read_config


def run(argv: Sequence[str]) -> int:
    """`gru-captioner features`, also under `accelerate launch`: the processes of a machine share the images."""
    with options_as_typed(argv):
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    with needs_extra("train"):
        config = read_config(argv, "features", "Encodes the images of a training run in advance, into its cache.")
        check_sources(config)

        from accelerate import Accelerator

        from ..training.assembly import Assembly

    if not config.caches_regions:
        raise UsageError(
            "nothing to encode in advance: the cache is for a frozen encoder and stored images "
            "(data.cache true, data.streaming false, optimization.encoder_learning_rate null)."
        )
    quiet_transformers()
    accelerator = Accelerator()
    assembly = Assembly(config, accelerator)
    missing = sum(assembly.cache.missing_bytes(*each) for each in assembly.to_encode)
    accelerator.print(f"to be written: {missing / 1e9:.2f} GB, into {assembly.cache.folder}")
    if config.dry_run:
        return 0
    for dataset, view in assembly.to_encode:
        regions = assembly.regions(dataset, view)
        _, num_regions, width = regions.shape
        directory = assembly.cache.directory(dataset, view)
        number = counted(len(dataset), "image")
        accelerator.print(f"{directory.name}  {number}, {view}: {num_regions} regions of width {width}")
    return 0
