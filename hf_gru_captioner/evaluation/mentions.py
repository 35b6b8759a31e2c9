"""Which of an image's labels its caption names, and which absent ones: recall by label, and CHAIR.

Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156. As there, a label is present in an image if its annotations or
a reference caption say so. `label_names.LabelNames` finds labels in captions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..label_names import LabelNames, normalized


@dataclass(frozen=True)
class LabelRecord:
    """How the captions name one label.

    Attributes:
        label: The label.
        images: Number of images that are annotated with it.
        named: Number of these images whose caption names it.
        said: Number of all captions that name it.
        wrong: Number of these whose image doesn't have it.
    """

    label: str
    images: int
    named: int
    said: int
    wrong: int


@dataclass(frozen=True)
class LabelMentions:
    """The labels named by captions.

    Attributes:
        records: One per label that an image has or a caption names, most frequent first.
        chair_i: CHAIRi, the share of named labels that are absent from the image; None if no caption names any.
        chair_s: CHAIRs, the share of captions that name at least one absent label.
        images: Number of images with known labels; only these are counted.
    """

    records: list[LabelRecord]
    chair_i: float | None
    chair_s: float
    images: int

    def table(self, num_labels: int = 10) -> str:
        """Return a table of the most frequent labels for the terminal."""
        lines = [f"{'':<31}{'images':>8}{'named':>8}{'said':>8}{'wrong':>8}"]
        lines += [
            f"{record.label:<31}{record.images:>8}{record.named:>8}{record.said:>8}{record.wrong:>8}"
            for record in self.records[:num_labels]
        ]
        named = "none named" if self.chair_i is None else f"{100 * self.chair_i:.1f} % of the labels that captions name"
        return "\n".join(
            [*lines, f"Not there (CHAIR): {named}, in {100 * self.chair_s:.1f} % of {self.images:,} captions."]
        )


def label_mentions(
    captions: Sequence[str],
    labels: Sequence[Sequence[str] | None],
    references: Sequence[Sequence[str]],
    names: LabelNames,
) -> LabelMentions:
    """Compare the labels that captions name with those of their images.

    Args:
        captions: One per image.
        labels: The labels of each image, repeats allowed; None if unknown: the image is skipped.
        references: The reference captions of each image; labels that they name count as present.
        names: Finds labels in captions; it must know all of `labels`.
    """
    present, correct, said, wrong = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    hallucinating = images = 0
    for caption, image_labels, image_references in zip(captions, labels, references, strict=True):
        if image_labels is None:
            continue
        images += 1
        annotated = {normalized(label) for label in image_labels}
        named = names.named(caption)
        absent = named - annotated - {label for reference in image_references for label in names.named(reference)}
        present.update(annotated)
        correct.update(named & annotated)
        said.update(named)
        wrong.update(absent)
        hallucinating += bool(absent)
    order = sorted(present.keys() | said.keys(), key=lambda label: (-present[label], -said[label], label))
    return LabelMentions(
        [LabelRecord(each, present[each], correct[each], said[each], wrong[each]) for each in order],
        chair_i=wrong.total() / said.total() if said else None,
        chair_s=hallucinating / images if images else 0.0,
        images=images,
    )
