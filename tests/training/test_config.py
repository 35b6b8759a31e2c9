import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.training import (
    DataConfig,
    ModelConfig,
    OptimizationConfig,
    SelfCriticalConfig,
    SourceConfig,
    TrainingConfig,
    ValidationConfig,
)
from hf_gru_captioner.training.config import ABOVE_0, COUNTS, MAY_BE_NEGATIVE, SHARES, SHARES_BELOW_1, flatten_options


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data": DataConfig("x", streaming=True)}, "set data.steps_per_epoch"),
        ({"optimization": OptimizationConfig(encoder_first_layer="blocks.4")}, "needs optimization.encoder_learning"),
        ({"optimization": OptimizationConfig(label_loss=0.1)}, "set optimization.encoder_learning_rate"),
        ({"objective": "self_critical"}, "name its folder in model.checkpoint"),
        (
            {"model": ModelConfig(attention_type="none"), "optimization": OptimizationConfig(attention_penalty=1.0)},
            "needs a model.attention_type other than none",
        ),
        ({"optimization": OptimizationConfig(images_per_step=0)}, "images_per_step must be at least 1, found 0"),
        ({"optimization": OptimizationConfig(learning_rate=-0.1)}, "n.learning_rate must be at least 0, found -0.1"),
        ({"optimization": OptimizationConfig(learning_rate=math.nan)}, "n.learning_rate must be at least 0, found nan"),
        ({"optimization": OptimizationConfig(max_grad_norm=math.inf)}, "n.max_grad_norm must be at least 0, found inf"),
        ({"optimization": OptimizationConfig(ema_decay=1.5)}, "n.ema_decay must be from 0 to 1, found 1.5"),
        ({"model": ModelConfig(dropout=1.0)}, "model.dropout must be at least 0 and below 1, found 1.0"),
        (
            {"optimization": OptimizationConfig(label_smoothing=1.0)},
            "n.label_smoothing must be at least 0 and below 1, found 1.0",
        ),
        (
            {"self_critical": SelfCriticalConfig(cross_entropy_weight=1.5)},
            "l.cross_entropy_weight must be at least 0 and below 1, found 1.5",
        ),
        ({"self_critical": SelfCriticalConfig(temperature=0.0)}, "l.temperature must be above 0, found 0.0"),
        (
            {"self_critical": SelfCriticalConfig(samples=1)},
            "samples must be at least 2 with the baseline sample_mean",
        ),
        ({"model": ModelConfig(image_size=0)}, "model.image_size must be at least 1, found 0"),
        (
            {"validation": ValidationConfig(length_penalty=math.inf)},
            "n.length_penalty must be from -10 to 10, found inf",
        ),
    ],
)
def test_options_that_do_not_fit_together_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"data": DataConfig("x"), "output_dir": "y", **parts})


def test_every_range_is_that_of_a_option():
    options = flatten_options(asdict(TrainingConfig(DataConfig("x"), "y")))
    assert set(options) >= COUNTS | SHARES | SHARES_BELOW_1 | ABOVE_0 | MAY_BE_NEGATIVE
    TrainingConfig(DataConfig("x"), "y", validation=ValidationConfig(length_penalty=-1.0))


def test_regions_are_cached_only_where_the_encoder_stands_still_and_photos_are_stored():
    def caches(optimization=None, **data):
        data = DataConfig("x", steps_per_epoch=1, **data)
        return TrainingConfig(data, "y", optimization=optimization or OptimizationConfig()).caches_regions

    assert caches()
    assert not caches(cache=False)
    assert not caches(streaming=True)
    assert not caches(OptimizationConfig(encoder_learning_rate=1e-5))


def test_every_option_of_the_objective_is_one_of_its_arguments():
    from inspect import signature

    from hf_gru_captioner.training import SelfCritical

    options = set(vars(SelfCriticalConfig())) - {"label_weight", "synonyms"}  # which make the reward of labels
    assert options == set(signature(SelfCritical).parameters) - {"frequencies", "label_reward", "encode_once"}


WRONG_TYPES = {
    "optimization.epochs": ("3", "optimization.epochs must be a whole number, found '3'."),
    "optimization.patience": (1.5, "optimization.patience must be a whole number or null, found 1.5."),
    "optimization.seed": (True, "optimization.seed must be a whole number, found True."),
    "optimization.learning_rate": ("fast", "optimization.learning_rate must be a number, found 'fast'."),
    "data.mirror": (1, "data.mirror must be true or false, found 1."),
    "data.source": (None, "data.source must be text or a list of sources with a path each, found None."),
    "objective": ("soft", "objective must be one of cross_entropy, self_critical, found 'soft'."),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_values_of_the_wrong_type_are_refused(name):
    value, message = WRONG_TYPES[name]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        TrainingConfig.from_options({"data.source": "x", "output_dir": "y", name: value})
    assert str(error.value) == message


def test_several_sources_are_a_list():
    sources = [{"path": Path("a"), "repeat": 2}, {"path": "b", "weight": 0.6, "captions_per_epoch": 2}]
    config = TrainingConfig.from_options({"data": {"source": sources}, "output_dir": "y"})
    assert config.data.source == [SourceConfig("a", repeat=2), SourceConfig("b", weight=0.6, captions_per_epoch=2)]
    assert config.data.sources == config.data.source
    assert TrainingConfig.from_options(asdict(config)) == config
    assert DataConfig("a", images="b").sources == [SourceConfig("a", images="b")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "data.source must be text or a list of sources with a path each, found []."),
        (["a"], "data.source must be text or a list of sources with a path each, found ['a']."),
        ([{"repeat": 2}], "each source in data.source needs a path."),
        ([{"path": "a", "repeats": 2}], "unknown option repeats of a source in data.source. Did you mean repeat?"),
        ([{"path": "a"}, {"path": 3}], "data.source[1].path must be text, found 3."),
        ([{"path": "a", "repeat": 0}], "data.source[0].repeat must be above 0 and at most 1000, found 0."),
        ([{"path": "a", "weight": math.nan}], "data.source[0].weight must be above 0 and at most 1000, found nan."),
        ([{"path": "a", "captions_per_epoch": 0}], "data.source[0].captions_per_epoch must be at least 1, found 0."),
        (
            [{"path": "a", "validate": False}],
            "the best epoch is selected on a validation split: set validate to true for a source.",
        ),
    ],
)
def test_wrong_sources_are_refused(source, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        TrainingConfig.from_options({"data.source": source, "output_dir": "y"})
    assert str(error.value) == message


def test_images_are_those_of_one_source():
    with pytest.raises(ValueError, match="each source has its own images"):
        TrainingConfig(DataConfig([SourceConfig("a")], images="b"), "y")


def test_options_by_name_are_those_of_the_nested_dataclasses():
    options = {"data.source": Path("my/images"), "output_dir": Path("run"), "optimization.epochs": 3, "dry_run": True}
    config = TrainingConfig.from_options(options)
    assert config == TrainingConfig(
        DataConfig("my/images"), "run", optimization=OptimizationConfig(epochs=3), dry_run=True
    )
    assert TrainingConfig.from_options(asdict(config)) == config
    assert TrainingConfig.from_options(flatten_options(asdict(config))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization.epoch": 3}, "unknown option optimization.epoch. Did you mean optimization.epochs?"),
        ({"epochs": 3}, "unknown option epochs. Did you mean optimization.epochs?"),
        ({"data.source": "x"}, "output_dir must be given."),
        ({}, "data.source and output_dir must be given."),
    ],
)
def test_unknown_and_missing_options_are_named(options, message):
    with pytest.raises(UsageError) as error:
        TrainingConfig.from_options(options)
    assert str(error.value) == message


def test_a_greedy_baseline_needs_one_sample():
    config = SelfCriticalConfig(samples=1, baseline="greedy")
    assert TrainingConfig(DataConfig("x"), "y", self_critical=config).self_critical.samples == 1


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_options_may_be_those_that_pyyaml_reads_from_a_file(path):
    nested = yaml.safe_load(path.read_text())
    nested["data"].setdefault("source", "x")
    config = TrainingConfig.from_options({"output_dir": "y", **nested})
    rate = re.search(r"^  learning_rate: (\S+)", path.read_text(), re.MULTILINE)
    assert config.optimization.learning_rate == (float(rate[1]) if rate else 1e-3)


def test_numbers_that_pyyaml_takes_for_text_are_numbers():
    options = {"learning_rate": "1e-3", "encoder_learning_rate": "2E-5", "weight_decay": ".5", "max_grad_norm": "1."}
    source = [{"path": "1e-3", "weight": "5e-1"}]
    config = TrainingConfig.from_options({"data.source": source, "output_dir": "1e-3", "optimization": options})
    optimization = config.optimization
    assert (optimization.learning_rate, optimization.encoder_learning_rate) == (1e-3, 2e-5)
    assert (optimization.weight_decay, optimization.max_grad_norm) == (0.5, 1.0)
    assert (config.data.source, config.output_dir) == ([SourceConfig("1e-3", weight=0.5)], "1e-3")
    for text in ("nan", "inf", "1e", "", " 1"):
        with pytest.raises(ValueError, match="decay must be a number"):
            TrainingConfig.from_options({"data.source": "x", "output_dir": "y", "optimization.weight_decay": text})


def test_a_group_whose_options_are_all_commented_out_is_empty():
    options = yaml.safe_load("data:\n  source: x\noutput_dir: y\nvalidation:\n#  num_beams: 2\n")
    assert TrainingConfig.from_options(options) == TrainingConfig(DataConfig("x"), "y")
    with pytest.raises(UsageError, match="source must be given"):
        TrainingConfig.from_options({"data": None, "output_dir": "y"})


def test_the_home_folder_is_expanded_in_the_output_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/me")
    assert TrainingConfig.from_options({"data.source": "x", "output_dir": "~/run"}).output_dir == "/home/of/me/run"
    assert TrainingConfig(DataConfig("x"), "~/run").output_dir == "/home/of/me/run"
