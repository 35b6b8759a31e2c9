"""Scores for eyes: figures, caption lengths and photos in one HTML file that needs no network and no file beside it.

Layout and words are in `report.html.jinja`, which escapes whatever it prints; this module prepares what it shows.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..files import write_atomically
from .scoring import TABLE_ROWS, CaptionScores, compare

MAX_BINS = 200  # of the histogram of lengths
PHOTO_SIDE = 320  # pixels, the longer one
SHEET_SIDE = 960  # pixels, the longer one; the words above the panels stay legible


@dataclass(frozen=True)
class _Photo:
    """What the report shows of one photo; pictures as data URIs."""

    image_id: str
    picture: str
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
    photos_each: int = 12,
    seed: int = 0,
) -> None:
    """Write the report of one system, or of several side by side, whole or not at all. Runs on one process.

    With two systems or more, the others are compared with the first by a paired bootstrap, unless the scores were made
    without one. The photos that the first system captions best and worst by CIDEr and others at random are shown; no
    photo twice. Without CIDEr all are at random.

    Args:
        path: Of the HTML file. 36 photos with attention make about 3 MB.
        systems: Scores by name of the system.
        predictions: Captions as written by name of the system, one an image.
        images: Position of an image -> the photo; called only for photos that are shown.
        references: As written, one or more captions an image.
        image_ids: What the photos are called.
        settings: Shown as a table: checkpoint, generation settings, versions. A value may be a mapping itself.
        attention: Position of an image -> where the first system looked, drawn; None where there is nothing to show.
        photos_each: How many of the best, of the worst and at random; fewer where there are not so many photos.
        seed: Of the random photos.

    Raises:
        ValueError: Not as many captions, references or ids as scores, or systems whose scores cannot be compared.
    """
    counts = {len(image_ids), len(references), *map(len, predictions.values())}
    counts |= {len(scores.captions) for scores in systems.values()}
    if len(counts) != 1 or predictions.keys() != systems.keys():
        raise ValueError(
            f"Found scores of {', '.join(systems)}, captions of {', '.join(predictions)}, and {sorted(counts)} images. "
            "Pass scores and captions of the same systems on the same images."
        )
    first, *others = systems
    leader = systems[first]
    comparisons = {name: compare(leader, systems[name]) for name in others} if leader.intervals else {}

    def photo(position: int) -> _Photo:
        sheet = attention(position) if attention else None
        return _Photo(
            image_id=image_ids[position],
            picture=_data_uri(images(position), PHOTO_SIDE),
            captions={name: captions[position] for name, captions in predictions.items()},
            cider={
                name: 100 * each.per_image["cider"][position]
                for name, each in systems.items()
                if "cider" in each.per_image
            },
            references=references[position],
            attention=None if sheet is None else _data_uri(sheet, SHEET_SIDE),
        )

    chosen = _choose(len(image_ids), leader.per_image.get("cider"), photos_each, seed)
    by_people = leader.captions.length[len(image_ids) :]
    lengths = [by_people, *(scores.captions.length[: len(image_ids)] for scores in systems.values())]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.jinja").render(
        systems=systems,
        rows=[
            (figure, title, scale)
            for figure, (title, scale) in TABLE_ROWS.items()
            if any(figure in scores.figures for scores in systems.values())
        ],
        leader=leader,
        comparisons=comparisons,
        settings=settings,
        histogram=length_histogram(lengths),
        mean_lengths=list(zip(["people", *systems], map(np.mean, lengths), strict=True)),
        sections=[(title, [photo(position) for position in positions]) for title, positions in chosen.items()],
    )
    write_atomically(path, html)


def _choose(images: int, cider: np.ndarray | None, each: int, seed: int) -> dict[str, list[int]]:
    """Return the positions of the photos to show under each title, no position twice."""
    generator = np.random.default_rng(seed)
    if cider is None:
        return {"At random": generator.permutation(images)[:each].tolist()}
    each = min(each, -(-images // 3))
    order = np.argsort(-cider, kind="stable")
    best, rest = order[:each], order[each:]
    worst, rest = rest[::-1][:each], rest[:-each]
    return {
        "Best by CIDEr": best.tolist(),
        "Worst by CIDEr": worst.tolist(),
        "At random": generator.permutation(rest)[:each].tolist(),
    }


def _data_uri(image: Image.Image, longest_side: int) -> str:
    smaller = image.convert("RGB")
    smaller.thumbnail((longest_side, longest_side))
    jpeg = BytesIO()
    smaller.save(jpeg, "JPEG", quality=70, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(jpeg.getvalue()).decode()}"


def length_histogram(lengths: Sequence[np.ndarray]) -> Markup:
    """Draw which share of captions has how many words, as SVG.

    Args:
        lengths: Words in each caption, shape (captions,) each. The first are drawn as bars, the others as lines; their
            CSS classes are `series-0`, `series-1` ... The longest 0.5 % of all captions are put into the last bin, and
            those that would need more than 200 bins.
    """
    width, height, left, right, top, bottom = 480, 250, 44, 10, 12, 44  # the plot lies within these margins
    together = np.concatenate(lengths)
    shortest, longest = int(together.min()), int(np.quantile(together, 0.995, method="higher"))
    longest = min(longest, shortest + MAX_BINS - 1)
    bins = longest - shortest + 1
    shares = [100 * np.bincount(np.minimum(each, longest) - shortest, minlength=bins) / len(each) for each in lengths]
    peak = max(share.max() for share in shares)
    step = next(step for step in (2, 5, 10, 20) if peak <= 5 * step)  # percent between two lines of the grid
    ceiling = step * np.ceil(peak / step)
    bin_width = (width - left - right) / bins
    x = left + bin_width * (np.arange(bins) + 0.5)

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share / ceiling)

    parts = []
    for share in np.arange(0, ceiling + 1, step):
        parts.append(f'<path class="grid" d="M{left} {y(share):.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(share) + 5:.1f}" text-anchor="end">{share:.0f}%</text>')
    for i in range(bins - 1, -1, -(bins // 14 + 1)):
        more = "+" if i == bins - 1 and longest < together.max() else ""
        parts.append(
            f'<text x="{x[i]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{shortest + i}{more}</text>'
        )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 4}" text-anchor="middle">words in a caption</text>'
    )
    bars, *lines = shares
    for i, share in enumerate(bars):
        corner = f'x="{x[i] - 0.42 * bin_width:.1f}" y="{y(share):.1f}"'
        size = f'width="{0.84 * bin_width:.1f}" height="{y(0) - y(share):.1f}"'
        parts.append(f'<rect class="series-0" {corner} {size}/>')
    for number, line in enumerate(lines, start=1):
        points = " ".join(f"{x[i]:.1f},{y(share):.1f}" for i, share in enumerate(line))
        parts.append(f'<polyline class="series-{number}" points="{points}"/>')
    return Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>')
