"""Every option of a training run, with its unit. A YAML file fills these; the command line overrides it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..checkpoint_limits import LENGTH_PENALTY

# Options that may change when a run is continued: where files are, and what is only displayed.
UNCLAIMED = {
    "data.cache_folder",
    "data.num_workers",
    "dry_run",
    "measure_energy",
    "optimization.state_steps",
    "optimization.states_kept",
    "output_dir",
    "push_to_hub",
    "tracker",
    "validation.shown",
}

# Ranges of options that are numbers; all others are at least 0.
COUNTS = {  # at least 1
    "data.max_photos",
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
    "model.dropout",
    "optimization.ema_decay",
    "optimization.label_smoothing",
    "optimization.scheduled_sampling",
    "optimization.warmup_share",
}
MAY_BE_NEGATIVE = {"validation.length_penalty"}


def flatten_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their full names, as the command line has them: `{"data.source": ...}`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flatten_options(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


@dataclass(frozen=True)
class DataConfig:
    """Which photos and captions."""

    source: str
    """Hub id of a captioned data set, a folder, or a file of captions: see `load_captions`."""
    images: str | None = None
    """Folder of the photos that a file of captions names; null to look beside the file."""
    train_split: str = "train"
    """Split to learn from."""
    validation_split: str = "validation"
    """Split to choose the best epoch by."""
    max_photos: int | None = None
    """Learn from the first so many photos only; null for all."""
    max_skipped: float = 0.01
    """Share of photos that may be broken or without a caption; with more, the run stops."""
    allow_urls: bool = False
    """Fetch photos whose addresses the data set gives, from the public web only; never with HF_HUB_OFFLINE."""
    cache: bool = True
    """Keep the frozen encoder's outputs on disk; without, photos are encoded anew each time, in a new random crop."""
    cache_folder: str = "~/.cache/hf_gru_captioner"
    """Where the encoder's outputs are kept from run to run; 0.13 GB a thousand photos at 7x7 regions, 1280 wide."""
    cache_precision: Literal["float16", "bfloat16"] = "float16"
    """Precision of the encoder's outputs on disk."""
    mirror: bool = True
    """Also learn from mirrored photos; each epoch draws one view of each photo. One more cache."""
    crops: int = 0
    """Also learn from so many random crops of each photo, each of 60 to 100 % of its area. One more cache each."""
    color_jitter: float = 0.0
    """Share by which brightness, contrast and saturation of photos change at random when they are encoded anew."""
    streaming: bool = False
    """Read the photos as they come instead of storing them first; for what doesn't fit on a disk. No cache."""
    steps_per_epoch: int | None = None
    """Steps from validation to validation; needed with streaming, where an epoch has no end of its own."""
    shuffle_block: int = 512
    """Photos that are held in memory to be shuffled with streaming, about a megabyte each."""
    streamed_vocabulary: int = 20_000
    """Photos of a stream whose captions make the vocabulary, and the document frequencies of the reward."""
    num_workers: int = 0
    """Processes that read and decode photos ahead of training."""


@dataclass(frozen=True)
class TokenizerConfig:
    """What counts as a token; see `build_tokenizer`."""

    kind: Literal["word", "bpe"] = "word"
    """Whole words, or byte-pair pieces."""
    min_count: int = 5
    """Words seen less often in the training captions become unknown."""
    vocab_size: int | None = None
    """At most so many tokens; null for no limit."""
    max_length: int = 40
    """Longer captions are cut to so many tokens."""


@dataclass(frozen=True)
class ModelConfig:
    """Which encoder, and the sizes of the decoder; see `GRUCaptionerConfig`."""

    encoder: str = "timm/tf_efficientnet_lite0.in1k"
    """Hub id or folder of the pretrained vision encoder."""
    checkpoint: str | None = None
    """Hub id or folder of a captioner to go on from; its encoder, sizes and tokenizer hold, not those given here."""
    image_size: int | None = None
    """Side of the square that photos are squashed to, in pixels; null for the encoder's own."""
    embedding_size: int = 512
    """Width of a word embedding."""
    hidden_size: int = 512
    """Width of the GRU states."""
    attention_type: str = "multihead"
    """How a word looks at the regions: none, additive or multihead."""
    num_attention_heads: int = 8
    """Heads of multihead attention."""
    dropout: float = 0.5
    """Share of units zeroed in training: of the embeddings, between the GRUs and before the output layer."""


@dataclass(frozen=True)
class OptimizationConfig:
    """How the weights learn."""

    epochs: int = 10
    """Passes over the photos, each with all of its captions."""
    images_per_step: int = 32
    """Photos a step over all processes, each with all of its captions."""
    micro_batches: int = 1
    """Parts that each process cuts its photos of a step into, for less memory; the step stays the same."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    encoder_learning_rate: float | None = None
    """Peak rate of the vision encoder; null keeps it frozen."""
    encoder_first_layer: str | None = None
    """With a rate for the encoder: name of the first of its layers that learns (blocks.4); null for all of them."""
    warmup_share: float = 0.03
    """Share of all steps in which the rate rises from 0; it then falls to 0 along a cosine."""
    weight_decay: float = 0.01
    """Decoupled weight decay, of matrices only."""
    label_smoothing: float = 0.1
    """Share of each target that is spread over all words."""
    scheduled_sampling: float = 0.0
    """Share of input words that are the model's own by the end of the run; it grows from 0."""
    attention_penalty: float = 0.0
    """Weight of Show, Attend and Tell's penalty on regions that a caption looks at more or less than once."""
    max_grad_norm: float = 5.0
    """Longer gradients are shortened to this length."""
    ema_decay: float = 0.999
    """Weights are averaged over about 1 / (1 - this) steps; validation and checkpoints use the average."""
    patience: int | None = None
    """Epochs without a better validation score after which the run ends; null for never."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the matrix products; auto times fp32 (no) and bf16 on this machine and says which it takes."""
    compile: bool = False
    """Compile the vision encoder with torch.compile; takes a minute or two, pays when the encoder learns."""
    gradient_checkpointing: bool = False
    """Compute the vision encoder twice instead of remembering it; less memory when it learns."""
    checkpoint_precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Precision of the weights in the checkpoint's file; captions are written in float32 whatever it is."""
    state_steps: int = 100
    """Steps after which the whole state is saved, to go on from after a power cut; besides after each epoch."""
    states_kept: int = 2
    """Newest states to keep."""
    seed: int = 0
    """Seed of initialization, data order and dropout."""


@dataclass(frozen=True)
class SelfCriticalConfig:
    """Self-critical training: captions that the model samples are rewarded by CIDEr-D."""

    samples: int = 5
    """Captions sampled a photo."""
    baseline: Literal["sample_mean", "greedy"] = "sample_mean"
    """What a sample is held against: the photo's other samples, or its greedy caption."""
    bleu_weight: float = 0.0
    """Weight of BLEU-4 (0 to 1) beside CIDEr-D (0 to 10) in the reward."""
    cross_entropy_weight: float = 0.0
    """Share of the cross-entropy of people's captions in the loss."""
    temperature: float = 1.0
    """Of sampling."""


@dataclass(frozen=True)
class ValidationConfig:
    """How captions are written for validation; the checkpoint's generation_config.json keeps the same settings."""

    num_beams: int = 5
    """Beams of the search."""
    length_penalty: float = 0.9
    """Exponent of a caption's length that its log-probability is divided by."""
    max_new_tokens: int = 24
    """Tokens of a caption at the most, the end token included."""
    max_images: int = 5000
    """Photos to choose by, at the most; the first ones of the split."""
    images_per_batch: int = 64
    """Photos captioned at once."""
    shown: int = 4
    """Photos drawn with caption and attention after each validation."""


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run."""

    data: DataConfig
    """Photos and captions."""
    output_dir: str
    """Folder of the best checkpoint, the states to go on from, the log and the pictures of the run."""
    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    """What is learned: people's captions word by word, or captions of its own that score well."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Vocabulary."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder and sizes."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """How the weights learn."""
    self_critical: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)
    """The objective `self_critical`."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Captions for validation."""
    tracker: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Where Accelerate logs figures too; trackio and tensorboard work offline, each needs its package."""
    measure_energy: bool = False
    """Estimate the energy of this machine with CodeCarbon, for the model card; needs the extra `energy`."""
    push_to_hub: str | None = None
    """Hub id, user/name, where each best checkpoint goes; the run doesn't wait for it."""
    dry_run: bool = False
    """Print sizes, steps, and estimates of time and disk, and stop."""

    def __post_init__(self):
        data, optimization = self.data, self.optimization
        if data.streaming and data.steps_per_epoch is None:
            raise ValueError("a stream has no end: set data.steps_per_epoch, the steps from validation to validation.")
        if optimization.encoder_learning_rate is None and optimization.encoder_first_layer is not None:
            raise ValueError("optimization.encoder_first_layer needs optimization.encoder_learning_rate.")
        if self.objective == "self_critical" and self.model.checkpoint is None:
            raise ValueError(
                "self-critical training improves a captioner that writes already: train one with cross_entropy, then "
                "name its folder in model.checkpoint."
            )
        if optimization.attention_penalty and self.model.attention_type == "none" and not self.model.checkpoint:
            raise ValueError("optimization.attention_penalty needs a model.attention_type that attends.")
        for name, value in flatten_options(asdict(self)).items():
            if isinstance(value, int | float):
                _check_range(name, value)

    @property
    def caches_regions(self) -> bool:
        """Whether the encoder runs once over the photos, ahead of training."""
        return self.data.cache and not self.data.streaming and self.optimization.encoder_learning_rate is None


def _check_range(name: str, value: float) -> None:
    if name in SHARES:
        wanted, is_right = "a share from 0 to 1", 0 <= value <= 1
    elif name in MAY_BE_NEGATIVE:
        wanted, is_right = f"from -{LENGTH_PENALTY} to {LENGTH_PENALTY}", abs(value) <= LENGTH_PENALTY
    else:
        least = 1 if name in COUNTS else 0
        wanted, is_right = f"at least {least}", least <= value < math.inf  # nor is what is no number
    if not is_right:
        raise ValueError(f"{name} must be {wanted}, found {value}.")
