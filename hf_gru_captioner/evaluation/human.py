"""Human scores: each reference caption scored against the other references of its image ("leave one out").

They put a system's scores into proportion. They are not an upper bound: a captioner can score higher than humans by
writing what all of them have in common. A human caption is compared with one reference fewer than a system's, which
lowers BLEU, METEOR and ROUGE-L a little.
"""

from __future__ import annotations

from .caption_set import CaptionSet


def leave_one_out(captions: CaptionSet) -> list[CaptionSet]:
    """Return one caption set per round, as many as the image with the most references has: the hypothesis is the
    reference left out in that round.

    Images with one reference are left out. Those with fewer references than others start again with their first, so
    that every round has the same images. The human score is the mean of the rounds' scores.

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
