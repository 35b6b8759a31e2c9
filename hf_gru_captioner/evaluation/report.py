"""HTML report: scores, caption lengths and example images in one self-contained file.

Layout and wording are in `report.html.jinja`, which escapes whatever it prints; this module prepares the data.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from ..files import write_atomically
from .metrics import SCORES, few_images_note
from .scoring import CaptionScores, compare

MAX_BINS = 200  # of the histogram of lengths
IMAGE_SIDE = 320  # pixels, longer side
ATTENTION_SIDE = 960  # pixels, longer side; keeps the words above the panels legible


@dataclass(frozen=True)
class _Example:
    """Data for one image; images are data URIs."""

    image_id: str
    image: str
    captions: dict[str, str]  # by system
    cider: dict[str, float]  # by system, times 100
    references: Sequence[str]
    attention: str | None


def write_report(
    path: str | Path,
    systems: Mapping[str, CaptionScores],
    predictions: Mapping[str, Sequence[str]],
    *,
    images: Callable[[int], Image.Image],
    references: Sequence[Sequence[str]],
    image_ids: Sequence[str],
    settings: Mapping[str, object],
    attention: Callable[[int], Image.Image | None] | None = None,
    images_each: int = 12,
    seed: int = 0,
) -> None:
    """Write the report of one system, or of several side by side, atomically. Runs on one process.

    With two or more systems, the others are compared with the first by a paired bootstrap, unless the scores were
    computed without one. The report shows the images with the first system's best and worst CIDEr, and random others,
    without duplicates. Without CIDEr all are random.

    Args:
        path: Path of the HTML file. 36 images with attention make about 3 MB.
        systems: Scores by system name.
        predictions: Raw captions by system name, one per image.
        images: Index of an image -> the image; called only for images that are shown.
        references: One or more raw reference captions per image.
        image_ids: Names of the images.
        settings: Shown as a table: checkpoint, generation settings, versions. Values may be nested mappings.
        attention: Index of an image -> a drawing of the first system's attention, or None.
        images_each: Number of best, of worst and of random images; fewer if there are not enough images.
        seed: Seed for the random images.

    Raises:
        ValueError: The numbers of captions, references, ids and scores differ, or scores cannot be compared.
    """
    _check_sizes(systems, predictions, references, image_ids)
    first, *others = systems
    leader = systems[first]
    comparisons = {name: compare(leader, systems[name]) for name in others} if leader.intervals else {}

    def example(index: int) -> _Example:
        drawing = attention(index) if attention else None
        return _Example(
            image_id=image_ids[index],
            image=_data_uri(images(index), IMAGE_SIDE),
            captions={name: captions[index] for name, captions in predictions.items()},
            cider={
                name: 100 * each.per_image["cider"][index]
                for name, each in systems.items()
                if "cider" in each.per_image
            },
            references=references[index],
            attention=None if drawing is None else _data_uri(drawing, ATTENTION_SIDE),
        )

    chosen = _choose(len(image_ids), leader.per_image.get("cider"), images_each, seed)
    lengths = [leader.captions.length[len(image_ids) :]]  # references
    lengths += [scores.captions.length[: len(image_ids)] for scores in systems.values()]
    html = _template().render(
        systems=systems,
        rows=[score for score in SCORES.values() if any(score.name in each.values for each in systems.values())],
        leader=leader,
        images=len(image_ids),
        few_images_note=few_images_note(len(image_ids)),
        comparisons=comparisons,
        settings=settings,
        histogram=length_histogram(lengths),
        mean_lengths=list(zip(["references", *systems], map(np.mean, lengths), strict=True)),
        sections=[(title, [example(index) for index in indices]) for title, indices in chosen.items()],
    )
    write_atomically(path, html)


def _check_sizes(
    systems: Mapping[str, CaptionScores],
    predictions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    image_ids: Sequence[str],
) -> None:
    counts = {len(image_ids), len(references), *map(len, predictions.values())}
    counts |= {len(scores.captions) for scores in systems.values()}
    if len(counts) != 1 or predictions.keys() != systems.keys():
        raise ValueError(
            f"Found scores of {', '.join(systems)}, captions of {', '.join(predictions)}, and {sorted(counts)} images. "
            "Pass scores and captions of the same systems on the same images."
        )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _choose(images: int, cider: np.ndarray | None, each: int, seed: int) -> dict[str, list[int]]:
    """Return the indices of the images to show under each title, without duplicates."""
    generator = np.random.default_rng(seed)
    if cider is None:
        return {"At random": generator.permutation(images)[:each].tolist()}
    each = min(each, -(-images // 3))
    order = np.argsort(-cider, kind="stable")
    best, others = order[:each], order[each:]
    worst, others = others[::-1][:each], others[:-each]
    return {
        "Best by CIDEr": best.tolist(),
        "Worst by CIDEr": worst.tolist(),
        "At random": generator.permutation(others)[:each].tolist(),
    }


def _data_uri(image: Image.Image, longest_side: int) -> str:
    smaller = image.convert("RGB")
    smaller.thumbnail((longest_side, longest_side))
    jpeg = BytesIO()
    smaller.save(jpeg, "JPEG", quality=70, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(jpeg.getvalue()).decode()}"


@dataclass(frozen=True)
class _Plot:
    """Coordinates of the histogram: `bins` lengths starting at `shortest`, shares from 0 to `ceiling` percent."""

    shortest: int
    bins: int
    ceiling: float
    width: int = 480
    height: int = 250
    left: int = 44  # the plot lies within these margins
    right: int = 10
    top: int = 12
    bottom: int = 44

    @property
    def bin_width(self) -> float:
        return (self.width - self.left - self.right) / self.bins

    @property
    def x(self) -> np.ndarray:
        """The middle of each bin, shape (bins,)."""
        return self.left + self.bin_width * (np.arange(self.bins) + 0.5)

    def y(self, share: float) -> float:
        return self.top + (self.height - self.top - self.bottom) * (1 - share / self.ceiling)


def length_histogram(lengths: Sequence[np.ndarray]) -> Markup:
    """Draw the share of captions of each length, as SVG.

    Args:
        lengths: Words in each caption, shape (captions,) each. The first series is drawn as bars, the others as lines,
            with CSS classes `series-0`, `series-1` ... The last bin collects the longest 0.5 % of all captions, and
            those that would need more than 200 bins.
    """
    together = np.concatenate(lengths)
    shortest, longest = int(together.min()), int(np.quantile(together, 0.995, method="higher"))
    longest = min(longest, shortest + MAX_BINS - 1)
    bins = longest - shortest + 1
    shares = [100 * np.bincount(np.minimum(each, longest) - shortest, minlength=bins) / len(each) for each in lengths]
    peak = max(share.max() for share in shares)
    step = next(step for step in (2, 5, 10, 20) if peak <= 5 * step)  # percent between grid lines
    plot = _Plot(shortest, bins, step * np.ceil(peak / step))
    parts = [*_grid(plot, step), *_lengths_below(plot, longest < together.max()), *_bars(plot, shares[0])]
    for number, line in enumerate(shares[1:], start=1):
        points = " ".join(f"{plot.x[i]:.1f},{plot.y(share):.1f}" for i, share in enumerate(line))
        parts.append(f'<polyline class="series-{number}" points="{points}"/>')
    return Markup(f'<svg viewBox="0 0 {plot.width} {plot.height}" aria-hidden="true">{"".join(parts)}</svg>')


def _grid(plot: _Plot, step: int) -> Iterator[str]:
    for share in np.arange(0, plot.ceiling + 1, step):
        yield f'<path class="grid" d="M{plot.left} {plot.y(share):.1f}H{plot.width - plot.right}"/>'
        yield f'<text x="{plot.left - 6}" y="{plot.y(share) + 5:.1f}" text-anchor="end">{share:.0f}%</text>'


def _lengths_below(plot: _Plot, is_cut: bool) -> Iterator[str]:
    y = plot.height - plot.bottom + 18
    for i in range(plot.bins - 1, -1, -(plot.bins // 14 + 1)):
        more = "+" if i == plot.bins - 1 and is_cut else ""
        yield f'<text x="{plot.x[i]:.1f}" y="{y}" text-anchor="middle">{plot.shortest + i}{more}</text>'
    middle = (plot.left + plot.width - plot.right) / 2
    yield f'<text x="{middle}" y="{plot.height - 4}" text-anchor="middle">words in a caption</text>'


def _bars(plot: _Plot, shares: np.ndarray) -> Iterator[str]:
    for i, share in enumerate(shares):
        corner = f'x="{plot.x[i] - 0.42 * plot.bin_width:.1f}" y="{plot.y(share):.1f}"'
        size = f'width="{0.84 * plot.bin_width:.1f}" height="{plot.y(0) - plot.y(share):.1f}"'
        yield f'<rect class="series-0" {corner} {size}/>'
