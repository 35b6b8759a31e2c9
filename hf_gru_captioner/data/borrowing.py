"""Borrows captions written for other images, for images with labels but no captions.

An image of a horse gets captions of other images of a horse: labels ground them. Candidates are the captions of images
with the same or the most similar labels; candidates that name a label which the image doesn't have are dropped. A
captioner ranks them by their likelihood given the image; without one, they are sampled from the most typical ones. The
idea of training on captions that were not written for the image, grounded by labels, is from Anderson et al. 2018
(https://arxiv.org/abs/1806.06004); here they are complete human captions instead of a model's.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from huggingface_hub import DatasetCardData
from tqdm import tqdm

from ..errors import UsageError
from ..files import atomic_folder, write_atomically
from ..label_names import LabelNames, normalized, words_of
from .columns import KNOWN_LAYOUTS, caption_columns, captions_of
from .origins import Origin
from .sources import ID_COLUMNS, IMAGE_COLUMNS, load_rows, read_image

LABEL_COLUMNS = ("labels", "label")
MAX_COUNT = 3  # of one label; higher counts are treated as three
# Ties in Jaccard similarity are broken by counts and the first label, then at random. These terms are smaller than any
# difference in similarity for up to 50 labels.
TIE = 1e-4
CHANCE = 1e-8
KEPT_SHARE = 6  # without a captioner, captions are sampled from the most typical 1 in 6 candidates
WINDOW = 512  # number of most similar images searched first; quadrupled until there are enough candidates
IMAGES_AT_ONCE = 64  # batch size for similarities
RANKED_AT_ONCE = 8  # batch size for ranking; with 30 candidates each, the logits take 100 MB
BYTES_PER_FILE = 500_000_000  # of images in a parquet file
ROWS_AT_ONCE = 256  # rows per write
NUM_EXAMPLES = 10
OUTPUT = Features(
    {"image": Image(), "captions": List(Value("string")), "labels": List(Value("string")), "image_id": Value("string")}
)

# (encoded images, candidates of each) -> scores of the candidates, higher is better
Scorer = Callable[[Sequence[bytes], Sequence[Sequence[str]]], Sequence[Sequence[float]]]


@dataclass(frozen=True)
class BorrowingOptions:
    """How captions are chosen.

    Raises:
        UsageError: A number is out of range.
    """

    per_image: int = 3
    """Maximum number of captions per image."""
    candidates: int = 30
    """Number of candidates that they are chosen from."""
    min_words: int = 6
    """Minimum length of a borrowed caption."""
    max_words: int = 14
    """Maximum length of a borrowed caption."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_image <= self.candidates:
            raise UsageError(
                f"candidates must be at least per_image, and this at least 1, found {self.candidates} and "
                f"{self.per_image}."
            )
        if not 1 <= self.min_words <= self.max_words:
            raise UsageError(
                f"max_words must be at least min_words, and this at least 1, found {self.max_words} and "
                f"{self.min_words}."
            )
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, found {self.seed}.")


@dataclass
class BorrowingReport:
    """Summary of a run.

    Args:
        num_images: Images in the source.
        num_captioned: Images in the output, which have at least one caption.
        num_few: Number of these with fewer candidates than requested.
        num_without_labels, num_without_candidates, num_unreadable: Images that are skipped.
        num_captions: Captions in the output.
        unnamed: Labels of images without candidates, with the number of these images.
        examples: Name, labels and captions of random images.
    """

    num_images: int = 0
    num_captioned: int = 0
    num_few: int = 0
    num_without_labels: int = 0
    num_without_candidates: int = 0
    num_unreadable: int = 0
    num_captions: int = 0
    unnamed: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, list[str], list[str]]] = field(default_factory=list)


@dataclass(frozen=True)
class Donor:
    """Captions that may be borrowed, with the labels of their image; the image itself is not needed."""

    captions: Sequence[str]
    labels: Sequence[str]  # one for each object, the largest first


class CaptionPool:
    """Finds captions for labels.

    Args:
        donors: Captions and labels of other images.
        names: Finds labels in captions.
        options: How captions are chosen.
    """

    # Legend: D donors, C captions of donors, L labels, B images

    def __init__(self, donors: Sequence[Donor], names: LabelNames, options: BorrowingOptions):
        self.names = names
        self.options = options
        self.captions: list[str] = []
        keys: dict[str, int] = {}
        key_of: list[int] = []
        said_of: list[dict[int, Any]] = []
        labels, num_captions = [], []
        for donor in donors:
            before = len(self.captions)
            for caption in donor.captions:
                words = words_of(caption)
                if not options.min_words <= len(words) <= options.max_words:
                    continue
                said = names.said(caption)
                if said:
                    self.captions.append(caption)
                    key_of.append(keys.setdefault(" ".join(words), len(keys)))
                    said_of.append(said)
            if len(self.captions) > before:
                labels.append(donor.labels)
                num_captions.append(len(self.captions) - before)
        self._keys = np.array(key_of, dtype=np.int64)  # (C,), equal for captions with the same words
        self._named = np.zeros((len(self.captions), len(names.labels)), dtype=bool)  # (C, L)
        self._range = np.zeros((len(self.captions), 2))  # (C, 2), range of the count, if a caption names one label only
        for row, said in enumerate(said_of):
            self._named[row, list(said)] = True
            if len(said) == 1:
                self._range[row] = next(iter(said.values()))
        self._num_captions = np.array(num_captions, dtype=np.int64)  # (D,)
        self._starts = np.cumsum(self._num_captions) - self._num_captions  # (D,)
        counts, self._first = self._count(labels)
        self._sizes, self._totals = (counts > 0).sum(1), counts.sum(1)  # (D,)
        self._thresholds = _thresholds(counts)  # (D, 3 L)

    def candidates(
        self, labels: Sequence[Sequence[str]], random: np.random.Generator
    ) -> Iterator[tuple[list[str], list[str]]]:
        """For each image with these labels, the captions that it may borrow, from the most similar images first.

        Yields:
            The candidates, at most `options.candidates`, and the image's labels.
        """
        for start in range(0, len(labels), IMAGES_AT_ONCE):
            batch = labels[start : start + IMAGES_AT_ONCE]
            counts, first = self._count(batch)  # (B, L), (B,)
            similarities = self._similarities(counts, first, random)  # (B, D)
            for row, own in enumerate(batch):
                exact = Counter(self.names.index[normalized(label)] for label in own)
                borrowed = self._borrow(similarities[row], exact) if exact else []
                yield [self.captions[each] for each in borrowed], [self.names.labels[each] for each in exact]

    def _count(self, labels: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Count of each label, capped at three, and the first label, -1 if there is none: (B, L), (B,)."""
        counts = np.zeros((len(labels), len(self.names.labels)), dtype=np.int8)
        first = np.full(len(labels), -1)
        for row, own in enumerate(labels):
            indices = [self.names.index[normalized(label)] for label in own]
            for label, number in Counter(indices).items():
                counts[row, label] = min(number, MAX_COUNT)
            first[row] = indices[0] if indices else -1
        return counts, first

    def _similarities(self, counts: np.ndarray, first: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Similarities of images to donors, (B, D); -1 if they share no label."""
        num_labels = counts.shape[1]
        thresholds = _thresholds(counts)  # (B, 3 L)
        both = thresholds[:, :num_labels] @ self._thresholds[:, :num_labels].T  # (B, D)
        common = thresholds @ self._thresholds.T  # (B, D), the sum of minimum counts
        with np.errstate(invalid="ignore"):  # 0 / 0 for an image without labels, which shares none
            jaccard = both.astype(np.float64) / ((counts > 0).sum(1)[:, None] + self._sizes - both)
            multiset_jaccard = common / (counts.sum(1)[:, None] + self._totals - common)
        jaccard += TIE * (multiset_jaccard + (first[:, None] == self._first))
        jaccard += CHANCE * random.random(jaccard.shape)
        jaccard[both == 0] = -1
        return jaccard

    def _borrow(self, similarity: np.ndarray, exact: Mapping[int, int]) -> list[int]:
        """Indices of captions for an image with these label counts."""
        num_similar = int((similarity >= 0).sum())
        window = WINDOW
        while True:
            window = min(window, num_similar)
            nearest = np.argpartition(-similarity, window - 1)[:window] if window else np.zeros(0, dtype=np.int64)
            nearest = nearest[np.argsort(-similarity[nearest])]
            captions = self._fitting(self._captions_of(nearest), exact)
            _, firsts = np.unique(self._keys[captions], return_index=True)
            captions = captions[np.sort(firsts)][: self.options.candidates]
            if len(captions) == self.options.candidates or window == num_similar:
                indices: list[int] = captions.tolist()
                return indices
            window *= 4

    def _captions_of(self, donors: np.ndarray) -> np.ndarray:
        """Indices of all captions of these donors, in order."""
        numbers = self._num_captions[donors]
        before = np.cumsum(numbers) - numbers
        return np.repeat(self._starts[donors] - before, numbers) + np.arange(numbers.sum())

    def _fitting(self, captions: np.ndarray, exact: Mapping[int, int]) -> np.ndarray:
        """The captions that name no other label and, for a single label, no other count."""
        absent = np.ones(len(self.names.labels), dtype=bool)
        absent[list(exact)] = False
        captions = captions[~self._named[captions][:, absent].any(1)]
        if len(exact) == 1:
            (number,) = exact.values()
            minimum, maximum = self._range[captions].T
            captions = captions[(minimum <= number) & (number <= maximum)]
        return captions


def _thresholds(counts: np.ndarray) -> np.ndarray:
    """Whether the count of each label is at least 1, 2 and 3, (B, 3 L): the dot product of two such rows is the sum of
    minimum counts."""
    return np.concatenate([counts >= number for number in range(1, MAX_COUNT + 1)], axis=1).astype(np.float32)


def typicality(captions: Sequence[str]) -> list[float]:
    """How typical each caption is of the group: the average number of captions that contain each of its bigrams."""
    bigrams = []
    for caption in captions:
        words = ["<s>", *words_of(caption), "</s>"]
        bigrams.append(list(itertools.pairwise(words)))
    numbers = Counter(bigram for caption_bigrams in bigrams for bigram in set(caption_bigrams))
    return [sum(numbers[bigram] for bigram in each) / len(each) for each in bigrams]


def choose(
    candidates: Sequence[str], scores: Sequence[float] | None, per_image: int, random: np.random.Generator
) -> list[str]:
    """The captions with the highest scores; without scores, a random sample of the most typical ones."""
    typical = typicality(candidates)
    if scores is None:
        order = sorted(range(len(candidates)), key=lambda each: -typical[each])
        kept = order[: max(per_image, len(candidates) // KEPT_SHARE)]
        drawn = random.permutation(len(kept))[:per_image]
        return [candidates[kept[each]] for each in drawn]
    order = sorted(range(len(candidates)), key=lambda each: (-scores[each], -typical[each]))
    return [candidates[each] for each in order[:per_image]]


def borrow_captions(
    images: str | Path,
    captions: Sequence[str | Path],
    output: str | Path,
    *,
    options: BorrowingOptions | None = None,
    synonyms: Mapping[str | None, Sequence[str]] | None = None,
    scorer: Scorer | None = None,
    scorer_name: str | None = None,
    allow_urls: bool = False,
) -> BorrowingReport:
    """Writes a dataset of labelled images with captions borrowed from others. Runs on one process.

    Args:
        images: Source of images with a column `labels`, one label per object, largest first; as in [`load_rows`].
            Captions in it are ignored.
        captions: Sources of captions with a column `labels`; images are not needed.
        output: Folder of the dataset, which must be empty or not exist; parquet files with `image`, `captions`,
            `labels` and `image_id`, and a dataset card that names the sources.
        options: How captions are chosen.
        synonyms: Words that name a label, by label, as from [`read_synonyms`].
        scorer: Scores candidates given images, such as [`Captioner.mean_log_probabilities`].
        scorer_name: Its name, for the dataset card.
        allow_urls: As in [`load_captions`].

    Raises:
        FileNotFoundError: No such source.
        UsageError: A source lacks labels or captions, the output exists, or no image gets captions.
        ValueError: A damaged source.
    """
    options = options or BorrowingOptions()
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists: remove it, or name another folder.")
    labelled = _LabelledImages.load(images, allow_urls)
    donors = [donor for source in captions for donor in load_donors(source)]
    labels = {label for own in (*labelled.labels, *(donor.labels for donor in donors)) for label in own}
    pool = CaptionPool(donors, LabelNames(labels, synonyms), options)
    random = np.random.default_rng(options.seed)
    report = BorrowingReport(num_images=len(labelled.labels))
    rows = _borrowed_rows(labelled, pool, scorer, random, report)
    sources = {
        "images": _public_name(images),
        "captions": [_public_name(each) for each in captions],
        "ranked_by": scorer_name and _public_name(scorer_name),
        "options": asdict(options),
    }
    with atomic_folder(output) as folder:
        _write_parquet(rows, folder / "data", sources)
        if not report.num_captioned:
            raise UsageError(f"no image of {images} gets a caption{_advice(report)}")
        write_atomically(folder / "README.md", _card(sources, report))
    drawn = random.permutation(len(report.examples))[:NUM_EXAMPLES]
    report.examples = [report.examples[each] for each in drawn]
    return report


def load_donors(source: str | Path) -> list[Donor]:
    """The rows with captions and labels in a source's train split.

    Raises:
        FileNotFoundError: No such source.
        UsageError: It has no captions, or no labels.
        ValueError: A damaged source.
    """
    rows, _ = load_rows(source)
    columns = caption_columns(rows.column_names)
    if not columns:
        raise UsageError(
            f"{source} has no captions in a known layout. Columns found: {', '.join(rows.column_names)}. Known: "
            f"{KNOWN_LAYOUTS}."
        )
    labels = _labels_of(rows, source)
    cells = zip(*(rows.select_columns(column)[column][:] for column in columns), strict=True)
    donors = [Donor(captions_of(row), own) for row, own in zip(cells, labels, strict=True)]
    donors = [donor for donor in donors if donor.captions and donor.labels]
    if not donors:
        raise UsageError(f"{source} has no row with captions and labels.")
    return donors


@dataclass(frozen=True)
class _LabelledImages:
    """A source's images with their labels."""

    rows: Dataset  # with the undecoded image only
    labels: list[list[str]]
    image_ids: list[Any] | None  # with null for an image without a name
    origin: Origin

    @classmethod
    def load(cls, source: str | Path, allow_urls: bool) -> "_LabelledImages":
        rows, origin = load_rows(source, allow_urls=allow_urls)
        column = next((each for each in IMAGE_COLUMNS if isinstance(rows.features.get(each), Image)), None)
        if column is None:
            shown = ", ".join(rows.column_names)
            raise UsageError(
                f"{source} has no column of images. Columns found: {shown}. It must be a Hub id, a folder or a parquet "
                "file with images in it."
            )
        labels = _labels_of(rows, source)
        named = next((each for each in ID_COLUMNS if isinstance(rows.features.get(each), Value)), None)
        image_ids = rows.select_columns(named)[named][:] if named else None
        images = rows.select_columns(column).cast_column(column, Image(decode=False))
        return cls(images.rename_column(column, "image") if column != "image" else images, labels, image_ids, origin)

    def read(self, index: int) -> tuple[bytes, str | None, str]:
        """The encoded image, the reason if it can't be decoded, and its name."""
        image = self.rows[index]["image"] or {}
        path = image.get("path")
        encoded, problem = read_image(path, image.get("bytes"), self.origin)
        image_id = self.image_ids[index] if self.image_ids else None
        return encoded, problem, Path(path or str(index)).name if image_id is None else str(image_id)


def _labels_of(rows: Dataset, source: str | Path) -> list[list[str]]:
    """The labels of each row, from a column of strings or class labels, or of lists of them."""
    column = next((each for each in LABEL_COLUMNS if each in rows.column_names), None)
    if column is None:
        raise UsageError(
            f"{source} has no labels: add a column 'labels', a list with one label for each object, the largest first. "
            f"Columns found: {', '.join(rows.column_names)}."
        )
    feature = rows.features[column]
    feature = getattr(feature, "feature", feature)
    if not isinstance(feature, ClassLabel) and not (isinstance(feature, Value) and "string" in feature.dtype):
        raise UsageError(f"{source} has no labels in its column {column!r}: a list of texts is expected.")
    labels = []
    for cell in rows.select_columns(column)[column][:]:
        own = [] if cell is None else cell if isinstance(cell, list) else [cell]
        texts = [feature.int2str(each) if isinstance(each, int) else each for each in own if each not in (None, -1)]
        labels.append([label for label in texts if normalized(label)])
    return labels


def _borrowed_rows(
    labelled: _LabelledImages,
    pool: CaptionPool,
    scorer: Scorer | None,
    random: np.random.Generator,
    report: BorrowingReport,
) -> Iterator[dict[str, Any]]:
    """Rows of the output; updates the report's counts."""
    pending: list[tuple[dict[str, Any], list[str]]] = []
    found = tqdm(pool.candidates(labelled.labels, random), "borrowing", len(labelled.labels), unit="image")
    for index, (candidates, names) in enumerate(found):
        if not candidates:
            report.num_without_labels += not names
            report.num_without_candidates += bool(names)
            report.unnamed.update(names)
            continue
        encoded, problem, name = labelled.read(index)
        if problem:
            report.num_unreadable += 1
            continue
        report.num_few += len(candidates) < pool.options.candidates
        row = {"image": {"bytes": encoded, "path": None}, "labels": labelled.labels[index], "image_id": name}
        pending.append((row, candidates))
        if len(pending) == RANKED_AT_ONCE:
            yield from _chosen(pending, scorer, pool.options.per_image, random, report)
            pending = []
    yield from _chosen(pending, scorer, pool.options.per_image, random, report)


def _chosen(
    pending: Sequence[tuple[dict[str, Any], list[str]]],
    scorer: Scorer | None,
    per_image: int,
    random: np.random.Generator,
    report: BorrowingReport,
) -> Iterator[dict[str, Any]]:
    """These rows with captions chosen from their candidates."""
    if not pending:
        return
    scores: Sequence[Sequence[float] | None] = [None] * len(pending)
    if scorer is not None:
        scores = scorer([row["image"]["bytes"] for row, _ in pending], [candidates for _, candidates in pending])
    for (row, candidates), own in zip(pending, scores, strict=True):
        captions = choose(candidates, own, per_image, random)
        report.num_captioned += 1
        report.num_captions += len(captions)
        report.examples.append((row["image_id"], row["labels"], captions))
        yield row | {"captions": captions}


def _write_parquet(rows: Iterator[dict[str, Any]], folder: Path, sources: Mapping[str, Any]) -> None:
    """Writes rows to files of limited size, with the sources in their metadata."""
    folder.mkdir()
    schema = OUTPUT.arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), b"borrowed_from": json.dumps(sources).encode()})
    number = num_bytes = 0
    writer, chunk = None, []
    try:
        for row in rows:
            chunk.append(row)
            num_bytes += len(row["image"]["bytes"])
            if len(chunk) == ROWS_AT_ONCE:
                writer = writer or pq.ParquetWriter(folder / f"train-{number:05}.parquet", schema)
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
            if num_bytes >= BYTES_PER_FILE and writer:
                writer.close()
                writer, number, num_bytes = None, number + 1, 0
        if chunk:
            writer = writer or pq.ParquetWriter(folder / f"train-{number:05}.parquet", schema)
            writer.write_table(pa.Table.from_pylist(chunk, schema))
    finally:
        if writer:
            writer.close()


def _public_name(source: str | Path) -> str:
    """A Hub id, or the name of a folder or file without its path on this machine."""
    path = Path(source).expanduser()
    return path.absolute().name if path.exists() else str(source)


def _card(sources: Mapping[str, Any], report: BorrowingReport) -> str:
    """The dataset card."""
    options = sources["options"]
    ranking = (
        f"ranked by the captioner {sources['ranked_by']}, by mean log-probability given the image"
        if sources["ranked_by"]
        else "drawn from the most typical ones"
    )
    metadata = DatasetCardData(
        task_categories=["image-to-text"], language=["en"], tags=["image-captioning", "borrowed-captions"]
    )
    return f"""---
{metadata.to_yaml()}
---

# Images with borrowed captions

Nobody wrote these captions for these images: `gru-captioner borrow` chose captions of other images with the same or the
most similar labels. They suit training; scores against them say little.

- Images and labels: {sources["images"]}, {report.num_captioned:,} of {report.num_images:,}.
- Captions: {", ".join(sources["captions"])}; {report.num_captions:,} borrowed, at most {options["per_image"]} an image
  of {options["candidates"]} candidates of {options["min_words"]} to {options["max_words"]} words, {ranking}.
- Seed: {options["seed"]}.

The terms of all these sources hold for this dataset.
"""


def _advice(report: BorrowingReport) -> str:
    """What to do about images without candidates."""
    if report.num_without_candidates:
        labels = ", ".join(label for label, _ in report.unnamed.most_common(5))
        return (
            f": no caption names {labels}; add captions of images with these labels, or words for them by --synonyms."
        )
    return ": none has labels and can be read."
