"""Which labels of an image its caption names, and which it names that are not there: recall by label, and CHAIR.

Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156. As there, a label is in an image if its annotations or one of
its reference captions say so. Names of labels are found by `label_names.LabelNames`.
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
        images: Images that are annotated with it.
        named: How many of these images' captions name it.
        said: Captions that name it, of all images.
        wrong: How many of these are of images that don't have it.
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
        records: One per label that an image has or a caption names, the most frequent first.
        chair_i: CHAIRi, the share of named labels that the image doesn't have; None if no caption names any.
        chair_s: CHAIRs, the share of captions that name at least one of these.
        images: Images with known labels, the only ones counted.
    """

    records: list[LabelRecord]
    chair_i: float | None
    chair_s: float
    images: int

    def table(self, num_labels: int = 10) -> str:
        """Return a table of the most frequent labels, for the terminal."""
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
        labels: The labels of each image, as often as they like; None where they are unknown, which leaves it out.
        references: The reference captions of each image; the labels that they name are there too.
        names: Finds labels in captions; it must know all of `labels`.
    """
    there, named_right, said, wrong = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    hallucinating = images = 0
    for caption, of_image, of_references in zip(captions, labels, references, strict=True):
        if of_image is None:
            continue
        images += 1
        annotated = {normalized(label) for label in of_image}
        named = names.named(caption)
        absent = named - annotated - {label for reference in of_references for label in names.named(reference)}
        there.update(annotated)
        named_right.update(named & annotated)
        said.update(named)
        wrong.update(absent)
        hallucinating += bool(absent)
    order = sorted(there.keys() | said.keys(), key=lambda label: (-there[label], -said[label], label))
    return LabelMentions(
        [LabelRecord(each, there[each], named_right[each], said[each], wrong[each]) for each in order],
        chair_i=wrong.total() / said.total() if said else None,
        chair_s=hallucinating / images if images else 0.0,
        images=images,
    )
