"""`gru-captioner train`: a data set in, a checkpoint out. Its arguments are the fields of `TrainingConfig`."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from .shell import UsageError, needs_extra


def run(argv: Sequence[str]) -> int:
    """`gru-captioner train`, and `accelerate launch scripts/train.py`. Runs on every process.

    Everything that a cache or a checkpoint is written to is written by the main process alone.
    """
    with needs_extra("train"):
        import torch
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs, set_seed
        from torch.utils.data import DataLoader, TensorDataset
        from tqdm import tqdm

        from ..data import CaptionCollator, CaptionedRegions, View, cache_regions, load_captions
        from ..evaluation import score_captions
        from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
        from ..tokenization import build_tokenizer, special_token_ids
        from ..training import CaptionTrainer, write_captions

        config = _training_config(argv)

    optimization, validation = config.optimization, config.validation
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while one encodes the photos
    accelerator = Accelerator(mixed_precision=optimization.mixed_precision, kwargs_handlers=[patience])
    set_seed(optimization.seed)
    with accelerator.main_process_first():
        training_set = load_captions(config.data.source, config.data.train_split)
        validation_set = load_captions(config.data.source, config.data.validation_split)
    captions = list(training_set["captions"])
    tokenizer = build_tokenizer((each for of_image in captions for each in of_image), **vars(config.tokenizer))
    processor = GRUCaptionerProcessor.from_encoder_pretrained(config.model.encoder, tokenizer, config.model.image_size)
    fields: dict[str, Any] = {**vars(config.model), **special_token_ids(tokenizer)}
    del fields["image_size"]  # the processor's
    model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(fields.pop("encoder"), **fields)
    model.generation_config.update(
        num_beams=validation.num_beams,
        length_penalty=validation.length_penalty,
        max_new_tokens=validation.max_new_tokens,
        suppress_tokens=[tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
    )

    encoder = model.encoder.vision.to(accelerator.device)

    encoder_config: Any = model.config.encoder_config
    settings = processor.image_processor.to_json_string() + encoder_config.to_json_string()

    def regions_of(dataset, view: View):
        return cache_regions(
            dataset,
            encoder,
            lambda images: processor(images=images)["pixel_values"],
            settings,
            config.data.cache_folder,
            view=view,
            progress=lambda batches, total: tqdm(batches, f"encoding photos, {view}", total, unit="batch"),
        )

    with accelerator.main_process_first():
        views = [View(), *[View(mirror=True)] * config.data.mirror]
        views += [View(crop=number + 1) for number in range(config.data.crops)]
        training_regions = [regions_of(training_set, view) for view in views]
        validation_regions = TensorDataset(torch.from_numpy(regions_of(validation_set, View())))

    references = list(validation_set["captions"])
    validation_batches = accelerator.prepare(DataLoader(validation_regions, batch_size=validation.images_per_batch))

    def validate(averaged_model) -> dict[str, float]:
        regions = (batch for (batch,) in validation_batches)
        written = write_captions(averaged_model, processor, regions, accelerator)
        return score_captions(
            written, references, metrics=("bleu", "cider"), tokenizer="simple", human=False, bootstrap=0
        ).figures

    batches = DataLoader(
        CaptionedRegions(training_regions, captions),
        batch_size=optimization.images_per_step,
        shuffle=True,
        collate_fn=CaptionCollator(processor),
    )
    trainer = CaptionTrainer(model, processor, accelerator, optimization, config.output_dir)
    trainer.fit(batches, validate)
    accelerator.print(f"the best checkpoint is in {trainer.output_dir / 'checkpoint'}")
    accelerator.end_training()
    return 0


def _training_config(argv: Sequence[str]):
    """The resolved configuration: the YAML file of `--config`, and the command line over it."""
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    from ..training.config import TrainingConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="gru-captioner train",
        description="Trains a captioner; knobs not given keep their defaults.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of these knobs")
    parser.add_class_arguments(TrainingConfig)
    try:
        parsed = parser.instantiate(parser.parse_args(list(argv)))
    except ArgumentError as error:
        raise UsageError(f"{error}. The knobs: gru-captioner train --help") from error
    return TrainingConfig(**{name: value for name, value in vars(parsed).items() if name != "config"})
