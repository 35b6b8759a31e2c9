"""Self-critical training: captions that the model samples are rewarded for agreeing with people's.

Rennie et al. 2017, https://arxiv.org/abs/1612.00563. The reward is CIDEr-D, if wanted with BLEU-4. The baseline is the
mean reward of the photo's other samples (Luo 2020, https://arxiv.org/abs/2003.09971), or the paper's greedy caption.

The end token is a word of every caption here, of the samples and of people's alike. Without it a caption loses nothing
by stopping in the middle ("a man in a"), and the model learns to. A sample that was cut at the longest length has no
end token, and misses what the end would have been worth.

Captions are sampled without dropout, all of a photo's at once by generate(), and scored again by one ordinary forward.
Sampled and people's captions go through that forward together when the cross-entropy keeps a weight.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ..evaluation import CaptionSet, CiderDReward, DocumentFrequencies, bleu_scores

Batch = dict[str, Any]

IGNORED = -100  # label of a place without a word, as in transformers
TOKENIZER: Literal["none"] = "none"  # captions are token ids with blanks between them


class SelfCritical:
    """What a step minimizes: -(reward - baseline) log p(sample), divided by the sampled tokens of the whole step.

    Args:
        frequencies: In how many photos' captions each n-gram of token ids occurs: `count_ngrams` of the training set.
        samples: Captions sampled a photo, at least 2 for the sample-mean baseline.
        baseline: `"sample_mean"` or `"greedy"`.
        bleu_weight: Weight of BLEU-4 (0 to 1) beside CIDEr-D (0 to 10) in the reward.
        cross_entropy_weight: Share in [0, 1) of the cross-entropy of people's captions in the loss.
        temperature: Of the policy that is sampled from and learns: words of probability p are drawn in proportion to
            p ** (1 / temperature). Below 1 it makes up for label smoothing, after which samples at 1 are far from what
            a search writes (mean reward 0.35, at 0.5 it is 0.82), and learning only makes the distribution sharp.
    """

    def __init__(
        self,
        frequencies: DocumentFrequencies,
        *,
        samples: int = 5,
        baseline: Literal["sample_mean", "greedy"] = "sample_mean",
        bleu_weight: float = 0.0,
        cross_entropy_weight: float = 0.0,
        temperature: float = 1.0,
    ):
        if baseline == "sample_mean" and samples < 2:
            raise ValueError(f"the sample-mean baseline compares samples: take at least 2, found {samples}.")
        self.frequencies = frequencies
        self.samples = samples
        self.baseline = baseline
        self.bleu_weight = bleu_weight
        self.cross_entropy_weight = cross_entropy_weight
        self.temperature = temperature
        self.figures: dict[str, float] = {}

    @torch.no_grad()
    def prepare(self, model, batch: Batch, share_done: float) -> Batch:
        """Samples captions of the batch's photos and weighs each by its advantage.

        Returns:
            The photos; `labels` of the samples, then of people's captions where these keep a weight; `image_index`;
            `advantage` `(N,)`, nan for people's captions.
        """
        is_training = model.training
        model.eval()
        images: Batch = {name: batch[name] for name in ("pixel_values", "encoder_outputs") if name in batch}
        if "pixel_values" in images and model.config.freeze_encoder:  # run once for sampling and learning
            images = {"encoder_outputs": (model.encoder.vision(images["pixel_values"]),)}
        length = model.generation_config.max_new_tokens
        suppressed = model.generation_config.suppress_tokens
        settings = {"num_beams": 1, "length_penalty": 1.0, "max_new_tokens": length, "suppress_tokens": suppressed}
        written = model.generate(
            **images,
            **settings,
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            num_return_sequences=self.samples,
        )
        samples = model.labels_of_sequences(written)  # (B K, T)
        references = _by_image(batch["labels"], batch["image_index"])
        rewards = self._rewards(samples, references, self.samples).view(-1, self.samples)  # (B, K)
        if self.baseline == "greedy":
            greedy = model.labels_of_sequences(model.generate(**images, **settings, do_sample=False))
            baseline = self._rewards(greedy, references, 1)[:, None]  # (B, 1)
        else:
            baseline = (rewards.sum(dim=1, keepdim=True) - rewards) / (self.samples - 1)  # (B, K), of the others
        model.train(is_training)
        self.figures = {"reward": rewards.mean().item()}

        labels = samples
        advantage = (rewards - baseline).flatten().to(samples.device)  # (B K,)
        image_index = torch.arange(len(rewards), device=samples.device).repeat_interleave(self.samples)  # (B K,)
        if self.cross_entropy_weight:
            labels = _stack(samples, batch["labels"])
            image_index = torch.cat((image_index, batch["image_index"]))
            advantage = torch.cat((advantage, torch.full((len(batch["labels"]),), torch.nan, device=samples.device)))
        return {**images, "labels": labels, "image_index": image_index, "advantage": advantage}

    def num_items(self, batch: Batch) -> torch.Tensor:
        """Labels of the samples and of people's captions, (2,)."""
        lengths = (batch["labels"] >= 0).sum(dim=1)  # (N,)
        is_sample = ~batch["advantage"].isnan()
        return torch.stack((lengths[is_sample].sum(), lengths[~is_sample].sum())).float()

    def loss(self, model, batch: Batch, num_items: torch.Tensor) -> torch.Tensor:
        batch = dict(batch)
        advantage, labels = batch.pop("advantage"), batch["labels"]
        is_sample = ~advantage.isnan()
        temperature = torch.where(is_sample, self.temperature, 1.0)[:, None, None]  # (N, 1, 1)
        logits = model(**batch).logits.float() / temperature  # (N, T, V)
        log_probabilities = logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)  # (N, T)
        log_probability = log_probabilities.masked_fill(labels < 0, 0).sum(dim=1)  # (N,)
        share = self.cross_entropy_weight
        weight = torch.where(
            is_sample,
            (1 - share) * advantage.nan_to_num() / num_items[0],
            share / num_items[1].clamp(min=1),
        )  # (N,)
        return -(weight * log_probability).sum()

    def _rewards(self, labels: torch.Tensor, references: Sequence[list[str]], captions_an_image: int) -> torch.Tensor:
        """Rewards of captions that stand image by image, `(N,)`."""
        hypotheses = as_words(labels)
        image = np.repeat(np.arange(len(references)), captions_an_image).tolist()
        reward = CiderDReward(references, self.frequencies, TOKENIZER)(hypotheses, image)
        if self.bleu_weight:
            captions = CaptionSet(hypotheses, [references[each] for each in image], TOKENIZER)
            reward = reward + self.bleu_weight * bleu_scores(captions).per_image[:, 3]
        return torch.from_numpy(reward).float()


def count_ngrams(labels_of_images: Iterable[Sequence[Sequence[int]]]) -> DocumentFrequencies:
    """Document frequencies of the training set; each image's captions are token ids, the end token included."""
    references = [[" ".join(map(str, caption)) for caption in captions] for captions in labels_of_images]
    return DocumentFrequencies.from_text(references, TOKENIZER)


def as_words(labels: torch.Tensor) -> list[str]:
    """Labels `(N, T)` -> token ids with blanks between them, the end token's too."""
    return [" ".join(str(token) for token in row if token >= 0) for row in labels.tolist()]


def _by_image(labels: torch.Tensor, image_index: torch.Tensor) -> list[list[str]]:
    references: list[list[str]] = [[] for _ in range(int(image_index.max()) + 1)]
    for image, caption in zip(image_index.tolist(), as_words(labels), strict=True):
        references[image].append(caption)
    return references


def _stack(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Labels below each other, filled up to the longer, `(N1 + N2, T)`."""
    length = max(first.shape[1], second.shape[1])
    pad = torch.nn.functional.pad
    return torch.cat([pad(each, (0, length - each.shape[1]), value=IGNORED) for each in (first, second)])
