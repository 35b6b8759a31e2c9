"""Predicting image labels: an auxiliary task for training the vision encoder.

A linear layer on the mean region predicts which labels an image has; its multi-label binary cross-entropy is added to
the loss. So the encoder learns from images even where their captions say little about them. The layer is used only in
training: it is part of the states, never of a checkpoint.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .trainer import Batch, Objective


class LabelHead(nn.Module):
    """Mean region -> logits of the labels. Initialized to predict the frequencies of the labels for every image.

    Args:
        region_size: Width D of the regions.
        frequencies: Fraction of the images that have each label, L numbers; clipped away from 0 and 1.
    """

    def __init__(self, region_size: int, frequencies: Sequence[float]):
        super().__init__()
        self.linear = nn.Linear(region_size, len(frequencies))
        clipped = [min(max(each, 1e-4), 1 - 1e-4) for each in frequencies]
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor([math.log(each / (1 - each)) for each in clipped]))

    def forward(self, regions: torch.Tensor) -> torch.Tensor:  # (B, P, D) -> (B, L)
        return self.linear(regions.mean(dim=1))


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, summed over the labels and over the images with known labels.

    Args:
        logits: `(B, L)`.
        labels: 0 or 1, `(B, L)`; nan for images whose labels are unknown.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(), reduction="none")  # (B, L)
    return losses.masked_fill(labels.isnan(), 0).sum()


class WithLabelLoss:
    """An objective, plus the loss of predicting the labels of the images.

    Args:
        objective: The objective of the captions.
        label_head: Regions `(B, P, D)` -> logits of image labels `(B, L)`, for batches with `image_labels`. It is
            trained with the model.
        weight: Weight of its loss per image with known labels: the binary cross-entropy, summed over the labels.
    """

    def __init__(self, objective: Objective, label_head: LabelHead, weight: float):
        self.objective = objective
        self.label_head: Any = label_head  # wrapped by Accelerate in training
        self.weight = weight
        self._label_loss = 0.0  # of a step

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the objective, and `label_loss`, 0 if no image has known labels."""
        return {**self.objective.metrics, "label_loss": self._label_loss}

    def prepare(self, model, batch: Batch, share_done: float) -> Batch:
        self._label_loss = 0.0
        prepared = self.objective.prepare(model, batch, share_done)
        return {**prepared, "image_labels": batch["image_labels"]}

    def num_items(self, batch: Batch) -> torch.Tensor:
        """The objective's numbers, then the number of images with known labels, `(K + 1,)`."""
        num_images = (~batch["image_labels"][:, 0].isnan()).sum().float()
        return torch.cat((self.objective.num_items(batch).view(-1), num_images.view(1)))

    def loss(self, model, batch: Batch, num_items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = dict(batch)
        image_labels = batch.pop("image_labels")
        loss, regions = self.objective.loss(model, batch, num_items[:-1].squeeze())
        num_images = torch.where(num_items[-1] > 0, num_items[-1], 1)  # a mean over processes, so possibly below 1
        head_loss = label_loss(self.label_head(regions), image_labels) / num_images
        self._label_loss += head_loss.item()
        return loss + self.weight * head_loss, regions


def label_frequencies(labels_of_images: Iterable[Sequence[str] | None], min_count: int) -> dict[str, float]:
    """Frequency of each label that at least `min_count` images have, among the images with known labels."""
    counts: Counter[str] = Counter()
    images = 0
    for labels in labels_of_images:
        if labels is not None:
            images += 1
            counts.update(set(labels))
    return {name: count / images for name, count in sorted(counts.items()) if count >= min_count}
