"""Every knob of a training run, with its unit. A YAML file fills these; the command line overrides it."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Which photos and captions."""

    source: str
    """Hub id of a captioned data set, or a folder."""
    train_split: str = "train"
    """Split to learn from."""
    validation_split: str = "validation"
    """Split to choose the best epoch by."""
    cache_folder: str = "~/.cache/hf_gru_captioner"
    """Where the encoder's outputs are kept from run to run; half a gigabyte a thousand photos at 14x14 regions."""
    mirror: bool = True
    """Also learn from mirrored photos; each epoch draws one view of each photo. One more cache."""
    crops: int = 0
    """Also learn from so many random crops of each photo, each of 60 to 100 % of its area. One more cache each."""


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
    image_size: int | None = None
    """Side of the square that photos are squashed to, in pixels; null for the encoder's own."""
    embedding_size: int = 512
    """Width of a word embedding."""
    hidden_size: int = 512
    """Width of the GRU states."""
    attention_type: Literal["none", "additive", "multihead"] = "multihead"
    """How a word looks at the regions."""
    num_attention_heads: int = 8
    """Heads of multihead attention."""
    dropout: float = 0.5
    """Share of units zeroed in training: of the embeddings, between the GRUs and before the output layer."""


@dataclass(frozen=True)
class OptimizationConfig:
    """The cross-entropy stage."""

    epochs: int = 10
    """Passes over the photos, each with all of its captions."""
    images_per_step: int = 32
    """Photos a step on each process, each with all of its captions."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    warmup_share: float = 0.03
    """Share of all steps in which the rate rises from 0; it then falls to 0 along a cosine."""
    weight_decay: float = 0.01
    """Decoupled weight decay, of matrices only."""
    label_smoothing: float = 0.1
    """Share of each target that is spread over all words."""
    max_grad_norm: float = 5.0
    """Longer gradients are shortened to this length."""
    ema_decay: float = 0.999
    """Weights are averaged over about 1 / (1 - this) steps; validation and checkpoints use the average."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the matrix products."""
    checkpoint_precision: Literal["float32", "float16", "bfloat16"] = "float16"
    """Precision of the weights in the checkpoint's file; captions are written in float32 whatever it is."""
    seed: int = 0
    """Seed of initialization, data order and dropout."""


@dataclass(frozen=True)
class ValidationConfig:
    """How captions are written for validation; the checkpoint's generation_config.json keeps the same settings."""

    num_beams: int = 5
    """Beams of the search."""
    length_penalty: float = 0.9
    """Exponent of a caption's length that its log-probability is divided by."""
    max_new_tokens: int = 24
    """Tokens of a caption at the most, the end token included."""
    images_per_batch: int = 64
    """Photos captioned at once."""


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run."""

    data: DataConfig
    """Photos and captions."""
    output_dir: str
    """Folder of the best checkpoint and the log of the run."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Vocabulary."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder and sizes."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """The cross-entropy stage."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Captions for validation."""
