"""Self-critical training: sampled captions are rewarded for agreeing with the reference captions.

Rennie et al. 2017, https://arxiv.org/abs/1612.00563. The reward is CIDEr-D, optionally with BLEU-4. The baseline is the
mean reward of the image's other samples (Luo 2020, https://arxiv.org/abs/2003.09971), or the paper's greedy caption.

The end token counts as a word of every caption, in samples and references alike. Without it a caption could stop in the
middle ("a man in a") at no cost, and the model would learn to. A sample that is truncated at the maximum length has no
end token, and so gets no reward for one.

Captions are sampled without the decoder's dropout, all of an image's at once by generate(); one ordinary forward pass
then gives their log-probabilities. If the cross-entropy has a weight, samples and references share that forward pass.
The encoder runs once for both, also when it is trained.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ..evaluation import CaptionSet, CiderDReward, DocumentFrequencies, bleu_scores
from ..label_names import LabelNames, normalized
from ..model.configuration_gru_captioner import IGNORE_INDEX

Batch = dict[str, Any]

TOKENIZER: Literal["none"] = "none"  # captions are token ids separated by spaces


class LabelReward:
    """Rewards captions for naming what an image shows.

    The reward is the weight if a caption names any of the image's labels, minus the weight for each label that it names
    and the image doesn't have. 0 if the labels of an image are unknown.

    Args:
        label_names: The label of each column of `image_labels`.
        names: Finds labels in captions.
        decode: Rows of token ids, padded with -100, -> texts.
        weight: Weight beside CIDEr-D (0 to 10).
    """

    def __init__(
        self,
        label_names: Sequence[str],
        names: LabelNames,
        decode: Callable[[torch.Tensor], list[str]],
        weight: float,
    ):
        self.column_of = {normalized(name): column for column, name in enumerate(label_names)}
        self.names = names
        self.decode = decode
        self.weight = weight

    def __call__(self, captions: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """Rewards of captions `(N, T)`, given the labels of their images `(N, L)`, `(N,)`."""
        rewards = []
        for text, image_labels in zip(self.decode(captions), labels.tolist(), strict=True):
            named = self.names.named(text) & self.column_of.keys()
            num_correct = sum(image_labels[self.column_of[label]] == 1 for label in named)
            is_known = image_labels[0] == image_labels[0]  # not nan
            rewards.append(self.weight * ((num_correct > 0) - (len(named) - num_correct)) if is_known else 0.0)
        return np.array(rewards)


class SelfCritical:
    """The loss: -(reward - baseline) log p(sample), divided by the number of sampled tokens in the whole step.

    Args:
        frequencies: Number of images whose captions have each n-gram of token ids: `count_ngrams` of the training set.
        samples: Captions sampled per image, at least 2 for the sample-mean baseline.
        baseline: `"sample_mean"` or `"greedy"`.
        bleu_weight: Weight of BLEU-4 (0 to 1) beside CIDEr-D (0 to 10) in the reward.
        label_reward: Reward for naming an image's labels, where they are known.
        cross_entropy_weight: Weight in [0, 1) of the references' cross-entropy in the loss, in which they are
            weighted by `caption_weights` if the batch has them; samples are not.
        temperature: Of the policy that is sampled and trained: words of probability p are sampled in proportion to
            p ** (1 / temperature). Values below 1 compensate for label smoothing, after which samples at 1 are far from
            the output of a search (mean reward 0.35; 0.82 at 0.5), and training only sharpens the distribution.
        encode_once: Run a trained encoder once for sampling and loss. All batches of a step are prepared before the
            first loss and hold its activations until then: gradient accumulation needs False to save memory.
    """

    def __init__(
        self,
        frequencies: DocumentFrequencies,
        *,
        samples: int = 5,
        baseline: Literal["sample_mean", "greedy"] = "sample_mean",
        bleu_weight: float = 0.0,
        label_reward: LabelReward | None = None,
        cross_entropy_weight: float = 0.0,
        temperature: float = 1.0,
        encode_once: bool = True,
    ):
        if baseline == "sample_mean" and samples < 2:
            raise ValueError(f"the sample-mean baseline compares samples: at least 2 are needed, found {samples}.")
        self.frequencies = frequencies
        self.samples = samples
        self.baseline = baseline
        self.bleu_weight = bleu_weight
        self.label_reward = label_reward
        self.cross_entropy_weight = cross_entropy_weight
        self.temperature = temperature
        self.encode_once = encode_once
        self.metrics: dict[str, float] = {}

    @torch.no_grad()
    def prepare(self, model, batch: Batch, share_done: float) -> Batch:
        """Samples captions of the batch's images and computes the advantage of each.

        Returns:
            The images; `labels` of the samples, then of the references if these have a weight; `image_index`;
            `advantage` `(N,)`, nan for references.
        """
        images: Batch = {name: batch[name] for name in ("pixel_values", "encoder_outputs") if name in batch}
        if "pixel_values" in images and (self.encode_once or model.config.freeze_encoder):
            with torch.enable_grad():  # for the loss
                images = {"encoder_outputs": (model.encoder.vision(images["pixel_values"]),)}
        is_training = model.training
        model.eval()
        settings = {  # samples must come from the policy itself, without the constraints of beam search
            "num_beams": 1,
            "length_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "max_new_tokens": model.generation_config.max_new_tokens,
            "suppress_tokens": model.generation_config.suppress_tokens,
        }
        sequences = model.generate(
            **images,
            **settings,
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            num_return_sequences=self.samples,
        )
        samples = model.labels_of_sequences(sequences)  # (B K, T)
        references = _group_by_image(batch["labels"], batch["image_index"])
        labels = batch.get("image_labels")  # (B, L)
        rewards = self._rewards(samples, references, self.samples, labels).view(-1, self.samples)  # (B, K)
        if self.baseline == "greedy":
            greedy = model.labels_of_sequences(model.generate(**images, **settings, do_sample=False))
            baseline = self._rewards(greedy, references, 1, labels)[:, None]  # (B, 1)
        else:
            baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (self.samples - 1)  # (B, K), mean of the others
        model.train(is_training)
        self.metrics = {"reward": rewards.mean().item()}

        labels = samples
        advantage = (rewards - baseline).flatten().to(samples.device)  # (B K,)
        image_index = torch.arange(len(rewards), device=samples.device).repeat_interleave(self.samples)  # (B K,)
        if self.cross_entropy_weight:
            labels = _concatenate(samples, batch["labels"])
            image_index = torch.cat((image_index, batch["image_index"]))
            advantage = torch.cat((advantage, torch.full((len(batch["labels"]),), torch.nan, device=samples.device)))
        prepared = {**images, "labels": labels, "image_index": image_index, "advantage": advantage}
        if self.cross_entropy_weight and "caption_weights" in batch:
            sample_weights = torch.ones(len(samples), device=samples.device)
            prepared["caption_weights"] = torch.cat((sample_weights, batch["caption_weights"]))
        return prepared

    def num_items(self, batch: Batch) -> torch.Tensor:
        """Numbers of labels of the samples and of the references, `(2,)`; the latter are weighted."""
        lengths = (batch["labels"] >= 0).sum(dim=1)  # (N,)
        if "caption_weights" in batch:
            lengths = lengths * batch["caption_weights"]
        is_sample = ~batch["advantage"].isnan()
        return torch.stack((lengths[is_sample].sum(), lengths[~is_sample].sum())).float()

    def loss(self, model, batch: Batch, num_items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = dict(batch)
        advantage, caption_weights = batch.pop("advantage"), batch.pop("caption_weights", 1.0)
        is_sample = ~advantage.isnan()
        weights = torch.where(
            is_sample,
            (1 - self.cross_entropy_weight) * advantage.nan_to_num() / num_items[0],
            self.cross_entropy_weight * caption_weights / num_items[1].clamp(min=1),
        )  # (N,), of -log p(caption)
        temperature = torch.where(is_sample, self.temperature, 1.0)  # (N,)
        settings = {"caption_weights": weights, "temperature": temperature, "num_items_in_batch": 1}
        output = model(**batch, **settings, skip_logits=True)
        return output.loss, output.encoder_last_hidden_state

    def _rewards(
        self,
        captions: torch.Tensor,
        references: Sequence[list[str]],
        captions_per_image: int,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rewards `(N,)` of captions `(N, T)` that are grouped by image; `labels` of the images are `(B, L)`."""
        hypotheses = as_words(captions)
        image = np.repeat(np.arange(len(references)), captions_per_image).tolist()
        reward = CiderDReward(references, self.frequencies, TOKENIZER)(hypotheses, image)
        if self.bleu_weight:
            scored = CaptionSet(hypotheses, [references[each] for each in image], TOKENIZER)
            reward = reward + self.bleu_weight * bleu_scores(scored).per_image[:, 3]
        if self.label_reward is not None and labels is not None:
            reward = reward + self.label_reward(captions, labels[image])
        return torch.from_numpy(reward).float()


def count_ngrams(labels_of_images: Iterable[Sequence[Sequence[int]]]) -> DocumentFrequencies:
    """Document frequencies of the training set; each image's captions are token ids, end tokens included."""
    references = [[" ".join(map(str, caption)) for caption in captions] for captions in labels_of_images]
    return DocumentFrequencies.from_text(references, TOKENIZER)


def as_words(labels: torch.Tensor) -> list[str]:
    """Labels `(N, T)` -> token ids separated by spaces, end tokens included."""
    return [" ".join(str(token) for token in row if token >= 0) for row in labels.tolist()]


def _group_by_image(labels: torch.Tensor, image_index: torch.Tensor) -> list[list[str]]:
    references: list[list[str]] = [[] for _ in range(int(image_index.max()) + 1)]
    for image, caption in zip(image_index.tolist(), as_words(labels), strict=True):
        references[image].append(caption)
    return references


def _concatenate(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Concatenates labels, padded to the longer length, `(N1 + N2, T)`."""
    length = max(first.shape[1], second.shape[1])
    pad = torch.nn.functional.pad
    return torch.cat([pad(each, (0, length - each.shape[1]), value=IGNORE_INDEX) for each in (first, second)])
