import copy

import pytest
import torch
from torch import nn

from hf_gru_captioner.training.depthwise import _FastDepthwise, use_fast_depthwise_gradients

BF16 = torch.bfloat16


def gradients(model, image, precision):
    model.zero_grad()
    image = image.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        output = model(image)
    output.float().square().sum().backward()
    return [output, image.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (5, 1, 2), (5, 2, 2), (7, 1, "valid")])
def test_gradients_are_pytorchs(side, stride, padding, bias):
    torch.manual_seed(0)
    usual = nn.Conv2d(24, 24, side, stride, padding, groups=24, bias=bias)
    quick = copy.deepcopy(usual)
    use_fast_depthwise_gradients(quick)
    image = torch.randn(2, 24, 15, 12).to(memory_format=torch.channels_last)
    exact = gradients(usual, image, torch.float32)
    for found, pytorchs, expected in zip(
        gradients(quick, image, BF16), gradients(usual, image, BF16), exact, strict=True
    ):
        assert found.dtype == pytorchs.dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03 * expected.abs().max().item())


def test_other_convolutions_are_left_alone(monkeypatch):
    seen = []
    monkeypatch.setattr("hf_gru_captioner.training.depthwise._DepthwiseConvolution.apply", seen.append)
    image = torch.randn(1, 8, 9, 9)
    with _FastDepthwise(), torch.autocast("cpu", BF16):
        for convolution in (
            nn.Conv2d(8, 8, 1, groups=8),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 16, 3, groups=8),
            nn.Conv2d(8, 8, 3, groups=8, dilation=2),
            nn.Conv2d(8, 8, 3, groups=8, padding="same"),
            nn.Conv2d(8, 8, (3, 5), groups=8),
        ):
            convolution(image)
        with torch.no_grad():
            nn.Conv2d(8, 8, 3, groups=8)(image)
        with torch.autocast("cpu", enabled=False):
            nn.Conv2d(8, 8, 3, groups=8)(image)
    assert not seen


def test_what_runs_outside_of_the_module_is_as_before():
    module, image = nn.Conv2d(8, 8, 5, groups=8, bias=False).to(BF16), torch.randn(1, 8, 9, 9, dtype=BF16)
    usual = type(module(image).grad_fn)
    use_fast_depthwise_gradients(module)
    assert type(module(image).grad_fn) is not usual
    with pytest.raises(RuntimeError):
        module(image[:, :, :2])  # smaller than the weight
    assert type(nn.functional.conv2d(image, module.weight, groups=8).grad_fn) is usual
