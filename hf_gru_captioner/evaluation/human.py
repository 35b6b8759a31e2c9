"""People as a system: each reference scored against the other references of its image ("leave one out").

A figure alone does not say how good it is; what people score against each other does. It is no ceiling: a captioner can
score above people by writing what is common to all of them. People are held against one reference fewer than a system
is, which lowers BLEU, METEOR and ROUGE-L a little.
"""

from __future__ import annotations

from .caption_set import CaptionSet


def leave_one_out(captions: CaptionSet) -> list[CaptionSet]:
    """Return one caption set a round, as many as the most references of an image: the hypothesis is the reference left
    out in that round.

    Images with one reference take no part. Those with fewer references than others start over with their first, so that
    every round has the same images. The human figure is the mean of the rounds' figures.

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
