"""Captioned images from many kinds of sources as rows with the same columns, as a data set or as a stream.

`caption_files.py` reads what `datasets` can't; here a source is recognised, its rows are converted and checked. An
image is identified by the digest of its encoded bytes, so that a cache notices another image of the same name.
"""

import glob
import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.data_files import EmptyDatasetError
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DataFilesNotFoundError
from PIL import ExifTags, ImageOps
from PIL import Image as PILImage

from ..errors import brief
from ..model.image_loading_gru_captioner import (
    MAX_PIXELS,
    MAX_PIXELS_IN_PYTHON,
    MAX_PIXELS_OF,
    MAX_SCANS,
    REFUSED_FORMATS,
    count_scans,
    register_readers,
)
from ..untrusted_images import RefusedError
from .caption_files import (
    KNOWN_FILES,
    KNOWN_LAYOUTS,
    SPLIT_NAMES,
    SUFFIXES,
    LocatedImage,
    caption_columns,
    caption_files,
    caption_weights_of,
    captions_of,
    is_list_of_text,
    locate_images,
    read_caption_file,
    split_of,
)
from .origins import Origin, check_card, check_saved, origin_of_folder, origin_of_hub

VALIDATION_SHARE = 0.05  # of the images of a source that has only a train split
IMAGES_PER_SHARD = 256  # in a stream of single files; `seed` shuffles shards
NO_CAPTION = "no caption"
WEIGHTS, LABELS = "caption_weights", "labels"  # columns that rows may have
OPTIONAL = Features({WEIGHTS: List(Value("float64")), LABELS: List(Value("string"))})
ROWS_TO_JUDGE = 100  # of a stream, before `max_skipped` is enforced
NAMED_ROWS = 5  # skipped rows that the warning names
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
ID_COLUMNS = ("image_id", "filename", "file_name", "__key__")
CHECKED = Features(
    {
        "captions": List(Value("string")),
        "image_id": Value("string"),
        "image_digest": Value("string"),
        "key": Value("string"),
        "problem": Value("string"),
    }
)


class NoSplitError(ValueError):
    """A source doesn't have a split; the message says which it has."""


def load_captions(
    source: str | Path,
    split: str = "train",
    *,
    images: str | Path | None = None,
    max_skipped: float = 0.01,
    allow_urls: bool = False,
) -> Dataset:
    """Loads one split of captioned images. The kind of source is recognised by its content.

    Args:
        source: One of

            - a Hub id (`"jxie/flickr8k"`) or a folder that `datasets.load_dataset` reads: parquet files, images with
              `metadata.jsonl` or `metadata.csv`;
            - a folder written by `save_to_disk`;
            - a CSV, TSV, JSON, JSON lines or Parquet file of image paths and captions, with or without a column
              `split`, such as `gru-captioner caption --output` writes;
            - COCO captions, a JSON file or the root folder with `annotations/` in it;
            - Karpathy's JSON, or a folder with it;
            - `Flickr8k.token.txt` or Kaggle's `captions.txt`, or a folder with it, with or without the split lists;
            - webdataset shards: a folder with `*.tar`, one file, or a pattern like `"shards/train-*.tar"`.
        split: Name of the split; `val`, `valid` and `dev` are the same as `validation`, `restval` as `train`. If the
            source has only a train split, or no splits, 5 % of the images (at least one), chosen by a hash of the
            image_id (of the image if it has no name), are the validation split and the others the train split.
        images: Folder of the images of a caption file; by default the usual folders beside the file.
        max_skipped: Fraction of the rows, 0 to 1, that may be skipped: the image can't be read or has no caption.
        allow_urls: Fetch images whose URLs the source gives: from the public web only, 20 MB and 10 seconds each,
            and never with HF_HUB_OFFLINE. Otherwise they count as images that can't be read. So do files outside of a
            folder or data set, unless a table that `source` names refers to them.

    Returns:
        Rows of `image`, decoded on access, `captions`, `image_id` (the name or number in the source, otherwise the row
        number) and `image_digest` (SHA-256 of the encoded image), in the order of the source. If the source has such
        columns, also of `caption_weights`, the weight of each caption in the loss, and of `labels`, strings that say
        what the image shows, or null. A warning counts and names skipped rows.

    Raises:
        FileNotFoundError: No such folder or file, or no image of a caption file exists; names the folders searched.
        NoSplitError: No such split; a kind of ValueError.
        ValueError: An unknown layout (shows what was found), or too many skipped rows.
    """
    found = _find(source, split, images, allow_urls)
    rows = found.load(False)
    layout = _Layout.of(found, rows.features)
    rows = rows.select_columns(layout.columns(rows.column_names))
    decoded = rows.select_columns([layout.image])
    if layout.image != "image":
        decoded = decoded.rename_column(layout.image, "image")
    if not isinstance(decoded.features["image"], Image):
        decoded = decoded.cast_column("image", Image())
    checked = rows.cast_column(layout.image, Image(decode=False)).map(
        _check_row,
        with_indices=True,
        fn_kwargs={"layout": layout._asdict(), "origin": found.origin, "with_image": allow_urls},
        remove_columns=rows.column_names,
        features=Features({**layout.checked, "image": Image()}) if allow_urls else layout.checked,
        desc="checking images",
    )
    if allow_urls:  # the fetched bytes: `datasets` would fetch again
        decoded, checked = checked.select_columns("image"), checked.remove_columns("image")
    kept: Sequence[int] = range(len(rows))
    if found.divided:
        kept = _divide(checked["key"][:], split)
    tally = _Tally(found.name, max_skipped)
    problems, image_ids = checked["problem"][:], checked["image_id"][:]
    kept = [index for index in kept if tally.keeps(image_ids[index], problems[index])]
    tally.close()
    if not kept:
        raise ValueError(f"{found.name} has no images in its split {split!r}.")
    dataset = concatenate_datasets([decoded, checked.remove_columns(["key", "problem"])], axis=1)
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def stream_captions(
    source: str | Path,
    split: str = "train",
    *,
    images: str | Path | None = None,
    max_skipped: float = 0.01,
    allow_urls: bool = False,
    rank: int = 0,
    world_size: int = 1,
    seed: int | None = None,
) -> IterableDataset:
    """Reads one split of captioned images row by row, for sets too large to be copied or checked first.

    Runs on every process, each with its `rank`. `state_dict()` and `load_state_dict()` of the stream save and restore
    its position. Cheapest if `world_size` divides the number of shards: then no process reads another's images.

    Args:
        source, split, images: As for `load_captions`.
        max_skipped: As for `load_captions`, of the rows that this process has seen; enforced from 100 rows on and when
            the stream ends, which is also when the warning is given.
        rank, world_size: Index of this process, and number of processes that share the rows.
        seed: Of a random order of the shards, a new one after each `set_epoch`; rows keep their order within a shard.
            By default the order of the source.

    Returns:
        Rows of `image`, `captions`, `image_id` and the optional columns of `load_captions`, as there, except that the
        image_id of images without a name is the beginning of the image's digest.

    Raises:
        FileNotFoundError, NoSplitError, ValueError: As `load_captions`; those of rows when they are read.
    """
    found = _find(source, split, images, allow_urls)
    rows = found.load(True, world_size)
    features: Mapping[str, Any] = rows.features or next(iter(rows), {})
    layout = _Layout.of(found, features)
    columns = layout.columns(features)
    rows = rows.select_columns(columns)
    if isinstance(features[layout.image], Image):
        rows = rows.cast_column(layout.image, Image(decode=False))
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
    tally = _Tally(found.name, max_skipped, wanted=split if found.divided else None)
    settings = {"layout": layout._asdict(), "origin": found.origin, "with_image": True}
    rows = rows.map(_check_row, fn_kwargs=settings, remove_columns=columns)
    rows = rows.filter(tally).remove_columns(["image_digest", "key", "problem"])
    kept = {name: each for name, each in layout.checked.items() if name not in ("image_digest", "key", "problem")}
    rows = rows.cast(Features({"image": Image(), **kept}))
    return _CheckedStream(split_dataset_by_node(rows, rank, world_size), tally)


def load_rows(source: str | Path, split: str = "train", *, allow_urls: bool = False) -> tuple[Dataset, Origin]:
    """All rows and columns of one split as they are stored, and what their images may be read from.

    For rows that need not be captioned images. Where a source has only a train split, this is all of it.

    Args:
        source: A Hub id, a folder or shards as in [`load_captions`], a parquet file, or a JSON lines file.
        split, allow_urls: As in [`load_captions`].

    Raises:
        FileNotFoundError: No such folder or file.
        ValueError: No such split, or a damaged source.
    """
    path = Path(source).expanduser()
    reader = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json"}.get(path.suffix)
    if reader and path.is_file():
        with _names_source(str(source)):
            return load_dataset(reader, data_files={"train": str(path)}, split="train"), Origin()
    found = _find(source, split, None, allow_urls)
    return found.load(False), found.origin


def decode_images(rows: Dataset, indices: Iterable[int]) -> list[PILImage.Image]:
    """Images of rows of `load_captions`, which has checked them; but files may change during a run.

    Raises:
        ValueError: One can no longer be read. Names it.
    """
    images = []
    for index in indices:
        try:
            images.append(rows[index]["image"])
        except Exception as error:  # as below
            named = "image_id" in rows.column_names
            name = rows.select_columns("image_id")[index]["image_id"] if named else f"number {index}"
            raise ValueError(
                f"image {name} can no longer be read ({type(error).__name__}: {error}): repair it, or remove it from "
                "the source, and run the same command again."
            ) from error
    return images


class _Found(NamedTuple):
    """A recognised source, and one split of it."""

    name: str
    load: Callable[..., Any]  # (streaming, world_size) -> Dataset or IterableDataset of the source's own columns
    origin: Origin
    divided: bool = False  # whether train and validation are still to be split
    root: str | None = None  # the folder that paths of images start with


def _find(source: str | Path, split: str, images: str | Path | None, allow_urls: bool) -> _Found:
    register_readers()  # for `datasets`, which opens images by Pillow
    name = str(source)
    path = Path(name).expanduser()
    looks_like_path = (
        isinstance(source, Path) or name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.suffix in SUFFIXES
    )
    if any(letter in name for letter in "*?[") and not path.exists():
        tars = [Path(each) for each in sorted(glob.glob(str(path)))]
        if not tars:
            raise FileNotFoundError(f"{name} matches no file.")
    elif path.suffix == ".tar" and path.is_file():
        tars = [path]
    else:
        tars = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]) if path.is_dir() else []
    files = [] if tars else caption_files(path)
    if files:
        return _find_listed(name, files, split, images, is_own=path.is_file(), allow_urls=allow_urls)
    if images is not None:
        raise ValueError(f"{name} is not a caption file but contains its images: omit images=.")
    if tars:
        return _find_shards(name, tars, split)
    if not path.is_dir() and (looks_like_path or path.exists()):
        raise FileNotFoundError(f"{name} does not exist: name a caption file, or the folder of a captioned data set.")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _find_saved(name, path, split, allow_urls)
    hub_id_or_folder = str(path) if path.is_dir() else name
    try:
        with _names_source(name):
            check_card(name, path if path.is_dir() else None)
            splits = get_dataset_split_names(hub_id_or_folder)
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} is not a captioned data set: it has nothing that datasets reads, and no caption file "
            f"({KNOWN_FILES})."
        ) from error
    own_split, divided = _choose(name, split, splits)

    def load(streaming: bool, world_size: int = 1):
        with _names_source(name):
            return load_dataset(hub_id_or_folder, split=own_split, streaming=streaming)

    if path.is_dir():
        return _Found(name, load, origin_of_folder(path, allow_urls), divided, str(path.absolute()))
    return _Found(name, load, origin_of_hub(name, allow_urls), divided)


def _find_listed(
    name: str, files: list[Path], split: str, images: str | Path | None, *, is_own: bool, allow_urls: bool
) -> _Found:
    entries = [entry for file in files for entry in read_caption_file(file)]
    splits = {entry.split or "train": None for entry in entries}
    own_split, divided = _choose(name, split, list(splits))
    entries = [entry for entry in entries if (entry.split or "train") == own_split]
    if divided:
        entries = [entries[index] for index in _divide([entry.image_id for entry in entries], split)]
    if not entries:
        raise ValueError(f"{name} has no images in its split {split!r}.")
    folder = Path(images).expanduser().absolute() if images is not None else None
    if folder and not folder.is_dir():
        raise FileNotFoundError(f"images={images} is not a folder.")
    found = tuple(locate_images(entries, files[0].absolute().parent, folder, outside=is_own))

    def load(streaming: bool, world_size: int = 1):
        columns = {"image": Image(), "captions": List(Value("string")), "image_id": Value("string")}
        used = {
            name: each for name, each in OPTIONAL.items() if any(getattr(image, name) is not None for image in found)
        }
        features = Features({**columns, **used})
        if not streaming:  # a tuple: `datasets` splits lists into shards; sizes and times enter its cache's key
            return Dataset.from_generator(
                _rows_of_entries, features, gen_kwargs={"shards": (found,), "columns": tuple(used)}
            )
        number = _number_of_shards(len(found), world_size)
        shards = [found[len(found) * i // number : len(found) * (i + 1) // number] for i in range(number)]
        return IterableDataset.from_generator(
            _rows_of_entries, features, gen_kwargs={"shards": shards, "columns": tuple(used)}
        )

    return _Found(name, load, Origin(None, None, allow_urls))  # locate_images has checked the paths


def _find_shards(name: str, tars: list[Path], split: str) -> _Found:
    """Webdataset shards; their split is the name of the folder, otherwise a word of the file's name."""
    if not all(tar.suffix == ".tar" for tar in tars):
        other = next(tar for tar in tars if tar.suffix != ".tar")
        raise ValueError(f"{name} matches {other}: a pattern may match webdataset shards (.tar) only.")
    files: dict[str, list[str]] = {}
    for tar in tars:
        own = SPLIT_NAMES.get(tar.parent.name) or split_of(tar.stem) or "train"
        files.setdefault(own, []).append(str(tar.absolute()))
    own_split, divided = _choose(name, split, list(files))

    def load(streaming: bool, world_size: int = 1):
        data_files = {own_split: files[own_split]}
        with _names_source(name):
            return load_dataset("webdataset", data_files=data_files, split=own_split, streaming=streaming)

    return _Found(name, load, Origin(), divided)  # images are inside the shards


def _find_saved(name: str, path: Path, split: str, allow_urls: bool) -> _Found:
    with _names_source(name):
        check_saved(name, path)
        saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    own_split, divided = _choose(name, split, list(splits))
    rows = splits[own_split]

    def load(streaming: bool, world_size: int = 1):
        if not streaming:
            return rows
        return rows.to_iterable_dataset(max(1, min(len(rows), _number_of_shards(len(rows), world_size))))

    return _Found(name, load, origin_of_folder(path, allow_urls), divided)


@contextmanager
def _names_source(name: str) -> Iterator[None]:
    """Names the source in errors of `datasets`, which raises any kind of error for a damaged one."""
    try:
        yield
    except (OSError, RefusedError):  # no such file, or no network
        raise
    except Exception as error:
        reason = brief(error.__cause__ or error)
        raise ValueError(f"{name} can't be read, it may be damaged ({type(error).__name__}: {reason}).") from error


def _choose(name: str, split: str, splits: list[str]) -> tuple[str, bool]:
    """The source's own name of the split, and whether it is still to be split into train and validation."""
    canonical = {SPLIT_NAMES.get(own, own): own for own in splits}
    wanted = SPLIT_NAMES.get(split, split)
    if list(canonical) == ["train"] and wanted in ("train", "validation"):
        return canonical["train"], True
    if split in splits:
        return split, False
    if wanted in canonical:
        return canonical[wanted], False
    raise NoSplitError(f"{name} has no split {split!r}, it has {', '.join(splits)}.")


def _divide(keys: Sequence[str], split: str) -> list[int]:
    """Indices of the images of one split, if train and validation are split here."""
    draws = [_draw(key) for key in keys]
    border = max(VALIDATION_SHARE, min(draws, default=0.0))
    wants_validation = SPLIT_NAMES.get(split) == "validation"
    return [index for index, draw in enumerate(draws) if (draw <= border) == wants_validation]


def _draw(key: str) -> float:
    """A pseudorandom number from 0 to 1, determined by the text."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def _number_of_shards(num_images: int, world_size: int) -> int:
    return world_size * max(1, -(-num_images // (IMAGES_PER_SHARD * world_size)))


def _rows_of_entries(shards: Iterable[Iterable[LocatedImage]], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for entries in shards:
        for entry in entries:
            image = {"path": entry.path, "bytes": None}
            row: dict[str, Any] = {"image": image, "captions": list(entry.captions), "image_id": entry.image_id}
            if WEIGHTS in columns:
                row[WEIGHTS] = list(entry.caption_weights or (1.0,) * len(entry.captions))
            if LABELS in columns:
                row[LABELS] = None if entry.labels is None else list(entry.labels)
            yield row


class _Layout(NamedTuple):
    """The columns of a source by their content."""

    image: str
    captions: list[str]
    image_id: str | None
    root: str | None
    weights: str | None = None
    labels: str | None = None

    @classmethod
    def of(cls, found: _Found, features: Mapping[str, Any]) -> "_Layout":
        columns = list(features)
        if isinstance(features.get("json"), Mapping):  # of a webdataset: its fields may have the captions
            columns += [column for column in features["json"] if column not in columns]
        image = next((column for column in IMAGE_COLUMNS if column in features), None)
        captions = caption_columns(columns)
        shown = ", ".join(columns) or "none"
        if image is None:
            raise ValueError(f"{found.name} has no column 'image'. Columns found: {shown}.")
        if not captions:
            raise ValueError(
                f"{found.name} has no captions in a known layout. Columns found: {shown}. "
                f"Known layouts: {KNOWN_LAYOUTS}."
            )
        image_id = next((column for column in ID_COLUMNS if column in columns), None)
        weights = WEIGHTS if WEIGHTS in columns else None
        for column in (*captions, image_id, weights, "json"):
            if column is not None and _is_decoded(features.get(column)):  # it would be opened before any check
                raise ValueError(f"{found.name} has files in its column {column!r}, where text is expected.")
        if not isinstance(features[image], Image | Value | Mapping | str | None):
            raise ValueError(f"{found.name} has no images in its column {image!r}.")
        labels = LABELS if LABELS in columns and _may_be_labels(_feature(features, LABELS)) else None
        return cls(image, captions, image_id, found.root, weights, labels)

    def columns(self, features: Iterable[str]) -> list[str]:
        """The columns to read. Others are not read: they may hold files, which are opened with the row."""
        wanted = {self.image, *self.captions, self.image_id, self.weights, self.labels, "json"}
        return [column for column in features if column in wanted]

    @property
    def checked(self) -> Features:
        """Columns of checked rows."""
        return Features({**CHECKED, **{name: OPTIONAL[name] for name in (self.weights, self.labels) if name}})


def _feature(features: Mapping[str, Any], column: str) -> Any:
    of_json = features.get("json")
    return features[column] if column in features or not isinstance(of_json, Mapping) else of_json.get(column)


def _may_be_labels(feature: Any) -> bool:
    """Whether a column's type, or a value of a stream without types, is a list of text; others have another meaning."""
    of_list = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return feature is None or is_list_of_text(feature) or (isinstance(of_list, Value) and of_list.dtype == "string")


def _is_decoded(feature: Any) -> bool:
    """Whether `datasets` opens files for a column's values, or for parts of them."""
    if isinstance(feature, Mapping):
        return any(map(_is_decoded, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(_is_decoded, feature))
    return hasattr(feature, "decode_example") or (hasattr(feature, "feature") and _is_decoded(feature.feature))


def _check_row(
    row: Mapping[str, Any],
    index: int | None = None,
    *,
    layout: Mapping[str, Any],
    origin: Origin,
    with_image: bool = False,
) -> dict[str, Any]:
    """Converts a row with an undecoded image to the columns `CHECKED`; `problem` says why it can't be used, if so."""
    if isinstance(row.get("json"), Mapping):
        row = {**row["json"], **row}
    image = row[layout["image"]] or {}
    if isinstance(image, str):  # in a stream without column types
        image = {"path": image}
    path = image.get("path")
    encoded, problem = read_image(path, image.get("bytes"), origin)
    digest = hashlib.sha256(encoded).hexdigest()
    captions: list[str] = []
    weights: list[float] = []
    try:
        cells = [row[column] for column in layout["captions"]]
        captions = captions_of(cells)
        if layout["weights"]:
            weights = caption_weights_of(row.get(WEIGHTS), cells)
    except ValueError as error:
        captions, problem = [], problem or str(error)
    if layout["image_id"]:
        name = str(row[layout["image_id"]])
    elif layout["root"] and path and Path(path).is_relative_to(layout["root"]):
        name = Path(path).relative_to(layout["root"]).as_posix()
    else:
        name = None
    key = name or digest[:16]  # splits images: never the row number, which a stream doesn't know
    checked: dict[str, Any] = {
        "captions": captions,
        "image_id": name or (key if index is None else str(index)),
        "image_digest": digest,
        "key": key,
        "problem": problem or (None if captions else NO_CAPTION),
    }
    if layout["weights"]:
        checked[WEIGHTS] = weights
    if layout["labels"]:
        labels = row.get(LABELS)
        checked[LABELS] = list(labels) if is_list_of_text(labels) else None
    return checked | {"image": {"bytes": encoded, "path": None}} if with_image else checked


def read_image(path: str | None, encoded: bytes | None, origin: Origin) -> tuple[bytes, str | None]:
    """The encoded image, and why it can't be decoded, if so.

    Args:
        path, encoded: Fields of an undecoded image of `datasets`.
        origin: What `path` may be read from.
    """
    if encoded is None:
        encoded, problem = origin.read(path) if path else (b"", "no image")
        if problem:
            return b"", problem
    try:
        with PILImage.open(io.BytesIO(encoded)) as decoded:
            if decoded.info.get("progressive") and count_scans(decoded) > MAX_SCANS:
                return encoded, f"more than {MAX_SCANS} scans"
            return encoded, _decode(decoded)
    except PILImage.UnidentifiedImageError:
        return encoded, "not an image that Pillow knows"
    except Exception as error:  # Pillow raises nearly anything for a broken file
        return encoded, f"{type(error).__name__}: {error}"


def _decode(image: PILImage.Image) -> str | None:
    """Decodes an opened image as `datasets` and load_image will; returns why they can't, if so."""
    if image.format in REFUSED_FORMATS:
        return f"{image.format}, a format that is refused"
    stored, max_pixels = image.size, MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if any(tile.codec_name in PILImage.DECODERS for tile in getattr(image, "tile", ())):  # decoded in Python
        max_pixels = MAX_PIXELS_IN_PYTHON
    if math.prod(stored) <= max_pixels:
        image.draft(None, (1, 1))  # decodes a JPEG at reduced size, which is fast, but to its last byte
        image.load()
        stored = max(stored, image.size, key=math.prod)  # an icon may contain an image of another size than it states
    if math.prod(stored) > max_pixels:
        return f"{stored[0]} x {stored[1]} pixels, more than {max_pixels:,}"
    if image.getexif().get(ExifTags.Base.Orientation) is not None:
        ImageOps.exif_transpose(image)
    if image.mode == "F" and not ((levels := np.asarray(image)).min() >= 0 and levels.max() <= 1):  # also refuses nan
        return f"a float image with values from {levels.min():g} to {levels.max():g}, not in [0, 1]"
    return None


class _Tally:
    """Counts rows and decides which to keep: those without a problem and, if `wanted` is given, of that split.

    Args:
        name: Name of the source.
        max_skipped: Fraction of rows that may have a problem.
        wanted: Split to keep, if train and validation are split here.
    """

    def __init__(self, name: str, max_skipped: float, wanted: str | None = None):
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"max_skipped must be from 0 to 1, found {max_skipped}.")
        self.name = name
        self.max_skipped = max_skipped
        self.wanted = wanted and SPLIT_NAMES[wanted]
        self.num_rows = self.num_without_caption = self.num_unreadable = 0
        self.named: list[str] = []

    def restart(self) -> None:
        """Sets all counts to zero."""
        self.num_rows = self.num_without_caption = self.num_unreadable = 0
        self.named = []

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether to keep this row of a stream."""
        if self.wanted and (_draw(row["key"]) <= VALIDATION_SHARE) != (self.wanted == "validation"):
            return False
        keeps = self.keeps(row["image_id"], row["problem"])
        if self.num_rows >= ROWS_TO_JUDGE:
            self._judge()
        return keeps

    def keeps(self, image_id: str, problem: str | None) -> bool:
        self.num_rows += 1
        if problem is None:
            return True
        if problem == NO_CAPTION:
            self.num_without_caption += 1
        else:
            self.num_unreadable += 1
        if len(self.named) < NAMED_ROWS:
            self.named.append(f"{image_id} ({problem})")
        return False

    def close(self) -> None:
        """Enforces `max_skipped`, and warns the caller's caller of skipped rows."""
        self._judge()
        if self.named:
            warnings.warn(f"{self} and are skipped: {self._names()}.", stacklevel=3)

    def _judge(self) -> None:
        num_skipped = self.num_without_caption + self.num_unreadable
        if num_skipped > self.max_skipped * self.num_rows:
            raise ValueError(
                f"{self}: {self._names()}. This exceeds max_skipped={self.max_skipped:g}: repair the "
                f"source, or raise max_skipped to {num_skipped / self.num_rows:.2g} or more to skip them."
            )

    def _names(self) -> str:
        others = self.num_without_caption + self.num_unreadable - len(self.named)
        return ", ".join(self.named) + (f" and {others} more" if others else "")

    def __str__(self) -> str:
        counts = ((self.num_without_caption, "have no caption"), (self.num_unreadable, "can't be read"))
        problems = [f"{count} of {self.num_rows} images of {self.name} {problem}" for count, problem in counts if count]
        return " and ".join(problems)


class _CheckedStream(IterableDataset):
    """A stream that enforces `max_skipped` and warns of skipped rows at its end."""

    def __init__(self, rows: IterableDataset, tally: _Tally):
        self.__dict__.update(rows.__dict__)
        self._tally = tally

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._tally.restart()
        yield from super().__iter__()
        self._tally.close()
