import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_gru_captioner.training import MovingAverage


@pytest.fixture
def pair():
    """A model with one weight that learns and one that doesn't, and its average."""
    model = nn.ModuleDict({"learns": nn.Linear(1, 1, bias=False), "frozen": nn.Linear(1, 1, bias=False)})
    model["frozen"].requires_grad_(False)
    model["learns"].weight.data.fill_(0.0)
    return model, MovingAverage(model, 0.999, torch.device("cpu"))


def value_of(average) -> float:
    return average.model["learns"].weight.item()


def test_it_soon_forgets_the_initial_weights(pair):
    model, average = pair
    model["learns"].weight.data.fill_(1.0)
    for _ in range(100):
        average.update(model)
    assert value_of(average) > 0.999  # at a fixed decay: 0.095


def test_after_many_steps_it_remembers_as_long_as_its_decay_says(pair):
    model, average = pair
    average.steps = 10**6
    model["learns"].weight.data.fill_(1.0)
    average.update(model)
    assert value_of(average) == pytest.approx(0.001)


def test_it_is_read_as_it_was_written(pair, tmp_path):
    model, average = pair
    model["learns"].weight.data.fill_(0.7)
    average.update(model)
    average.save(str(tmp_path / "averaged.safetensors"))
    assert list(load_file(tmp_path / "averaged.safetensors")) == ["learns.weight"]
    other = MovingAverage(copy.deepcopy(model), 0.999, torch.device("cpu"))
    other.model["learns"].weight.fill_(0.0)
    other.load(str(tmp_path / "averaged.safetensors"), steps=1)
    assert (value_of(other), other.steps) == (value_of(average), 1)


def test_it_neither_learns_nor_shares_weights_with_the_model(pair):
    model, average = pair
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    model["frozen"].weight.data.fill_(5.0)
    assert average.model["frozen"].weight.item() != 5.0
    assert not average.model.training
