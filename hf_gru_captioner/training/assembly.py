"""What `features` and `train` both build from a configuration: data sets, model, processor, cached regions."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError

from ..captioner import Captioner
from ..checkpoint import Source, check_work, encoder_folder, names_damaged
from ..data import (
    CaptionCollator,
    CaptionedImages,
    CaptionedRegions,
    EpochBatches,
    RegionCache,
    Regions,
    StreamedBatches,
    View,
    load_captions,
    stream_captions,
)
from ..data.sources import LABELS, WEIGHTS
from ..errors import UsageError
from ..hub import public_name
from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from ..tokenization import build_tokenizer, special_token_ids
from .config import TrainingConfig
from .cross_entropy import CrossEntropy
from .depthwise import use_fast_depthwise_gradients
from .label_head import LabelHead, label_frequencies
from .scst import SelfCritical, count_ngrams


class Assembly:
    """The parts of a run, each built when it is first used. The same on every process.

    Args:
        config: The training options.
        accelerator: The processes; the first of each machine reads the data first, the others find it cached.
    """

    def __init__(self, config: TrainingConfig, accelerator: Any):
        self.config = config
        self.accelerator = accelerator

    @cached_property
    def training_set(self):
        """Rows of the training split; not with streaming."""
        return _first(self._load(self.config.data.train_split), self.config.data.max_images)

    @cached_property
    def validation_set(self):
        """Rows of the validation split; held in memory with streaming."""
        max_images = self.config.validation.max_images
        if self.config.data.streaming:
            return Dataset.from_list(list(self.stream(self.config.data.validation_split).take(max_images)))
        return _first(self._load(self.config.data.validation_split), max_images)

    @cached_property
    def known_captions(self) -> list[list[str]]:
        """Captions of each image that vocabulary and document frequencies are counted on."""
        if not self.config.data.streaming:
            return list(self.training_set["captions"])
        return [row["captions"] for row in self._first_of_stream]

    @cached_property
    def _first_of_stream(self) -> list[dict[str, Any]]:
        """Captions, and labels if there are any, of the rows that are counted with streaming."""
        rows = self.stream(self.config.data.train_split).take(self.config.data.streamed_vocabulary)
        return [{name: value for name, value in row.items() if name != "image"} for row in rows]

    @cached_property
    def label_frequencies(self) -> dict[str, float]:
        """Fraction of the training images that have each label to be learned; empty without `label_loss`."""
        if not self.config.optimization.label_loss:
            return {}
        if self.config.data.streaming:
            known = [row.get(LABELS) for row in self._first_of_stream]
        else:
            known = list(self.training_set[LABELS]) if LABELS in self.training_set.column_names else []
        min_count = self.config.tokenizer.min_count
        found = label_frequencies(known, min_count)
        if not found:
            raise UsageError(
                "optimization.label_loss needs training rows with labels, a list of strings: found "
                f"{sum(each is not None for each in known)} rows with labels, and no label that tokenizer.min_count = "
                f"{min_count} of them have."
            )
        return found

    def stream(self, split: str, **share):
        return stream_captions(self.config.data.source, split, **self._reading, **share)

    def _load(self, split: str):
        with self.accelerator.local_main_process_first():
            return load_captions(self.config.data.source, split, **self._reading)

    @property
    def _reading(self) -> dict[str, Any]:
        data = self.config.data
        return {"images": data.images, "max_skipped": data.max_skipped, "allow_urls": data.allow_urls}

    @cached_property
    def processor(self) -> GRUCaptionerProcessor:
        model = self.config.model
        if model.checkpoint is not None:
            return self._checkpoint.processor
        captions = (caption for of_image in self.known_captions for caption in of_image)
        tokenizer = build_tokenizer(captions, **vars(self.config.tokenizer))
        with _loading(model.encoder):
            return GRUCaptionerProcessor.from_encoder_pretrained(self._encoder, tokenizer, model.image_size)

    @cached_property
    def _checkpoint(self) -> Captioner:
        """The captioner to continue from, with the checks of every command that loads one."""
        return Captioner.from_pretrained(self.config.model.checkpoint)

    @cached_property
    def _encoder(self) -> str:
        """Folder of the pretrained encoder."""
        with _loading(self.config.model.encoder):
            return str(encoder_folder(Source(self.config.model.encoder)))

    @cached_property
    def model(self) -> GRUCaptionerForConditionalGeneration:
        config, tokenizer = self.config, self.processor.tokenizer
        optimization = config.optimization
        if config.model.checkpoint is not None:
            model = self._checkpoint.model
            model.config.dropout = model.decoder.dropout.p = config.model.dropout
        else:
            fields: dict[str, Any] = {**vars(config.model), **special_token_ids(tokenizer)}
            del fields["image_size"], fields["checkpoint"]  # of the processor; None
            encoder = fields.pop("encoder")
            with _loading(encoder):
                model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(self._encoder, **fields)
                check_work(model, self.processor)
            encoder_config: Any = model.config.encoder_config
            encoder_config._name_or_path = public_name(encoder)  # its name in checkpoint and card
        if optimization.attention_penalty and model.config.attention_type == "none":
            raise UsageError("optimization.attention_penalty: this checkpoint has no attention to penalize.")
        validation = config.validation
        model.generation_config.update(
            num_beams=validation.num_beams,
            length_penalty=validation.length_penalty if validation.num_beams > 1 else 1.0,  # only 1 is valid for greedy
            max_new_tokens=validation.max_new_tokens,
            suppress_tokens=[tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
        )
        model.set_encoder_trainable(optimization.encoder_learning_rate is not None, optimization.encoder_first_layer)
        if optimization.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if optimization.compile:
            model.encoder.vision.backbone.compile()
        if not (optimization.gradient_checkpointing or optimization.compile):  # both would run it outside of the hooks
            use_fast_depthwise_gradients(model.encoder.vision.backbone)
        return model.to(self.accelerator.device)

    @cached_property
    def cache(self) -> RegionCache:
        processor, model = self.processor, self.model.eval()
        return RegionCache(
            self.config.data.cache_folder,
            model.encoder.vision,
            model.config.encoder_config,
            lambda images: processor(images=images)["pixel_values"],
            processor.image_processor.to_dict(),
            precision=self.config.data.cache_precision,
        )

    @property
    def views(self) -> list[View]:
        """The views of the training images."""
        data = self.config.data
        mirrored = [View(mirror=True)] if data.mirror else []
        return [View(), *mirrored, *(View(crop=number + 1) for number in range(data.crops))]

    @property
    def to_encode(self) -> list[tuple[Dataset, View]]:
        """What a run with cached regions reads: the training images in each view, the validation images whole."""
        return [*((self.training_set, view) for view in self.views), (self.validation_set, View())]

    def regions(self, dataset, view: View) -> Regions:
        """From the cache, or encoded now by the processes of this machine together."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine; set by torchrun and accelerate
        return self.cache.regions(dataset, view, process=self.accelerator.local_process_index, processes=processes)

    @cached_property
    def collator(self) -> CaptionCollator:
        return CaptionCollator(self.processor, label_names=list(self.label_frequencies))

    def batches(self) -> EpochBatches | StreamedBatches:
        """This process's training batches."""
        data, optimization, accelerator = self.config.data, self.config.optimization, self.accelerator
        process, processes = accelerator.process_index, accelerator.num_processes
        settings: dict[str, Any] = {"micro_batches": optimization.micro_batches, "seed": optimization.seed}
        if data.streaming:
            parts = processes * optimization.micro_batches
            if optimization.images_per_step % parts:
                raise UsageError(f"with streaming, optimization.images_per_step must be a multiple of {parts}.")
            stream = self.stream(data.train_split, rank=process, world_size=processes, seed=optimization.seed)
            images, steps = optimization.images_per_step // parts, data.steps_per_epoch or 0  # not None with streaming
            return StreamedBatches(stream, self.collator, images, steps, block_size=data.shuffle_block, **settings)
        rows: CaptionedRegions | CaptionedImages
        if self.config.caches_regions:
            views = [self.regions(self.training_set, view) for view in self.views]
            weights = list(self.training_set[WEIGHTS]) if WEIGHTS in self.training_set.column_names else None
            rows = CaptionedRegions(views, list(self.training_set["captions"]), optimization.seed, weights)
        else:
            rows = CaptionedImages(self.training_set, color_jitter=data.color_jitter, seed=optimization.seed)
        settings |= {"process": process, "processes": processes, "num_workers": data.num_workers}
        return EpochBatches(rows, self.collator, optimization.images_per_step, **settings)

    @cached_property
    def validation_rows(self) -> CaptionedImages | CaptionedRegions:
        if not self.config.caches_regions:
            return CaptionedImages(self.validation_set, augment=False)
        captions = list(self.validation_set["captions"])
        return CaptionedRegions([self.regions(self.validation_set, View())], captions)

    @property
    def objective(self) -> CrossEntropy | SelfCritical:
        if self.config.objective == "cross_entropy":
            options, label_head = self.config.optimization, None
            if options.label_loss:
                label_head = LabelHead(self.model.encoder.vision.region_size, list(self.label_frequencies.values()))
            return CrossEntropy(
                options.label_smoothing,
                options.scheduled_sampling,
                options.attention_penalty,
                label_head=label_head,
                label_weight=options.label_loss,
            )
        labels = (self.processor.tokenizer(captions)["input_ids"] for captions in self.known_captions)
        return SelfCritical(count_ngrams(labels), **vars(self.config.self_critical))


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Names the encoder in errors of a damaged one, and of sizes that don't match."""
    with names_damaged(f"the encoder {name}", OSError, ValueError):
        try:
            yield
        except StrictDataclassError as error:  # an option of the model is out of range
            raise UsageError(str(error.__cause__ or error)) from error


def _first(rows, number: int | None):
    return rows if number is None else rows.select(range(min(number, len(rows))))
