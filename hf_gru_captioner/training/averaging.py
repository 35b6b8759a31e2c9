"""Exponential moving average of the weights, which is validated and saved: it captions better than the final weights.

The decay warms up, so that the average never spans more than about half of the steps so far: at a fixed decay of 0.999,
an average after 2,000 steps would still be one seventh initial weights.
"""

import copy

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor


class MovingAverage:
    """An averaged copy of a model. Runs on every process; all hold the same average, unsharded even under FSDP.

    Args:
        model: The model, before Accelerate wraps it: the average is validated in the form in which it is used later.
        decay: Weights are averaged over about 1 / (1 - decay) steps.
        device: Device of the average.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device):
        self.model = copy.deepcopy(model).to(device).eval()
        self.decay = decay
        self.steps = 0
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._averaged = {name: each for name, each in self.model.named_parameters() if name in trainable}
        self.model.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Updates the average after a step; `model` is the trained one, unwrapped."""
        current = dict(model.named_parameters())
        latest = [_unsharded(current[name].detach()) for name in self._averaged]
        decay = min(self.decay, self.steps / (2 + self.steps))
        torch._foreach_lerp_(list(self._averaged.values()), latest, 1 - decay)
        self.steps += 1

    def save(self, path: str) -> None:
        """Saves the averaged weights as safetensors, without frozen ones. Runs on one process."""
        save_file({name: each.detach().cpu().contiguous() for name, each in self._averaged.items()}, path)

    @torch.no_grad()
    def load(self, path: str, steps: int) -> None:
        """Loads what `save` wrote after `steps` steps."""
        for name, weight in load_file(path).items():
            self._averaged[name].copy_(weight)
        self.steps = steps


def _unsharded(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
