"""Finds the precision in which this machine computes the matrix products of training fastest.

A processor without native bfloat16 instructions emulates them: with AVX2 only, a training step in bf16 takes 12 to 20
times as long as in fp32. Timing both is more reliable than processor names and flags.
"""

import time

import torch
from torch import nn

ROWS, WIDTH = 1024, 512  # the sizes of a training step of 32 images
REPEATS = 5  # of both precisions in turn, the first discarded; several, because other processes may interfere
GAIN = 0.9  # fraction of fp32's time: bf16 is less precise, so it must be clearly faster


def fastest_precision(device: torch.device) -> tuple[str, str]:
    """Accelerate's name for the precision to train in, `"bf16"` or `"no"`, and the reason in one line.

    Runs on one process, which broadcasts the result: separate measurements might differ.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return "bf16", "bf16, which this GPU supports"
        return "no", "fp32, since this GPU doesn't support bf16"
    if device.type != "cpu":
        return "no", f"fp32, the only precision sure to work on {device.type}"
    times = [(_milliseconds(torch.bfloat16), _milliseconds(torch.float32)) for _ in range(REPEATS)][1:]
    ratio = min(bf16 for bf16, _ in times) / min(fp32 for _, fp32 in times)
    if ratio < GAIN:
        return "bf16", f"bf16, which takes {ratio:.2f} times as long as fp32 on this processor"
    return "no", f"fp32, since bf16 takes {ratio:.1f} times as long on this processor"


def _milliseconds(dtype: torch.dtype) -> float:
    """Time of a matrix product and its gradients."""
    layer, inputs = nn.Linear(WIDTH, WIDTH), torch.ones(ROWS, WIDTH, requires_grad=True)
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        total = layer(inputs).sum()
    total.backward()
    return 1000 * (time.perf_counter() - start)
