"""Estimates of the time and disk space of a run, measured on this machine."""

import os
import time
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from PIL import Image

from ..errors import counted
from .assembly import Assembly
from .checkpoints import STATES, TrainingStates


def estimates(assembly: Assembly) -> str:
    """Sizes, steps, time and disk space of a run, as text; times are measured on one batch of each kind."""
    config, model = assembly.config, assembly.model
    optimization = config.optimization
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    image = Image.new("RGB", (224, 224), "grey")
    pixel_values = assembly.processor(images=[image] * 8)["pixel_values"].to(model.device)
    with torch.inference_mode():
        for _ in range(2):  # the second is timed
            start = _now(model.device)
            model.encoder.vision(pixel_values)
            encoding_seconds = (_now(model.device) - start) / len(pixel_values)  # per image

    num_parts = assembly.accelerator.num_processes * optimization.micro_batches
    captions = assembly.known_captions[: max(1, optimization.images_per_step // num_parts)]
    rows = [{"captions": each, "image": image} for each in captions]
    if config.caches_regions:
        regions = torch.zeros(assembly.cache.region_shape)
        rows = [{"captions": each, "regions": regions} for each in captions]
    batch, objective = send_to_device(assembly.collator(rows), model.device), assembly.objective
    model.train()
    for _ in range(2):  # the second is timed
        start = _now(model.device)
        with assembly.accelerator.autocast():
            prepared = objective.prepare(model, batch, 0.0)
            loss, _ = objective.loss(model, prepared, objective.num_items(prepared))
        loss.backward()
        step_seconds = optimization.micro_batches * (_now(model.device) - start)
    for module in filter(None, (model, getattr(objective, "label_head", None))):
        module.zero_grad()
    model.eval()

    num_images, steps = "a stream", config.data.steps_per_epoch or 0
    if not config.data.streaming:
        num_images = " + ".join(str(len(rows)) for rows in assembly.training_sets)
        steps = -(-assembly.images_per_epoch // optimization.images_per_step)
    num_validated = " + ".join(str(len(rows)) for rows in assembly.validation_sets.values())
    num_steps = optimization.epochs * steps
    lines = [
        f"model           {parameters / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M of them trainable",
        f"vocabulary      {model.config.vocab_size} tokens",
        f"images          {num_images} for training, {num_validated} for validation",
        f"steps           {optimization.epochs} epochs of {steps} = {num_steps}{_epoch_details(assembly)}",
    ]
    if config.caches_regions:
        missing = sum(assembly.cache.missing_bytes(*each) for each in assembly.to_encode)
        bytes_per_image = 2 * torch.tensor(assembly.cache.region_shape).prod().item()
        time_to_write = _duration(missing / bytes_per_image * encoding_seconds)
        to_write = f"{missing / 1e9:.2f} GB to write, {time_to_write}" if missing else "all written"
        lines.append(f"features        {to_write}")
    machine = f"{counted(assembly.accelerator.num_processes, 'process', 'processes')}, "
    machine += counted(torch.get_num_threads(), "thread")
    num_done = _steps_done(assembly)
    num_remaining = max(0, num_steps - num_done)
    remaining = f" for the {num_remaining} remaining steps" if num_done else ""
    training_time = _duration(num_remaining * step_seconds)
    states = optimization.states_kept * 4 * (parameters + 3 * trainable)  # float32; the optimizer and the average
    checkpoint = parameters * getattr(torch, optimization.checkpoint_precision).itemsize
    lines += [
        f"training        {training_time}{remaining}, {step_seconds:.2f} s per step ({machine})",
        f"disk            {states / 1e6:.0f} MB of states, {checkpoint / 1e6:.0f} MB of checkpoint, in "
        + os.path.abspath(config.output_dir),
    ]
    return "\n".join(lines)


def _now(device: torch.device) -> float:
    """The time in seconds when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _epoch_details(assembly: Assembly) -> str:
    """Says how many passes an epoch is, if several, and when training stops early."""
    repeats = [source.repeat for source in assembly.sources.values()]
    patience = assembly.config.optimization.patience
    passes = f", {repeats[0]:g} passes over the images each" if len(repeats) == 1 and repeats[0] > 1 else ""
    return passes + (f"; fewer if {counted(patience, 'epoch')} bring no better score" if patience else "")


def _steps_done(assembly: Assembly) -> int:
    folder = Path(assembly.config.output_dir) / STATES
    return TrainingStates(folder, "", assembly.accelerator).newest_step


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 60:
        return "under a minute"
    return f"about {counted(minutes, 'minute')}" if minutes < 120 else f"about {minutes / 60:.1f} hours"
