import math

import pytest
from datasets import Dataset

from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT
from hf_gru_captioner.training import TrainingConfig, recipe
from hf_gru_captioner.training.recipe import recommend


@pytest.fixture
def recommended(monkeypatch):
    """The options for a number of images whose captions are given; keywords are options that were given."""

    def of(number: int, captions=("a dog runs",), **given) -> TrainingConfig:
        rows = Dataset.from_dict({"captions": [list(captions)] * number})
        monkeypatch.setattr(recipe, "load_captions", lambda *arguments, **options: rows)
        config = TrainingConfig.from_options({"data.source": "mine.csv", "output_dir": "run", **given})
        return recommend(config, given)

    return of


def steps_of(config: TrainingConfig, number: int) -> int:
    (source,) = config.data.sources
    return config.optimization.epochs * math.ceil(number * source.repeat / config.optimization.images_per_step)


@pytest.mark.parametrize("number", [2, 5, 50, 180, 300, 999, 1000, 5000, 20_000])
def test_few_images_get_enough_steps_and_many_not_too_many(recommended, number):
    config = recommended(number)
    assert 440 <= steps_of(config, number) <= max(900, 18 * number / config.optimization.images_per_step)
    assert config.optimization.epochs == 12


def test_training_starts_from_the_shipped_checkpoint_with_the_new_words(recommended):
    model = recommended(180).model
    assert (model.checkpoint, model.extend_vocabulary) == (str(SHIPPED_CHECKPOINT), True)
    assert recommended(180).tokenizer.min_count == 1
    assert recommended(20_000).tokenizer.min_count == 5


def test_what_is_given_stays(recommended):
    config = recommended(180, **{"optimization.epochs": 3, "validation.num_beams": 1, "model.hidden_size": 64})
    assert (config.optimization.epochs, config.validation.num_beams, config.model.hidden_size) == (3, 1, 64)
    assert config.model.checkpoint is None  # these are the sizes of a new model
    assert steps_of(config, 180) >= 440
    assert recommended(180, **{"model.checkpoint": "mine"}).model.checkpoint == "mine"


@pytest.mark.parametrize("epochs", [1, 2, 12, 24])
def test_two_images_can_be_trained_on_and_more_epochs_are_more_steps(recommended, epochs):
    assert steps_of(recommended(2, **{"optimization.epochs": epochs}), 2) >= 120
    longer, usual = recommended(180, **{"optimization.epochs": 2 * epochs}), recommended(180)
    expected = max(1, epochs / 6) * steps_of(usual, 180)
    assert steps_of(longer, 180) == pytest.approx(expected, rel=0.25)


def test_long_captions_can_be_written_to_their_end(recommended):
    assert recommended(180).validation.max_new_tokens == 24
    assert recommended(180, captions=["word " * 50]).validation.max_new_tokens == 54
