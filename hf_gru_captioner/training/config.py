"""All options of a training run, with their units.

They are set in a YAML file or by `TrainingConfig.from_options`; the command line overrides the file. Imports nothing
heavy: `gru-captioner train --help` reads this module.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from ..checkpoint_limits import LENGTH_PENALTY
from ..errors import UsageError

# Options that may change when a run is resumed: paths, display, and others that don't affect a training step.
UNCLAIMED = {
    "data.cache_folder",
    "data.num_workers",
    "dry_run",
    "measure_energy",
    "optimization.patience",
    "optimization.state_steps",
    "optimization.states_kept",
    "output_dir",
    "push_to_hub",
    "save_onnx",
    "tracker",
    "validation.shown",
}

# Options that `TrainingConfig.recommended` and `gru-captioner train SOURCE` choose, unless they are given.
RECOMMENDED = {
    "data.mirror",
    "model.checkpoint",
    "model.encoder",
    "model.extend_vocabulary",
    "optimization.epochs",
    "optimization.images_per_step",
    "optimization.patience",
    "tokenizer.min_count",
    "validation.max_new_tokens",
    "validation.num_beams",
}

# Ranges of the numeric options; all others are at least 0.
COUNTS = {  # at least 1
    "data.max_images",
    "data.shuffle_block",
    "data.steps_per_epoch",
    "data.streamed_vocabulary",
    "model.embedding_size",
    "model.hidden_size",
    "model.image_size",
    "model.num_attention_heads",
    "optimization.epochs",
    "optimization.images_per_step",
    "optimization.micro_batches",
    "optimization.patience",
    "optimization.state_steps",
    "optimization.states_kept",
    "self_critical.samples",
    "tokenizer.max_length",
    "tokenizer.min_count",
    "tokenizer.vocab_size",
    "validation.images_per_batch",
    "validation.max_images",
    "validation.max_new_tokens",
    "validation.num_beams",
}
SHARES = {  # from 0 to 1
    "data.color_jitter",
    "data.max_skipped",
    "model.encoder_reset",
    "optimization.ema_decay",
    "optimization.scheduled_sampling",
    "optimization.warmup_share",
}
SHARES_BELOW_1 = {  # from 0 to below 1, where nothing would be left to learn from
    "model.dropout",
    "optimization.label_smoothing",
    "self_critical.cross_entropy_weight",
}
ABOVE_0 = {"self_critical.temperature"}
MAY_BE_NEGATIVE = {"validation.length_penalty"}
MAX_REPEAT, MAX_WEIGHT = 1000, 1000  # of a source

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")  # also those of YAML 1.2 alone


def flatten_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested options to full names: `{"data.source": ...}`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flatten_options(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources of `data.source`."""

    path: str
    """Hub id of a captioned dataset, a folder, or a file of captions."""
    images: str | None = None
    """Folder of the images that a caption file names; null to look beside the file."""
    image_column: str | None = None
    """Column with the images; null to recognize it by its name."""
    caption_column: str | None = None
    """Column with the captions, or several separated by commas; null to recognize them by their names."""
    repeat: float = 1.0
    """Times that each image occurs per epoch; a fractional part selects a fixed random subset of the images."""
    weight: float = 1.0
    """Weight of its captions in the loss."""
    captions_per_epoch: int | None = None
    """Maximum number of captions per image and epoch, sampled anew in each epoch; null for all."""
    validate: bool = True
    """Whether to validate on its validation split, if it has one."""


@dataclass(frozen=True)
class DataConfig:
    """The images and captions."""

    source: str | list[SourceConfig]
    """Hub id of a captioned dataset, a folder, or a file of captions: see `load_captions`. Or a list of several, each
    with its weight: [{path: ..., repeat: ..., weight: ...}], see `SourceConfig`."""
    images: str | None = None
    """Folder of the images that a caption file names; null to look beside the file."""
    image_column: str | None = None
    """Column with the images; null to recognize it by its name."""
    caption_column: str | None = None
    """Column with the captions, or several separated by commas; null to recognize them by their names."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split on which the best epoch is selected."""
    max_images: int | None = None
    """Maximum number of training images per source, the first of the split; null for all. With streaming and several
    processes, the first of the shards of each."""
    max_skipped: float = 0.01
    """Maximum fraction of images that may be unreadable or lack a caption; above it the run stops."""
    allow_urls: bool = False
    """Download images from the URLs in the dataset, from the public web only; never with HF_HUB_OFFLINE."""
    cache: bool = True
    """Cache the frozen encoder's outputs on disk; otherwise every epoch encodes the images, in new random crops."""
    cache_folder: str = "~/.cache/hf_gru_captioner"
    """Folder of the cached encoder outputs; 0.13 GB per thousand images at 7x7 regions of width 1280."""
    cache_precision: Literal["float16", "bfloat16"] = "float16"
    """Precision of the cached encoder outputs."""
    mirror: bool = True
    """Also train on mirrored images, and mirror half of the crops; each epoch uses one random view of each image. Adds
    a cache."""
    crops: int = 0
    """Number of random crops per image to train on too, each 60 to 100 % of its area; each adds a cache."""
    color_jitter: float = 0.0
    """Maximum random change of brightness, contrast and saturation, as a fraction; only without the cache."""
    streaming: bool = False
    """Read images as they arrive instead of downloading all first; for datasets larger than the disk. No cache."""
    steps_per_epoch: int | None = None
    """Steps between validations; required with streaming, since a stream has no epochs."""
    shuffle_block: int = 512
    """With streaming: number of images held in memory for shuffling, about a megabyte each."""
    streamed_vocabulary: int = 20_000
    """With streaming: number of images whose captions determine vocabulary and document frequencies."""
    num_workers: int = 0
    """Number of worker processes that prefetch and decode images."""

    @property
    def sources(self) -> list[SourceConfig]:
        """All sources, in order."""
        if not isinstance(self.source, str):
            return self.source
        return [SourceConfig(self.source, self.images, self.image_column, self.caption_column)]

    def reading(self, source: SourceConfig) -> dict[str, Any]:
        """Keyword arguments of `load_captions` for one of `sources`; they are fields of `ReadingOptions`."""
        return {
            "images": source.images,
            "image_column": source.image_column,
            "caption_column": source.caption_column,
            "max_skipped": self.max_skipped,
            "allow_urls": self.allow_urls,
            "spelling": "data.{}",
        }


@dataclass(frozen=True)
class TokenizerConfig:
    """Tokenization; see `build_tokenizer`."""

    kind: Literal["auto", "word", "bpe", "verbatim"] = "auto"
    """Whole words, byte-pair subwords, or verbatim: subwords of the text exactly as written; auto chooses by the
    captions and logs its choice."""
    min_count: int = 5
    """Words that occur less often in the training captions become unknown."""
    vocab_size: int | None = None
    """Maximum number of tokens; null for no limit."""
    max_length: int | None = None
    """Maximum length of a training caption in tokens; longer ones are truncated. Null: 40, or if verbatim what nearly
    all captions need."""


@dataclass(frozen=True)
class ModelConfig:
    """The encoder, and the sizes of the decoder; see `GRUCaptionerConfig`."""

    encoder: str = "timm/tf_efficientnet_lite0.in1k"
    """Hub id or folder of a pretrained vision encoder, or of a captioner, whose vision encoder is used."""
    checkpoint: str | None = None
    """Hub id or folder of a captioner to continue from; its encoder, sizes and tokenizer replace those given here."""
    extend_vocabulary: bool = False
    """With a checkpoint: add the words of the training captions that it doesn't know, by tokenizer.min_count."""
    encoder_reset: float = 0.0
    """With a checkpoint: how far its encoder is reset to the pretrained weights of model.encoder, as a fraction."""
    image_size: int | None = None
    """Side of the square that images are resized to, in pixels; null for that of the encoder or the checkpoint."""
    embedding_size: int = 512
    """Width of the word embeddings."""
    hidden_size: int = 512
    """Width of the GRU states."""
    attention_type: str = "multihead"
    """Kind of attention over the regions: none, additive or multihead."""
    num_attention_heads: int = 8
    """Heads of multihead attention."""
    dropout: float = 0.5
    """Dropout rate of the embeddings, between the GRUs and before the output layer."""


@dataclass(frozen=True)
class OptimizationConfig:
    """Optimization."""

    epochs: int = 10
    """Passes over the images, each with all of its captions."""
    images_per_step: int = 32
    """Images per optimizer step over all processes, each with all of its captions."""
    micro_batches: int = 1
    """Gradient accumulation: parts into which each process splits a step to save memory; the result is the same."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    encoder_learning_rate: float | None = None
    """Peak learning rate of the vision encoder; null keeps it frozen."""
    encoder_first_layer: str | None = None
    """With optimization.encoder_learning_rate: name of the first encoder layer to train (blocks.4); null for all."""
    warmup_share: float = 0.03
    """Fraction of all steps in which the learning rate rises linearly to its peak; cosine decay to 0 follows."""
    weight_decay: float = 0.01
    """Decoupled weight decay, applied to matrices only."""
    label_smoothing: float = 0.1
    """Fraction of each target's probability that is spread over all words."""
    scheduled_sampling: float = 0.0
    """Fraction of input words sampled from the model at the end of the run; it grows from 0."""
    attention_penalty: float = 0.0
    """Weight of the penalty of Show, Attend and Tell on attending to a region more or less than once per caption."""
    label_loss: float = 0.0
    """Weight of the loss of predicting image labels (column `labels`); needs optimization.encoder_learning_rate."""
    max_grad_norm: float = 5.0
    """Norm to which gradients are clipped; 0 for no clipping."""
    ema_decay: float = 0.999
    """Decay of the weights' moving average, which spans about 1 / (1 - decay) steps and is validated and saved."""
    patience: int | None = None
    """Early stopping: epochs without a better validation score after which the run ends; null for never."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of matrix products; auto times fp32 (no) and bf16 on this machine, and logs its choice."""
    compile: bool = False
    """Compile the vision encoder with torch.compile; takes a minute or two, pays off if the encoder is trained."""
    gradient_checkpointing: bool = False
    """Recompute the vision encoder in the backward pass: saves memory if the encoder is trained."""
    checkpoint_precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Precision of the saved weights; captioning always runs in float32."""
    state_steps: int = 100
    """Steps between saved states, from which a run resumes after a power cut; each epoch ends with one too."""
    states_kept: int = 2
    """Number of most recent states to keep."""
    seed: int = 0
    """Seed of initialization, data order and dropout."""


@dataclass(frozen=True)
class SelfCriticalConfig:
    """Self-critical training: captions sampled from the model are rewarded by CIDEr-D."""

    samples: int = 5
    """Captions sampled per image; at least 2 with the baseline sample_mean."""
    baseline: Literal["sample_mean", "greedy"] = "sample_mean"
    """Baseline of a sample's reward: the image's other samples, or its greedy caption."""
    bleu_weight: float = 0.0
    """Weight of BLEU-4 (0 to 1) beside CIDEr-D (0 to 10) in the reward."""
    label_weight: float = 0.0
    """Weight, beside CIDEr-D, of naming an image's `labels`: 1 if any is named, minus 1 for each wrong one."""
    synonyms: str | None = None
    """With a label weight: YAML file of synonyms of each label; see configs/synonyms/coco.yaml."""
    cross_entropy_weight: float = 0.0
    """Weight of the reference captions' cross-entropy in the loss, as a fraction below 1."""
    temperature: float = 1.0
    """Sampling temperature."""


@dataclass(frozen=True)
class ValidationConfig:
    """Generation settings for validation, which are saved in the checkpoint's generation_config.json."""

    num_beams: int = 5
    """Number of beams."""
    length_penalty: float = 0.9
    """Exponent of the caption length by which its log-probability is divided."""
    no_repeat_ngram_size: int | None = None
    """No phrase of this many tokens occurs twice in a caption; 0 allows repetition. Null: that of model.checkpoint, or
    0."""
    max_new_tokens: int | None = None
    """Maximum length of a caption in tokens, end token included. Null: 24, or if verbatim what nearly all captions
    need."""
    max_images: int = 5000
    """Maximum number of validation images per source, the first of the split."""
    images_per_batch: int = 64
    """Number of images captioned at once."""
    shown: int = 4
    """Number of images drawn with caption and attention after each validation."""


@dataclass(frozen=True)
class TrainingConfig:
    """All options of a run. [`TrainingConfig.from_options`] takes them by name, the constructor as nested dataclasses.

    Raises:
        ValueError: An option has the wrong type or is out of range, or two options contradict each other.
    """

    data: DataConfig
    """Images and captions."""
    output_dir: str
    """Folder of the best checkpoint, the states to resume from, the log, the curves and the captioned images."""
    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    """Objective: the cross-entropy of the reference captions, or the score of sampled captions."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Vocabulary."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder and sizes."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """Optimization."""
    self_critical: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)
    """The objective `self_critical`."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    tracker: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Experiment tracker to log metrics to as well; trackio and tensorboard work offline, each needs its package."""
    measure_energy: bool = False
    """Estimate the energy use of this machine with CodeCarbon, for the model card; needs the extra `energy`."""
    save_onnx: bool = True
    """Add graphs for ONNX Runtime to the checkpoint, if the extra `export` is installed; takes some seconds, once per
    run."""
    push_to_hub: str | None = None
    """Hub id, user/name, to which each best checkpoint is pushed in the background."""
    dry_run: bool = False
    """Print sizes, steps, and estimates of time and disk space, then stop."""

    def __post_init__(self):
        options = flatten_options(asdict(self)) | {"data.source": self.data.source}
        for name, kind in option_types().items():
            if not _has_type(options[name], kind):
                raise ValueError(f"{name} must be {_type_name(kind)}, found {options[name]!r:.60}.")
        object.__setattr__(self, "output_dir", os.path.expanduser(self.output_dir))
        data, optimization = self.data, self.optimization
        if not isinstance(data.source, str):
            _check_sources(data)
        if data.streaming and data.steps_per_epoch is None:
            raise ValueError("a stream has no end: set data.steps_per_epoch, the steps between validations.")
        if optimization.encoder_learning_rate is None and optimization.encoder_first_layer is not None:
            raise ValueError("optimization.encoder_first_layer needs optimization.encoder_learning_rate.")
        if optimization.label_loss and optimization.encoder_learning_rate is None:
            raise ValueError("optimization.label_loss trains the encoder: set optimization.encoder_learning_rate.")
        if self.objective == "self_critical" and self.model.checkpoint is None:
            raise ValueError(
                "self-critical training improves a trained captioner: train one with cross_entropy, then name its "
                "folder in model.checkpoint."
            )
        for option in ("extend_vocabulary", "encoder_reset"):
            if getattr(self.model, option) and self.model.checkpoint is None:
                raise ValueError(
                    f"model.{option} changes the checkpoint that the run starts from: set model.checkpoint."
                )
        if self.self_critical.baseline == "sample_mean" and self.self_critical.samples < 2:
            raise ValueError(
                "self_critical.samples must be at least 2 with the baseline sample_mean, which compares them, found "
                f"{self.self_critical.samples}."
            )
        if optimization.attention_penalty and self.model.attention_type == "none" and not self.model.checkpoint:
            raise ValueError("optimization.attention_penalty needs a model.attention_type other than none.")
        for name, value in options.items():
            if isinstance(value, int | float):
                _check_range(name, value)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "TrainingConfig":
        """Creates a configuration from options by name.

            TrainingConfig.from_options({"data.source": "images", "output_dir": "run", "optimization.epochs": 3})

        Args:
            options: Values by full names, or nested as in a YAML file; a group may be None if all its options are
                commented out. Paths may be `Path`s, and numbers texts like "1e-3", as PyYAML reads them. Options that
                are not given keep their defaults; `data.source` and `output_dir` have none.

        Raises:
            UsageError: An option is unknown (the message names the nearest) or missing.
            ValueError: As in the constructor.
        """
        flat = {
            name: value for name, value in flatten_options(options).items() if value is not None or name not in _GROUPS
        }
        if unknown := [name for name in flat if name not in option_types()]:
            raise UsageError(f"unknown option {unknown[0]}. Did you mean {nearest_option(unknown[0])}?")
        if missing := [name for name in ("data.source", "output_dir") if name not in flat]:
            raise UsageError(f"{' and '.join(missing)} must be given.")
        groups: dict[str, dict[str, Any]] = {}
        for name, value in flat.items():
            group, _, option = name.rpartition(".")
            groups.setdefault(group, {})[option] = _parse_value(value, option_types()[name])
        top_level = groups.pop("", {})
        if isinstance(groups["data"]["source"], list):
            groups["data"]["source"] = [_parse_source(each) for each in groups["data"]["source"]]
        return cls(**top_level, **{group: _GROUPS[group](**values) for group, values in groups.items()})

    @classmethod
    def recommended(cls, options: Mapping[str, Any]) -> "TrainingConfig":
        """Creates a configuration as `gru-captioner train SOURCE` does.

        Options that are not given are chosen from the data, and training starts from the shipped checkpoint. Runs on
        every process; reads and checks the images.

            TrainingConfig.recommended({"data.source": "images", "output_dir": "run"})

        If `output_dir` holds a run on this source, its options are taken, with those given in their place, so that the
        same call resumes it, and more `optimization.epochs` continue it.

        Args:
            options: As in `from_options`, with a single `data.source`.

        Raises:
            UsageError: As in `from_options`; several sources; or `output_dir` holds a run on another source.
            FileNotFoundError, ValueError: As in `load_captions`.
        """
        from .recipe import recommend

        flat = flatten_options(options)
        return recommend(cls.from_options(flat), flat)

    @property
    def caches_regions(self) -> bool:
        """Whether the encoder runs over the images only once, before training."""
        return self.data.cache and not self.data.streaming and self.optimization.encoder_learning_rate is None


_GROUPS: dict[str, Any] = {each.name: each.type for each in fields(TrainingConfig) if is_dataclass(each.type)}


@cache
def option_types() -> dict[str, Any]:
    """The type of each option, by its full name."""
    types: dict[str, Any] = {}
    for each in fields(TrainingConfig):
        if group := _GROUPS.get(each.name):
            types |= {f"{each.name}.{option.name}": option.type for option in fields(group)}
        else:
            types[each.name] = each.type
    return types


def nearest_option(name: str) -> str:
    """The full name of the most similar option."""
    return difflib.get_close_matches(name, option_types(), 1, cutoff=0)[0]


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and bool(value) and all(isinstance(each, get_args(kind)) for each in value)
    if isinstance(kind, UnionType):
        return any(_has_type(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _parse_value(value: Any, kind: Any) -> Any:
    """Converts a path to text, and a number that PyYAML takes for text, such as 1e-3, for an option of this type."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    takes_number = float in (kind, *get_args(kind))
    return float(value) if takes_number and isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _type_name(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_type_name(each) for each in get_args(kind))
    if get_origin(kind) is list:
        return "a list of sources with a path each"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return {str: "text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}[kind]


def _parse_source(options: Any) -> Any:
    """Creates a source from its options by name; leaves anything else as it is, for the constructor to reject."""
    if not isinstance(options, Mapping):
        return options
    types = {each.name: each.type for each in fields(SourceConfig)}
    if unknown := [str(name) for name in options if name not in types]:
        nearest = difflib.get_close_matches(unknown[0], types, 1, cutoff=0)[0]
        raise UsageError(f"unknown option {unknown[0]} of a source in data.source. Did you mean {nearest}?")
    if "path" not in options:
        raise UsageError("each source in data.source needs a path.")
    return SourceConfig(**{name: _parse_value(value, types[name]) for name, value in options.items()})


def _check_sources(data: DataConfig) -> None:
    for number, source in enumerate(data.sources):
        for each in fields(SourceConfig):
            name, value = f"data.source[{number}].{each.name}", getattr(source, each.name)
            if not _has_type(value, each.type):
                raise ValueError(f"{name} must be {_type_name(each.type)}, found {value!r:.60}.")
        for each_name, maximum in (("repeat", MAX_REPEAT), ("weight", MAX_WEIGHT)):
            value = getattr(source, each_name)
            if not 0 < value <= maximum:
                raise ValueError(
                    f"data.source[{number}].{each_name} must be above 0 and at most {maximum}, found {value}."
                )
        if source.captions_per_epoch is not None and source.captions_per_epoch < 1:
            raise ValueError(
                f"data.source[{number}].captions_per_epoch must be at least 1, found {source.captions_per_epoch}."
            )
    for option in ("images", "image_column", "caption_column"):
        if getattr(data, option) is not None:
            raise ValueError(f"data.{option} is for a single source: in a list, each source has its own {option}.")
    if not any(source.validate for source in data.sources):
        raise ValueError("the best epoch is selected on a validation split: set validate to true for a source.")


def _check_range(name: str, value: float) -> None:
    if name in SHARES:
        expected, is_valid = "from 0 to 1", 0 <= value <= 1
    elif name in SHARES_BELOW_1:
        expected, is_valid = "at least 0 and below 1", 0 <= value < 1
    elif name in ABOVE_0:
        expected, is_valid = "above 0", 0 < value < math.inf
    elif name in MAY_BE_NEGATIVE:
        expected, is_valid = f"from -{LENGTH_PENALTY} to {LENGTH_PENALTY}", abs(value) <= LENGTH_PENALTY
    else:
        minimum = 1 if name in COUNTS else 0
        expected, is_valid = f"at least {minimum}", minimum <= value < math.inf  # False for nan
    if not is_valid:
        raise ValueError(f"{name} must be {expected}, found {value}.")
