"""Rows -> one batch, whose keys are the arguments of the model's forward."""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput


class CaptionCollator:
    """Collates images with all of their captions, so that each image is encoded once, not once per caption.

    Args:
        processor: A `GRUCaptionerProcessor`.
        model: A captioner, to add `decoder_input_ids` to each batch. `transformers.Trainer` needs them for its own
            `label_smoothing_factor`, because it removes the labels before it calls forward.
    """

    def __init__(self, processor, model=None):
        self.processor = processor
        self.model = model

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: Each with `captions`, and either `image` or `regions` `(P, D)`, the encoder's output for it. Rows may
                have `caption_weights`, a number for each caption.

        Returns:
            `pixel_values` `(B, 3, height, width)` or `encoder_outputs` with `(B, P, D)`; `labels` `(N, T)` of all
            captions, image by image; `image_index` `(N,)`; `caption_weights` `(N,)` if a weight is not 1.
        """
        batch = self.images(rows)
        captions = [row["captions"] for row in rows]
        batch["labels"] = self.processor.encode_captions([caption for each in captions for caption in each])  # (N, T)
        counts = torch.tensor([len(each) for each in captions])
        batch["image_index"] = torch.arange(len(rows)).repeat_interleave(counts)  # (N,)
        weights = [weight for row in rows for weight in row.get("caption_weights") or [1.0] * len(row["captions"])]
        if any(weight != 1 for weight in weights):
            batch["caption_weights"] = torch.tensor(weights, dtype=torch.float32)  # (N,)
        if self.model is not None:
            batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(batch["labels"])  # (N, T)
        return batch

    def images(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Only the images of the rows, as generate() takes them."""
        if "regions" in rows[0]:
            regions = torch.stack([row["regions"] for row in rows])  # (B, P, D)
            return {"encoder_outputs": BaseModelOutput(last_hidden_state=regions)}
        return {"pixel_values": self.processor(images=[row["image"] for row in rows])["pixel_values"]}
