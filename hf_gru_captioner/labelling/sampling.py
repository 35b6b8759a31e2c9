"""Samples captions with per-photo noise.

The Gumbel-max trick (https://arxiv.org/abs/1411.0030): the token with the highest sum of log-probability and Gumbel
noise is a sample. The noise is seeded by the photo's name, the caption's number and a seed, so that a photo's samples
don't depend on the rest of its batch: a run that was killed resumes to the same captions.

Letters of shapes: `N` captions, the samples of a photo side by side, `V` vocabulary.
"""

import hashlib
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


class PhotoNoise(LogitsProcessor):
    """Masks all tokens except the sampled one in each row of scores.

    Args:
        names: Names of the photos.
        num_captions: Samples per photo.
        seed: Seed of the noise.
    """

    def __init__(self, names: Sequence[str], num_captions: int, seed: int):
        self._generators = [
            torch.Generator().manual_seed(_seed_of(f"{seed}/{number}/{name}"))
            for name in names
            for number in range(num_captions)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if len(scores) != len(self._generators):
            raise ValueError(f"expected scores for {len(self._generators)} captions, found {len(scores)}")
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self._generators])  # (N, V)
        noise = -(-uniform.clamp(min=torch.finfo().tiny).log()).log()  # (N, V)
        chosen = (scores.float() + noise.to(scores.device)).argmax(dim=-1, keepdim=True)  # (N, 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)  # (N, V)


def samplers(
    names: Sequence[str], num_captions: int, *, temperature: float, top_p: float, seed: int
) -> LogitsProcessorList:
    """The `logits_processor` for generate(do_sample=True): temperature and nucleus, then the noise."""
    steps = LogitsProcessorList()
    if temperature != 1:
        steps.append(TemperatureLogitsWarper(temperature))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    steps.append(PhotoNoise(names, num_captions, seed))
    return steps


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big", signed=True)
