"""Teacher forcing: the cross-entropy of each next word with label smoothing, and two options from the literature.

Scheduled sampling (Bengio et al. 2015, https://arxiv.org/abs/1506.03099) replaces some of the reference words in the
decoder's input by words sampled from the model. As in https://arxiv.org/abs/1906.04331 there are two passes instead of
a loop over words: the first, without gradients, samples a word at every position at once; the second is trained on the
mixed caption.

The doubly stochastic penalty (Xu et al. 2015, https://arxiv.org/abs/1502.03044, equation 14) encourages a caption to
attend to every region about once. With several heads, it is applied to their mean.
"""

from typing import Any

import torch

Batch = dict[str, Any]


class CrossEntropy:
    """The loss of a caption: -log p(caption) + penalty, divided by the number of labels in the whole step.

    With `caption_weights` in the batch, each caption and its labels are weighted by them.

    Args:
        label_smoothing: Fraction of each target that is spread over all words, [0, 1).
        scheduled_sampling: Fraction of input words sampled from the model at the end of training, [0, 1]; it grows
            linearly from 0.
        attention_penalty: Weight of the doubly stochastic penalty; 1 in the paper.
    """

    def __init__(self, label_smoothing: float = 0.0, scheduled_sampling: float = 0.0, attention_penalty: float = 0.0):
        self.label_smoothing = label_smoothing
        self.scheduled_sampling = scheduled_sampling
        self.attention_penalty = attention_penalty
        self.metrics: dict[str, float] = {}

    def prepare(self, model, batch: Batch, share_done: float) -> Batch:
        """The batch to train on: with scheduled sampling, some input words are sampled from the model."""
        rate = self.scheduled_sampling * share_done
        if rate == 0:
            return batch
        batch = {name: value for name, value in batch.items() if name != "image_labels"}  # no argument of forward
        input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])  # (N, T)
        with torch.no_grad():
            logits = model(**batch).logits  # (N, T, V)
        sampled = torch.distributions.Categorical(logits=logits.float()).sample()  # (N, T)
        is_sampled = torch.rand(input_ids[:, 1:].shape, device=input_ids.device) < rate  # (N, T - 1)
        mixed = torch.where(is_sampled, sampled[:, :-1], input_ids[:, 1:])  # (N, T - 1)
        return {**batch, "decoder_input_ids": torch.cat((input_ids[:, :1], mixed), dim=1)}  # (N, T)

    def num_items(self, batch: Batch) -> torch.Tensor:
        """Number of labels, weighted by caption; the loss is divided by their total over the step."""
        is_label = batch["labels"] >= 0  # (N, T)
        if "caption_weights" in batch:
            return (is_label.sum(dim=1) * batch["caption_weights"]).sum()
        return is_label.sum().float()

    def loss(self, model, batch: Batch, num_items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(
            **batch,
            smoothing=self.label_smoothing,
            num_items_in_batch=num_items,
            skip_logits=True,
            output_attentions=self.attention_penalty > 0,
        )
        regions = output.encoder_last_hidden_state  # (B, P, D)
        if self.attention_penalty == 0:
            return output.loss, regions
        attended = output.cross_attentions[0].mean(dim=1).sum(dim=1)  # (N, P), attention to each region over all words
        penalty = (1 - attended) ** 2  # (N, P)
        if "caption_weights" in batch:
            penalty = penalty * batch["caption_weights"][:, None]
        return output.loss + self.attention_penalty * penalty.sum() / num_items, regions
