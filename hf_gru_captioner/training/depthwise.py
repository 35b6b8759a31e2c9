"""Gradients of depthwise convolutions on CPUs, several times as fast as PyTorch's, for fine-tuning a CNN.

In bfloat16, PyTorch 2.14 (oneDNN) computes two of them with naive loops: those of 5x5 weights, and those of the inputs
of strided convolutions. In EfficientNet-Lite0 they take two thirds of a training step. Fast kernels give the same
values: the gradient of a 5x5 weight consists of those of four 3x3 weights on parts of the padded input, and that of a
strided convolution's input is computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

WINDOW = 3  # largest kernel size whose weight gradient oneDNN computes fast


def use_fast_depthwise_gradients(module: nn.Module) -> None:
    """Makes depthwise convolutions in `module` use these gradients on CPUs in bfloat16.

    In float32, PyTorch's are just as fast.
    """
    mode = _FastDepthwise()

    def enter(*_) -> None:
        mode.__enter__()

    def leave(*_) -> None:
        mode.__exit__(None, None, None)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


class _FastDepthwise(TorchFunctionMode):
    """Replaces `F.conv2d` while it is active."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (_conv2d if function is F.conv2d else function)(*args, **(kwargs or {}))


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # noqa: A002, torch's name
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    is_depthwise = 1 < groups == weight.shape[0] == input.shape[1]
    is_plain = weight.shape[2] == weight.shape[3] >= WINDOW and _pair(dilation) == (1, 1) and padding != "same"
    on_cpu = input.device.type == "cpu" and dtype is torch.bfloat16 and torch.is_grad_enabled()
    if not (is_depthwise and is_plain and on_cpu):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    padding = _pair(0 if padding == "valid" else padding)
    output = _DepthwiseConvolution.apply(input.to(dtype), weight.to(dtype), _pair(stride), padding)
    return output if bias is None else output + bias.to(dtype)[:, None, None]


class _DepthwiseConvolution(torch.autograd.Function):
    """`(B, C, height, width)`, weight `(C, 1, side, side)` -> `(B, C, new height, new width)`."""

    @staticmethod
    def forward(ctx, images, weight, stride, padding):
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, grad):
        images, weight = ctx.saved_tensors
        needs_input_gradient, needs_weight_gradient, *_ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        return (
            _input_gradient(grad, images, weight, ctx.stride, ctx.padding) if needs_input_gradient else None,
            _weight_gradient(grad, images, weight, ctx.stride, ctx.padding) if needs_weight_gradient else None,
            None,
            None,
        )


def _input_gradient(grad, images, weight, stride, padding):
    if stride == (1, 1):
        return _gradients(grad, images, weight, stride, padding, (True, False, False))[0]
    gradients = _gradients(grad.float(), images.float(), weight.float(), stride, padding, (True, False, False))
    return gradients[0].to(images.dtype)


def _weight_gradient(grad, images, weight, stride, padding):
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    height, width = ((size - 1) * step + WINDOW for size, step in zip(grad.shape[2:], stride, strict=True))
    last = weight.shape[-1] - WINDOW
    starts = sorted({*range(0, last, WINDOW), last})  # windows overlap if the kernel size is not a multiple of theirs
    gradient = torch.empty_like(weight)
    for top in starts:
        for left in starts:
            part = padded[:, :, top : top + height, left : left + width]
            part = part.contiguous(memory_format=torch.channels_last)
            window = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
            gradient[window] = _gradients(grad, part, weight[window], stride, (0, 0), (False, True, False))[1]
    return gradient


def _gradients(grad, images, weight, stride, padding, output_mask):
    return torch.ops.aten.convolution_backward(
        grad, images, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), output_mask
    )
