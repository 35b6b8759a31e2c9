"""Builds what `features` and `train` need from a configuration: datasets, model, processor, cached regions."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset, Image

from ..captioner import Captioner
from ..data import (
    CaptionCollator,
    CaptionedImages,
    CaptionedRegions,
    EpochBatches,
    MixedSource,
    MixedStream,
    Mixture,
    NoSplitError,
    RegionCache,
    Regions,
    StreamedBatches,
    View,
    load_captions,
    stream_captions,
)
from ..data.features import carried_columns
from ..data.mixture import images_of_epoch
from ..data.sources import LABELS
from ..errors import UsageError, listed
from ..hub import public_name
from ..inference.backend import PYTORCH
from ..label_names import LabelNames, read_synonyms
from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from ..tokenization import (
    build_tokenizer,
    count_unknown,
    is_verbatim,
    lengths,
    needed_length,
    special_token_ids,
    suitable_kind,
)
from .config import SourceConfig, TrainingConfig
from .cross_entropy import CrossEntropy
from .depthwise import use_fast_depthwise_gradients
from .encoder import PretrainedEncoder
from .label_head import LabelHead, WithLabelLoss, label_frequencies
from .scst import LabelReward, SelfCritical, count_ngrams
from .trainer import Objective
from .warm_start import extend_vocabulary, reset_encoder, resize_images

_logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 24  # of a caption, unless the tokenizer is verbatim
NAMED = 5  # images or words that a message lists
MANY_UNKNOWN = 0.05  # fraction of the words


class Assembly:
    """The parts of a run, each built on first use. The same on every process.

    Args:
        config: The training options.
        accelerator: The processes; the first of each machine loads the data first, the others load it from the cache.
    """

    def __init__(self, config: TrainingConfig, accelerator: Any):
        self.config = config
        self.accelerator = accelerator

    @cached_property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources by unique public name."""
        named: dict[str, SourceConfig] = {}
        for source in self.config.data.sources:
            name = public = public_name(source.path)
            number = 1
            while name in named:
                number += 1
                name = f"{public}-{number}"
            named[name] = source
        return named

    @cached_property
    def training_sets(self) -> list[Dataset]:
        """Rows of the training split of each source; not with streaming."""
        data = self.config.data
        return [_head(self._load(each, data.train_split), data.max_images) for each in self.sources.values()]

    @cached_property
    def validation_sets(self) -> dict[str, Dataset]:
        """Rows of the validation split of each source that is validated on; held in memory with streaming."""
        sets = {}
        for name, source in self.sources.items():
            if source.validate:
                try:
                    sets[name] = self._validation_set(source)
                except NoSplitError as error:
                    if len(self.sources) == 1:
                        raise
                    _logger.info("no validation on a source: %s", error)
        if not sets:
            raise UsageError(
                f"no source to validate on has a split {self.config.data.validation_split!r}: it is needed to select "
                "the best epoch."
            )
        if not self.config.data.streaming:
            self._warn_of_shared_images(sets)
        return sets

    def _warn_of_shared_images(self, validation_sets: dict[str, Dataset]) -> None:
        """Warns of validation images that are also training images."""
        training_digests = {digest for rows in self.training_sets for digest in rows["image_digest"]}
        for name, rows in validation_sets.items():
            columns = zip(rows["image_id"], rows["image_digest"], strict=True)
            shared = [image_id for image_id, digest in columns if digest in training_digests]
            if shared and self.accelerator.is_main_process:
                _logger.warning(
                    "%d of the %d validation images of %s are also training images, so scores are unreliable: %s",
                    *(len(shared), len(rows), name, listed(shared, NAMED)),
                )

    def _validation_set(self, source: SourceConfig):
        split, max_images = self.config.data.validation_split, self.config.validation.max_images
        if self.config.data.streaming:
            stream = self.stream(source, split)
            undecoded = stream.cast_column("image", Image(decode=False))  # decoded images would be encoded again
            return Dataset.from_list(list(undecoded.take(max_images)), features=stream.features)
        return _head(self._load(source, split), max_images)

    @property
    def images_per_epoch(self) -> int:
        """Number of images per epoch, including repeats; not with streaming."""
        sizes = zip(self.training_sets, self.sources.values(), strict=True)
        return sum(len(images_of_epoch(len(rows), source.repeat)) for rows, source in sizes)

    @cached_property
    def known_captions(self) -> list[list[str]]:
        """Captions of each image from which vocabulary and document frequencies are computed."""
        if not self.config.data.streaming:
            return [captions for rows in self.training_sets for captions in rows["captions"]]
        return [row["captions"] for row in self._counted_rows]

    @cached_property
    def _counted_rows(self) -> list[dict[str, Any]]:
        """With streaming: the rows from which frequencies are computed, without their images."""
        data = self.config.data
        streams = [self._training_stream(each).take(data.streamed_vocabulary) for each in self.sources.values()]
        return [{name: value for name, value in row.items() if name != "image"} for rows in streams for row in rows]

    @cached_property
    def label_frequencies(self) -> dict[str, float]:
        """Fraction of the training images that have each label to learn; empty if labels are not used."""
        option = "optimization.label_loss" if self.config.optimization.label_loss else "self_critical.label_weight"
        if not self.config.optimization.label_loss and not self._rewards_labels:
            return {}
        if self.config.data.streaming:
            known = [row.get(LABELS) for row in self._counted_rows]
        else:
            known = [labels for rows in self.training_sets if LABELS in rows.column_names for labels in rows[LABELS]]
        min_count = self.config.tokenizer.min_count
        frequencies = label_frequencies(known, min_count)
        if not frequencies:
            raise UsageError(
                f"{option} needs training rows with labels, lists of strings: found "
                f"{sum(each is not None for each in known)} rows with labels, but no label that at least "
                f"tokenizer.min_count = {min_count} of them have."
            )
        return frequencies

    @property
    def _rewards_labels(self) -> bool:
        return self.config.objective == "self_critical" and self.config.self_critical.label_weight > 0

    def stream(self, source: SourceConfig, split: str, **share):
        return stream_captions(source.path, split, **self.config.data.reading(source), **share)

    def _training_stream(self, source: SourceConfig, **share):
        return self.stream(source, self.config.data.train_split, max_images=self.config.data.max_images, **share)

    def _load(self, source: SourceConfig, split: str):
        with self.accelerator.local_main_process_first():
            return load_captions(source.path, split, **self.config.data.reading(source))

    @cached_property
    def processor(self) -> GRUCaptionerProcessor:
        model = self.config.model
        if model.checkpoint is not None:
            if not self.config.data.streaming:
                self._log_limits(self._checkpoint.processor.tokenizer)
            return self._checkpoint.processor
        tokenizer = self._build_tokenizer()
        return self._encoder.processor(tokenizer, model.image_size)

    def _build_tokenizer(self):
        options = vars(self.config.tokenizer)
        captions = self._all_captions
        if options["kind"] == "auto":
            kind, reason = suitable_kind(captions)
            self._log("tokenizer       %s: %s", kind, reason)
            options = {**options, "kind": kind}
        tokenizer = build_tokenizer(captions, **options)
        self._log_limits(tokenizer)
        return tokenizer

    def _log_limits(self, tokenizer: Any) -> None:
        """Logs how many captions are too long to be learned or generated completely, and how many words are unknown."""
        captions = self._all_captions
        num_tokens = lengths(tokenizer, captions)
        for option, limit in (
            ("tokenizer.max_length", tokenizer.model_max_length),
            ("validation.max_new_tokens", self._max_new_tokens(tokenizer)),
        ):
            longer = [number for number in num_tokens if number > limit]
            if longer:
                self._log(
                    "%s of %s captions have more tokens than %s = %d, the longest %d: %s",
                    *(f"{len(longer):,}", f"{len(captions):,}", option, limit, max(longer)),
                    "they are truncated" if option.startswith("tokenizer") else "none will be generated that long",
                )
        unknown, number = count_unknown(tokenizer, captions)
        if self.config.model.checkpoint is not None and unknown > MANY_UNKNOWN * number:
            self._log(
                "%s of %s words of the captions are unknown to the checkpoint's tokenizer, which is kept: without "
                "model.checkpoint a new tokenizer is built",
                *(f"{unknown:,}", f"{number:,}"),
            )

    def _log(self, message: str, *arguments: Any) -> None:
        if self.accelerator.is_main_process:
            _logger.info(message, *arguments)

    @cached_property
    def _all_captions(self) -> list[str]:
        return [caption for of_image in self.known_captions for caption in of_image]

    def _max_new_tokens(self, tokenizer: Any) -> int:
        given = self.config.validation.max_new_tokens
        if given is not None:
            return given
        return needed_length(tokenizer, self._all_captions) if is_verbatim(tokenizer) else MAX_NEW_TOKENS

    @cached_property
    def _checkpoint(self) -> Captioner:
        """The captioner to continue from, loaded with the usual checks, then changed as configured."""
        options = self.config.model
        captioner = Captioner.from_pretrained(options.checkpoint, backend=PYTORCH)
        if options.extend_vocabulary:
            min_count = self.config.tokenizer.min_count
            words = extend_vocabulary(captioner.model, captioner.processor, self._all_captions, min_count)
            self._log("new words       %s", _list_words(words) if words else "none: the checkpoint knows all of them")
        if options.encoder_reset:
            reset_encoder(captioner.model, self._encoder, options.encoder_reset)
        if options.image_size:
            resize_images(captioner.model, captioner.processor, options.image_size)
        return captioner

    @cached_property
    def _encoder(self) -> PretrainedEncoder:
        return PretrainedEncoder(self.config.model.encoder)

    @cached_property
    def model(self) -> GRUCaptionerForConditionalGeneration:
        config, tokenizer = self.config, self.processor.tokenizer
        optimization = config.optimization
        if config.model.checkpoint is not None:
            model = self._checkpoint.model
            model.config.dropout = model.decoder.dropout.p = config.model.dropout
        else:
            fields: dict[str, Any] = {**vars(config.model), **special_token_ids(tokenizer)}
            for name in (
                "image_size",
                "checkpoint",
                "extend_vocabulary",
                "encoder",
                "encoder_reset",
            ):  # no fields of its configuration
                del fields[name]
            model = self._encoder.model(self.processor, **fields)
        if optimization.attention_penalty and model.config.attention_type == "none":
            raise UsageError("optimization.attention_penalty: this checkpoint has no attention to penalize.")
        validation = config.validation
        model.generation_config.update(
            num_beams=validation.num_beams,
            length_penalty=validation.length_penalty if validation.num_beams > 1 else 1.0,  # greedy accepts only 1
            max_new_tokens=self._max_new_tokens(tokenizer),
            suppress_tokens=[tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
        )
        if validation.no_repeat_ngram_size is not None:
            model.generation_config.no_repeat_ngram_size = validation.no_repeat_ngram_size
        model.set_encoder_trainable(optimization.encoder_learning_rate is not None, optimization.encoder_first_layer)
        if optimization.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if optimization.compile:
            model.encoder.vision.backbone.compile()
        if not (optimization.gradient_checkpointing or optimization.compile):  # both would bypass its hooks
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
        crops = [View(crop=number + 1, may_mirror=data.mirror) for number in range(data.crops)]
        return [View(), *mirrored, *crops]

    @property
    def to_encode(self) -> list[tuple[Dataset, View]]:
        """The images of which a run needs cached regions: for training in each view, for validation unchanged."""
        training = [(rows, view) for rows in self.training_sets for view in self.views]
        return [*training, *((rows, View()) for rows in self.validation_sets.values())]

    def regions(self, dataset, view: View) -> Regions:
        """Regions from the cache, or encoded now by all processes of this machine together."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine; set by torchrun and accelerate launch
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
            share = {"rank": process, "world_size": processes, "seed": optimization.seed}
            streams = [self._training_stream(source, **share) for source in self.sources.values()]
            stream = (
                streams[0] if isinstance(data.source, str) else MixedStream(self._mixed(streams), optimization.seed)
            )
            images, steps = optimization.images_per_step // parts, data.steps_per_epoch or 0  # not None with streaming
            return StreamedBatches(stream, self.collator, images, steps, block_size=data.shuffle_block, **settings)
        rows = Mixture(self._mixed([self._training_rows(each) for each in self.training_sets]), optimization.seed)
        settings |= {"process": process, "processes": processes, "num_workers": data.num_workers}
        return EpochBatches(rows, self.collator, optimization.images_per_step, **settings)

    def _mixed(self, rows_of_sources: Sequence[Any]) -> list[MixedSource]:
        return [
            MixedSource(rows, source.repeat, source.weight, source.captions_per_epoch)
            for rows, source in zip(rows_of_sources, self.sources.values(), strict=True)
        ]

    def _training_rows(self, dataset: Dataset) -> CaptionedImages | CaptionedRegions:
        data, seed = self.config.data, self.config.optimization.seed
        if not self.config.caches_regions:
            return CaptionedImages(dataset, color_jitter=data.color_jitter, seed=seed, mirror=data.mirror)
        views = [self.regions(dataset, view) for view in self.views]
        return CaptionedRegions(views, list(dataset["captions"]), seed, **carried_columns(dataset))

    @cached_property
    def validation_rows(self) -> dict[str, CaptionedImages | CaptionedRegions]:
        """Rows of each of `validation_sets`."""
        return {name: self._validation_rows(dataset) for name, dataset in self.validation_sets.items()}

    def _validation_rows(self, dataset: Dataset) -> CaptionedImages | CaptionedRegions:
        if not self.config.caches_regions:
            return CaptionedImages(dataset, augment=False)
        return CaptionedRegions([self.regions(dataset, View())], list(dataset["captions"]))

    @cached_property
    def objective(self) -> Objective:
        options = self.config.optimization
        if self.config.objective == "self_critical":
            objective: Objective = self._make_self_critical()
        else:
            objective = CrossEntropy(options.label_smoothing, options.scheduled_sampling, options.attention_penalty)
        if not options.label_loss:
            return objective
        label_head = LabelHead(self.model.encoder.vision.region_size, list(self.label_frequencies.values()))
        return WithLabelLoss(objective, label_head.to(self.accelerator.device), options.label_loss)

    def _make_self_critical(self) -> SelfCritical:
        labels = (self.processor.tokenizer(captions)["input_ids"] for captions in self.known_captions)
        settings = dict(vars(self.config.self_critical))
        weight, synonyms = settings.pop("label_weight"), settings.pop("synonyms")
        if weight:
            known = list(self.label_frequencies)
            names = LabelNames(known, read_synonyms(synonyms) if synonyms else None)
            settings["label_reward"] = LabelReward(known, names, self.processor.batch_decode, weight)
        encode_once = self.config.optimization.micro_batches == 1
        return SelfCritical(count_ngrams(labels), encode_once=encode_once, **settings)


def _list_words(words: Sequence[str]) -> str:
    return f"{len(words):,}: {', '.join(words[:NAMED])}{' ...' if len(words) > NAMED else ''}"


def _head(rows, number: int | None):
    return rows if number is None else rows.select(range(min(number, len(rows))))
