"""`gru-captioner features`: encodes the photos of a training run ahead of it. Its options are those of `train`."""

from collections.abc import Sequence

from ..errors import UsageError, needs_extra
from .shell import quiet_transformers


def run(argv: Sequence[str]) -> int:
    """`gru-captioner features`, also under `accelerate launch`: the processes of a machine share the photos."""
    with needs_extra("train"):
        from accelerate import Accelerator

        from ..training.assembly import Assembly
        from .training_options import read_config

        config = read_config(
            argv, "features", "Encodes the photos of a training run ahead of it, into data.cache_folder."
        )
    if not config.caches_regions:
        raise UsageError(
            "nothing to encode ahead: the cache is for an encoder that doesn't learn and photos that are stored "
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
        places, width = regions.shape[1:]
        home = assembly.cache.home(dataset, view)
        accelerator.print(f"{home.name}  {len(dataset)} photos, {view}: {places} regions of {width} numbers")
    return 0
