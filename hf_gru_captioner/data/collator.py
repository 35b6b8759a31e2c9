"""Collates rows into a batch whose keys are the arguments of the model's forward, besides `image_labels`."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput


class CaptionCollator:
    """Collates images with all of their captions, so that each image is encoded once, not once per caption.

    Args:
        processor: A `GRUCaptionerProcessor`.
        model: A captioner, to add `decoder_input_ids` to each batch. `transformers.Trainer` needs them for its own
            `label_smoothing_factor`, because it removes the labels before it calls forward.
        label_names: Image labels to learn, see `image_labels` below.
    """

    def __init__(self, processor, model=None, label_names: Sequence[str] = ()):
        self.processor = processor
        self.model = model
        self.column_of = {name: column for column, name in enumerate(label_names)}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: Each with `captions`, and either `image` or its encoder output `regions` `(P, D)`. Rows may have
                `caption_weights`, a number for each caption.

        Returns:
            `pixel_values` `(B, 3, height, width)` or `encoder_outputs` with `(B, P, D)`; `labels` `(N, T)` of all
            captions, image by image; `image_index` `(N,)`; `caption_weights` `(N,)` if a weight is not 1. With
            `label_names` also `image_labels` `(B, L)`: 1 for each label in the row's `labels`, otherwise 0; NaN for
            rows without `labels`. (It is not an argument of forward: objectives use it.)
        """
        batch = self.images(rows)
        captions = [row["captions"] for row in rows]
        batch["labels"] = self.processor.encode_captions([caption for each in captions for caption in each])  # (N, T)
        counts = torch.tensor([len(each) for each in captions])
        batch["image_index"] = torch.arange(len(rows)).repeat_interleave(counts)  # (N,)
        weights = [weight for row in rows for weight in row.get("caption_weights") or [1.0] * len(row["captions"])]
        if any(weight != 1 for weight in weights):
            batch["caption_weights"] = torch.tensor(weights, dtype=torch.float32)  # (N,)
        if self.column_of:
            batch["image_labels"] = torch.stack([self._labels_of(row.get("labels")) for row in rows])  # (B, L)
        if self.model is not None:
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(batch["labels"])  # (N, T)
        return batch

    def _labels_of(self, labels: Sequence[str] | None) -> torch.Tensor:
        if labels is None:
            return torch.full((len(self.column_of),), torch.nan)
        targets = torch.zeros(len(self.column_of))
        targets[[self.column_of[label] for label in labels if label in self.column_of]] = 1
        return targets  # (L,)

    def images(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Only the images of the rows, as inputs of generate()."""
        if "regions" in rows[0]:
            regions = torch.stack([row["regions"] for row in rows])  # (B, P, D)
            return {"encoder_outputs": BaseModelOutput(last_hidden_state=regions)}
        return {"pixel_values": self.processor(images=[row["image"] for row in rows])["pixel_values"]}
