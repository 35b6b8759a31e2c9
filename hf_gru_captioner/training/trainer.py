"""The Accelerate loop: cross-entropy over all captions of a photo at once, validated by the captions it writes.

AdamW (https://arxiv.org/abs/1711.05101) with warm-up and a cosine, label smoothing, gradient clipping, and an
exponential moving average of the weights, which is what is validated and saved.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from .checkpoints import save_whole
from .config import OptimizationConfig

Scores = dict[str, float]

IGNORE_INDEX = -100  # labels of this value take no part in the loss


class CaptionTrainer:
    """Trains a captioner.

    Args:
        model: A `GRUCaptionerForConditionalGeneration`.
        processor: Its processor, saved with each checkpoint.
        accelerator: Devices, processes and precision.
        config: The knobs.
        output_dir: Gets `checkpoint/`, the best one so far, and `history.jsonl`, one line an epoch.
        select_by: Name of the validation score by which an epoch is the best.
    """

    def __init__(
        self,
        model,
        processor,
        accelerator: Accelerator,
        config: OptimizationConfig,
        output_dir: str | Path,
        select_by: str = "cider",
    ):
        self.model = model
        self.processor = processor
        self.accelerator = accelerator
        self.config = config
        self.output_dir = Path(output_dir)
        self.select_by = select_by

    def fit(self, batches: DataLoader, validate: Callable[[Any], Scores]) -> list[dict[str, float]]:
        """Runs on every process; the first one writes.

        Args:
            batches: Batches whose keys are arguments of the model's forward.
            validate: Scores the averaged model; called on every process after each epoch.

        Returns:
            One record an epoch: loss, scores, seconds.
        """
        config = self.config
        optimizer = torch.optim.AdamW(_decay_matrices_only(self.model, config.weight_decay), lr=config.learning_rate)
        # Copied before prepare(), which wraps forward for mixed precision: the average is validated as it will be used.
        averaged = AveragedModel(
            self.model, device=self.accelerator.device, multi_avg_fn=_moving_average(config.ema_decay)
        )
        model, optimizer, batches = self.accelerator.prepare(self.model, optimizer, batches)
        num_steps = config.epochs * len(batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(config.warmup_share * num_steps), num_steps)

        history: list[dict[str, float]] = []
        for epoch in range(1, config.epochs + 1):
            start = time.perf_counter()
            loss = self._train_epoch(model, optimizer, schedule, averaged, batches, f"epoch {epoch}/{config.epochs}")
            train_seconds = time.perf_counter() - start
            scores = validate(averaged.module.eval())
            seconds = time.perf_counter() - start
            history.append({"epoch": epoch, "loss": loss, **scores, "train_seconds": train_seconds, "seconds": seconds})
            if self.accelerator.is_main_process:
                self._record(history, averaged.module)
            self.accelerator.wait_for_everyone()
        return history

    def _train_epoch(self, model, optimizer, schedule, averaged, batches, title: str) -> float:
        """One pass over the photos; returns the mean loss of a label, in nats."""
        model.train()
        total_loss = torch.zeros((), device=self.accelerator.device)
        progress = tqdm(batches, desc=title, unit="step", disable=not self.accelerator.is_main_process)
        for step, batch in enumerate(progress):
            loss = model(
                **batch,
                smoothing=self.config.label_smoothing,
                num_items_in_batch=self._labels_a_process(batch["labels"]),
                skip_logits=True,
            ).loss
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            averaged.update_parameters(self.accelerator.unwrap_model(model))
            total_loss += loss.detach()
            if step % 10 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}", lr=f"{schedule.get_last_lr()[0]:.1e}")
        return self.accelerator.reduce(total_loss, reduction="mean").item() / len(batches)

    def _labels_a_process(self, labels: torch.Tensor) -> torch.Tensor:
        """What each process divides its summed loss by, so that the mean gradient is that of one large batch."""
        num_labels = (labels != IGNORE_INDEX).sum().float()
        return self.accelerator.reduce(num_labels, reduction="mean")

    def _record(self, history: list[dict[str, float]], model) -> None:
        """Appends the last epoch to the log, and keeps the model when it is the best so far. Runs on one process."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        is_best = history[-1][self.select_by] >= max(record[self.select_by] for record in history)
        if is_best:
            precision = getattr(torch, self.config.checkpoint_precision)
            save_whole(self.output_dir / "checkpoint", copy.deepcopy(model).to(precision), self.processor)
        lines = [json.dumps({name: round(value, 5) for name, value in record.items()}) for record in history]
        aside = self.output_dir / "history.jsonl.partial"
        aside.write_text("\n".join(lines) + "\n")
        aside.replace(self.output_dir / "history.jsonl")
        tqdm.write(lines[-1] + ("  best so far" if is_best else ""))


def _moving_average(decay: float):
    """Exponential moving average that warms up: its memory is never longer than half of the steps so far.

    At a fixed decay of 0.999 a run of 2,000 steps would end with an average that is one seventh initial weights.
    """

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor) -> None:
        steps = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (3 + steps)))

    return update


def _decay_matrices_only(model, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.inference_mode()
def write_captions(
    model, processor, regions: Iterable[torch.Tensor], accelerator: Accelerator | None = None, **generation
) -> list[str]:
    """Captions of images whose regions are known, in their order. With an accelerator, each process writes its share.

    Args:
        model, processor: A captioner.
        regions: Batches `(B, P, D)`, the vision encoder's output.
        accelerator: Gathers the captions of all processes.
        generation: Arguments of generate().
    """
    captions: list[str] = []
    for batch in regions:
        encoder_outputs = model.get_encoder()(regions=batch.to(model.device))
        written = processor.batch_decode(model.generate(encoder_outputs=encoder_outputs, **generation))
        if accelerator is not None:
            written = accelerator.gather_for_metrics(written, use_gather_object=True)
        captions += written
    return captions
