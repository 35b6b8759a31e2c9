"""Human scores: each reference caption scored against the other references of its image ("leave one out").

They put a system's scores into perspective. They are not an upper bound: a captioner can outscore humans by writing
what all of them have in common. A human caption is compared with one reference fewer than a system's, which slightly
lowers BLEU, METEOR and ROUGE-L.
"""

from __future__ import annotations

from .caption_set import CaptionSet


def leave_one_out(captions: CaptionSet) -> list[CaptionSet]:
    """Return one caption set per round, with the reference left out in that round as the hypothesis. There are as many
    rounds as the image with the most references has.

    Images with a single reference are skipped. Images with fewer references than others cycle through them, so that
    every round has the same images. The human score is the mean over the rounds.

    Raises:
        ValueError: No image has two references.
    """
    images = [references for references in captions.references if len(references) > 1]
    if not images:
        raise ValueError(
            "No image has two or more references, so there is no human caption to score against another one."
        )
    rounds = []
    for turn in range(max(map(len, images))):
        left_out = [turn % len(references) for references in images]
        hypotheses = [references[i] for references, i in zip(images, left_out, strict=True)]
        others = [references[:i] + references[i + 1 :] for references, i in zip(images, left_out, strict=True)]
        rounds.append(CaptionSet(hypotheses, others, captions.tokenizer))
    return rounds
