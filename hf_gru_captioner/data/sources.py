"""Loads captioned images from many kinds of sources as rows with the same columns, as a dataset or a stream.

`recognition.py` recognizes a source and `caption_files.py` reads what `datasets` can't; here the rows are converted and
checked. An image is identified by the digest of its encoded bytes, so that a cache notices a changed image of the same
name.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
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
from PIL import Image as PILImage
from pyarrow import compute

from ..errors import UsageError, brief, listed
from ..model.image_loading_gru_captioner import register_readers
from ..untrusted_images import RefusedError
from .caption_files import KNOWN_FILES
from .checks import (
    CHECKED,
    INTERNAL,
    LABELS,
    NAMED_ROWS,
    PROBLEM,
    WEIGHTS,
    WHERE,
    CheckedStream,
    Tally,
    check_row,
    copies,
    full_path,
    merge_rows,
    read_image,
)
from .columns import (
    IMAGE_NAMES,
    IMAGE_SUFFIXES,
    KNOWN_LAYOUTS,
    find_columns,
    is_list_of_text,
    plain_name,
    shown_names,
)
from .folders import Archive
from .origins import Origin, check_card, check_saved, origin_of_folder, origin_of_hub
from .reading import ReadingOptions
from .recognition import (
    DatasetsSource,
    ListedSource,
    LocatedImage,
    NoSplitError,
    ParquetFile,
    SavedSource,
    Shards,
    choose_split,
    divide,
    located_split,
    nothing_in,
    recognize,
    split_of,
)
from .shards import optional_columns, shard_rows

__all__ = [
    "LABELS",
    "WEIGHTS",
    "NoSplitError",
    "decode_images",
    "load_captions",
    "load_rows",
    "read_image",
    "stream_captions",
]

_logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 256  # in a stream of image files; `seed` shuffles shards
OPTIONAL = Features({WEIGHTS: List(Value("float64")), LABELS: List(Value("string"))})
IMAGE_COLUMNS = ("image", *(suffix[1:] for suffix in IMAGE_SUFFIXES))  # columns with images, not paths
ID_COLUMNS = ("image_id", "filename", "file_name", "__key__")
OURS = Features(  # columns of rows that we read ourselves
    {
        "image": Image(),
        "captions": List(Value("string")),
        "image_id": Value("string"),
        WHERE: Value("string"),
        PROBLEM: Value("string"),
    }
)


def load_captions(
    source: str | Path,
    split: str = "train",
    *,
    images: str | Path | None = None,
    max_skipped: float = 0.01,
    allow_urls: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    spelling: str = "{}",
) -> Dataset:
    """Loads one split of captioned images. The kind of source is recognized by its content.

    Args:
        source: One of

            - a table of images and captions (CSV, TSV, JSON, JSON lines, Excel, Parquet), with or without a column
              `split`; a folder with one; a ZIP archive of such a folder;
            - a folder of images with text files of the same names;
            - COCO captions, a JSON file or the root folder with `annotations/` in it;
            - Karpathy's JSON, or a folder with it;
            - `Flickr8k.token.txt` or Kaggle's `captions.txt`, or a folder with it, with or without the split lists;
            - webdataset shards: a folder with `*.tar`, one file, or a pattern like `"shards/train-*.tar"`;
            - a Hub id (`"jxie/flickr8k"`) or a folder of Parquet files;
            - a folder written by `save_to_disk`.

            docs/data.md lists what is recognized.
        split: Name of the split; `val`, `valid` and `dev` are the same as `validation`, `restval` as `train`. If the
            source has only a train split, or no splits, 5 % of the images (15 % of fewer than 1,000, at least one) are
            the validation split, chosen by a hash of the image_id (of the image if it has no name). "all" is the whole
            of a source with one split or none.
        images: Folder of the images of a caption file; by default the usual folders beside the file.
        max_skipped: Maximum fraction of rows, 0 to 1, that may be skipped because the image is unreadable or has no
            caption.
        allow_urls: Fetch images from URLs in the source: from the public web only, 20 MB and 10 seconds each, and never
            with HF_HUB_OFFLINE. Otherwise they count as unreadable. So do files outside of a folder or dataset, unless
            `source` is a table that refers to them.
        image_column, caption_column: Names of columns that are not recognized; several caption columns are separated by
            commas.
        spelling: How these options are written in messages, with `{}` for the name.

    Returns:
        Rows of one image each, those of the source with the same image and image_id merged, with `image`, decoded on
        access, `captions`, `image_id` (the name or number in the source, otherwise the
        row number) and `image_digest` (SHA-256 of the encoded image), in the order of the source. If present in the
        source, also `caption_weights`, the weight of each caption in the loss, and `labels`, strings that describe the
        image's content, or null. Warnings count and name skipped rows and captions.

    Raises:
        FileNotFoundError: No such folder or file, or no image of a caption file exists; names the folders searched.
        NoSplitError: No such split; a kind of ValueError.
        ValueError: An unknown layout (shows what was found), or too many skipped rows.
    """
    options = _options(images, max_skipped, allow_urls, image_column, caption_column, spelling)
    found = _find(source, split, options)
    rows = found.load(False)
    layout = _Layout.of(found, rows.features, options)
    rows = rows.select_columns(layout.columns(rows.column_names))
    decoded = rows.select_columns([layout.image])
    if layout.image != "image":
        decoded = decoded.rename_column(layout.image, "image")
    if not isinstance(decoded.features["image"], Image):
        decoded = decoded.cast_column("image", Image())
    with_image = allow_urls or found.reads_ahead or layout.is_relative
    checked = rows.cast_column(layout.image, Image(decode=False)).map(
        check_row,
        with_indices=True,
        fn_kwargs={
            "layout": layout._asdict(),
            "origin": found.origin,
            "with_image": with_image,
            "files": _digest_of_files(rows, layout),
        },
        remove_columns=rows.column_names,
        features=Features({**layout.checked, "image": Image()}) if with_image else layout.checked,
        desc="checking images",
    )
    if with_image:  # use the fetched bytes: `datasets` would fetch them again
        decoded, checked = checked.select_columns("image"), checked.remove_columns("image")
    content = checked[:]
    images_of_source = merge_rows(content)
    if len(images_of_source) < len(rows):
        checked = Dataset.from_dict(content, layout.checked)
    kept = images_of_source
    if found.divided:
        kept = [images_of_source[number] for number in divide([content["key"][index] for index in kept], split)]
    tally = Tally(found.name, options)
    problems, image_ids = content["problem"], content["image_id"]
    kept = [index for index in kept if tally.keeps(image_ids[index], problems[index])]
    for index in images_of_source:
        if problems[index] is None:
            tally.count(*(content[name][index] for name in ("image_id", "captions", "empty", "wordless")))
    tally.close(found.notices)
    if not kept:
        raise nothing_in(found.name, split, len(images_of_source) if found.divided else None)
    dataset = concatenate_datasets([decoded, checked.remove_columns(list(INTERNAL))], axis=1)
    dataset = dataset if len(kept) == len(dataset) else dataset.select(kept)
    if found_copies := copies(dataset["image_id"][:], dataset["image_digest"][:]):
        _logger.info(
            "%s: %d images of the split %s are copies of others, and kept: %s",
            *(found.name, len(found_copies), split, listed(found_copies, NAMED_ROWS)),
        )
    return dataset


def stream_captions(
    source: str | Path,
    split: str = "train",
    *,
    images: str | Path | None = None,
    max_skipped: float = 0.01,
    allow_urls: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    spelling: str = "{}",
    max_images: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    seed: int | None = None,
) -> IterableDataset:
    """Streams one split of captioned images, for datasets too large to be copied or checked first.

    Runs on every process, each with its `rank`. `state_dict()` and `load_state_dict()` of the stream save and restore
    its position. Most efficient if `world_size` divides the number of shards: then no process reads another's images.

    Args:
        source, split, images, allow_urls, image_column, caption_column, spelling: As in `load_captions`.
        max_skipped: As in `load_captions`, for the rows seen by this process; enforced from 100 rows on and when the
            stream ends, which is also when warnings are issued.
        max_images: Maximum number of images, the first of the source; with several processes, the first of the shards
            of each. Then shards are not shuffled.
        rank, world_size: Index of this process, and number of processes that share the rows.
        seed: Shuffles the shards, anew after each `set_epoch`; rows keep their order within a shard. By default the
            order of the source.

    Returns:
        Rows with `image`, `captions`, `image_id` and the optional columns of `load_captions`, as there, except that the
        image_id of images without a name is the beginning of the image's digest, and that rows of the same image are
        not merged, except those of a table.

    Raises:
        FileNotFoundError, NoSplitError, ValueError: As in `load_captions`; for rows, when they are read.
    """
    options = _options(images, max_skipped, allow_urls, image_column, caption_column, spelling)
    found = _find(source, split, options)
    rows = found.load(True, world_size)
    features: Mapping[str, Any] = rows.features or next(iter(rows), {})
    layout = _Layout.of(found, features, options)
    columns = layout.columns(features)
    rows = rows.select_columns(columns)
    if isinstance(features[layout.image], Image):
        rows = rows.cast_column(layout.image, Image(decode=False))
    if seed is not None and max_images is None:  # the first images of shuffled shards would be others in each pass
        rows = rows.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
    tally = Tally(found.name, options, wanted=split if found.divided else None)
    settings = {"layout": layout._asdict(), "origin": found.origin, "with_image": True}
    rows = rows.map(check_row, fn_kwargs=settings, remove_columns=columns)
    rows = rows.filter(tally).remove_columns(["image_digest", *INTERNAL])
    kept = {name: each for name, each in layout.checked.items() if name not in ("image_digest", *INTERNAL)}
    rows = rows.cast(Features({"image": Image(), **kept}))
    if max_images is not None:
        rows = rows.take(max_images)
    return CheckedStream(split_dataset_by_node(rows, rank, world_size), tally, found.notices)


def _digest_of_files(rows: Dataset, layout: "_Layout") -> str:
    """Digest of the sizes and times of the image files that rows name, so that a changed file is noticed.

    Empty if the images are inside of the rows, or the rows' own fingerprint covers their files.
    """
    if layout.is_ours:
        return ""
    column = rows.select_columns([layout.image]).with_format("arrow")[:][layout.image]
    kind = column.type
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        column = compute.struct_field(column, "path").filter(compute.struct_field(column, "bytes").is_null())
    elif not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        return ""
    if not len(column):
        return ""
    digest = hashlib.sha256()
    for path in column:
        file = full_path(path.as_py(), layout._asdict())
        with suppress(OSError, ValueError):  # no such file, no path, a URL; a null byte in the name
            if file:
                status = os.stat(file)
                digest.update(f"{file}|{status.st_size}|{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _options(images, max_skipped, allow_urls, image_column, caption_column, spelling) -> ReadingOptions:
    images = None if images is None else str(images)
    return ReadingOptions(images, image_column, caption_column, max_skipped, allow_urls, spelling)


def load_rows(source: str | Path, split: str = "train", *, allow_urls: bool = False) -> tuple[Dataset, Origin]:
    """All rows and columns of one split as stored, and where their images may be read from.

    Rows need not be captioned images. If a source has only a train split, it is not divided.

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
    found = _find(source, split, ReadingOptions(allow_urls=allow_urls), captioned=False)
    return found.load(False), found.origin


def decode_images(rows: Dataset, indices: Iterable[int]) -> list[PILImage.Image]:
    """Images of rows from `load_captions`, which has checked them; but files may change during a run.

    Raises:
        ValueError: An image can no longer be read; names it.
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
    """A recognized source, and one split of it."""

    name: str
    load: Callable[..., Any]  # (streaming, world_size) -> Dataset or IterableDataset with the source's own columns
    origin: Origin
    divided: bool = False  # whether train and validation must be split here
    root: str | None = None  # folder that image paths start with
    notices: Sequence[str] = ()  # warnings to issue
    is_ours: bool = False  # whether rows have the columns `OURS`
    reads_ahead: bool = False  # whether only `Origin` can read the images, so that their bytes are kept


def _find(source: str | Path, split: str, options: ReadingOptions, *, captioned: bool = True) -> _Found:
    register_readers()  # for `datasets`, which opens images with Pillow
    found = recognize(source, options, captioned=captioned)
    if isinstance(found, ListedSource):
        return _find_listed(found, split, options)
    if isinstance(found, Shards):
        return _find_shards(found, split, options)
    if isinstance(found, SavedSource):
        return _find_saved(found.name, found.path, split, options)
    if isinstance(found, ParquetFile):
        return _find_parquet(found, split, options)
    return _find_datasets(found, split, options)


def _find_listed(found: ListedSource, split: str, options: ReadingOptions) -> _Found:
    located, respelt = located_split(found, split, options)
    for notice in (*found.captions.columns, *respelt):
        _logger.info("%s", notice)
    images = tuple(located)
    folder = found.captions.folder
    archives = tuple(
        str(each.absolute())
        for each in (folder.path, Path(options.images).expanduser() if options.images else None)
        if each is not None and each.is_file()
    )

    def load(streaming: bool, world_size: int = 1):
        used = {
            name: each for name, each in OPTIONAL.items() if any(getattr(image, name) is not None for image in images)
        }
        features = Features({**OURS, **used})
        if not streaming:  # a tuple: `datasets` splits lists into shards; sizes and times enter its cache's key
            return Dataset.from_generator(
                _rows_of_images, features=features, gen_kwargs={"shards": (images,), "columns": tuple(used)}
            )
        number = _number_of_shards(len(images), world_size)
        shards = [images[len(images) * i // number : len(images) * (i + 1) // number] for i in range(number)]
        return IterableDataset.from_generator(
            _rows_of_images, features=features, gen_kwargs={"shards": shards, "columns": tuple(used)}
        )

    origin = Origin(None, None, options.allow_urls, archives, options.called("allow_urls"))  # the paths are checked
    return _Found(
        found.name,
        load,
        origin,
        notices=found.captions.notices,
        is_ours=True,
        reads_ahead=isinstance(folder, Archive) or bool(archives),
    )


def _find_shards(found: Shards, split: str, options: ReadingOptions) -> _Found:
    own_split, divided = choose_split(found.name, split, list(found.files))
    files = found.files[own_split]

    def load(streaming: bool, world_size: int = 1):
        with _names_source(found.name):
            used = optional_columns(files, list(OPTIONAL))
            features = Features({**OURS, **OPTIONAL})
            del features[WHERE]
            if streaming:
                rows = IterableDataset.from_generator(
                    _rows_of_shards, features=features, gen_kwargs={"shards": files, "chosen": tuple(options.columns)}
                )
                return rows.remove_columns([name for name in OPTIONAL if name not in used])
            states = tuple((file, Path(file).stat().st_size, Path(file).stat().st_mtime_ns) for file in files)
            rows = Dataset.from_generator(
                _rows_of_files, features=features, gen_kwargs={"files": states, "chosen": tuple(options.columns)}
            )
            return rows.remove_columns([name for name in OPTIONAL if all(each is None for each in rows[name])])

    return _Found(found.name, load, Origin(), divided, is_ours=True)  # images are inside the shards


def _rows_of_shards(shards: Iterable[str], chosen: tuple[str | None, str | None]) -> Iterator[dict[str, Any]]:
    yield from shard_rows(shards, chosen)


def _rows_of_files(files: Iterable[tuple[str, int, int]], chosen: tuple[str | None, str | None]) -> Iterator[Any]:
    yield from shard_rows([file for file, *_ in files], chosen)  # sizes and times enter the cache's key


def _find_saved(name: str, path: Path, split: str, options: ReadingOptions) -> _Found:
    with _names_source(name):
        check_saved(name, path)
        saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    own_split, divided = choose_split(name, split, list(splits))
    rows = splits[own_split]

    def load(streaming: bool, world_size: int = 1):
        if not streaming:
            return rows
        return rows.to_iterable_dataset(max(1, min(len(rows), _number_of_shards(len(rows), world_size))))

    return _Found(name, load, _origin_of_folder(path, options), divided)


def _find_parquet(found: ParquetFile, split: str, options: ReadingOptions) -> _Found:
    name, path = found.name, found.path
    own = split_of(path.stem) or "train"
    own_split, divided = choose_split(name, split, [own])

    def load(streaming: bool, world_size: int = 1):
        with _names_source(name):
            return load_dataset("parquet", data_files={own_split: str(path)}, split=own_split, streaming=streaming)

    return _Found(name, load, _origin_of_folder(path.parent, options), divided)


def _find_datasets(found: DatasetsSource, split: str, options: ReadingOptions) -> _Found:
    name, path = found.name, found.path
    hub_id_or_folder = name if path is None else str(path)
    try:
        with _names_source(name):
            check_card(name, path)
            splits = get_dataset_split_names(hub_id_or_folder)
    except (EmptyDatasetError, DataFilesNotFoundError) as error:
        raise FileNotFoundError(
            f"{name} is not a captioned dataset: it has nothing that datasets reads, and no caption file "
            f"({KNOWN_FILES})."
        ) from error
    own_split, divided = choose_split(name, split, splits)

    def load(streaming: bool, world_size: int = 1):
        with _names_source(name):
            return load_dataset(hub_id_or_folder, split=own_split, streaming=streaming)

    if path is not None:
        return _Found(name, load, _origin_of_folder(path, options), divided, str(path.absolute()))
    origin = origin_of_hub(name, options.allow_urls)
    return _Found(name, load, origin._replace(urls_option=options.called("allow_urls")), divided)


def _origin_of_folder(path: Path, options: ReadingOptions) -> Origin:
    return origin_of_folder(path, options.allow_urls)._replace(urls_option=options.called("allow_urls"))


@contextmanager
def _names_source(name: str) -> Iterator[None]:
    """Names the source in errors of `datasets`, which raises errors of any kind for a damaged one."""
    try:
        yield
    except (OSError, RefusedError, UsageError):  # no such file, no network, or one of our own readers
        raise
    except Exception as error:
        if isinstance(error.__cause__, UsageError):  # from our own readers
            raise error.__cause__ from error
        reason = brief(error.__cause__ or error)
        raise ValueError(f"{name} can't be read, it may be damaged ({type(error).__name__}: {reason}).") from error


def _number_of_shards(num_images: int, world_size: int) -> int:
    return world_size * max(1, -(-num_images // (IMAGES_PER_SHARD * world_size)))


def _rows_of_images(shards: Iterable[Iterable[LocatedImage]], columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for images in shards:
        for each in images:
            row: dict[str, Any] = {
                "image": {"path": each.path, "bytes": None},
                "captions": list(each.captions),
                "image_id": each.image_id,
                WHERE: each.where,
                PROBLEM: each.problem,
            }
            if WEIGHTS in columns:
                row[WEIGHTS] = list(each.caption_weights or (1.0,) * len(each.captions))
            if LABELS in columns:
                row[LABELS] = None if each.labels is None else list(each.labels)
            yield row


class _Layout(NamedTuple):
    """The columns of a source by their content."""

    image: str
    captions: list[str]
    image_id: str | None
    root: str | None
    weights: str | None = None
    labels: str | None = None
    is_ours: bool = False  # whether rows may have the columns `where` and `problem`
    is_relative: bool = False  # whether images may be paths below `root`

    @classmethod
    def of(cls, found: _Found, features: Mapping[str, Any], options: ReadingOptions) -> "_Layout":
        if found.is_ours:
            weights, labels = (name if name in features else None for name in OPTIONAL)
            return cls("image", ["captions"], "image_id", found.root, weights, labels, is_ours=True)
        names = list(features)
        if isinstance(features.get("json"), Mapping):  # a webdataset: its fields may contain the captions
            names += [column for column in features["json"] if column not in names]
        try:
            columns = find_columns(tuple(names), options.image_column, options.caption_column)
        except ValueError as error:
            raise ValueError(f"{found.name}: {error}") from error
        image = (options.image_column and columns.image) or _image_column(features)
        if image is None:
            raise ValueError(
                f"{found.name} has no column 'image': name it with {options.setting('image_column', 'NAME')}. Columns "
                f"found: {shown_names(names) or 'none'}."
            )
        captions = [column for column in columns.captions if column != image]
        if not captions:
            raise ValueError(
                f"{found.name} has no captions in a known layout: name the column with "
                f"{options.setting('caption_column', 'NAME')}. Columns found: {shown_names(names) or 'none'}. "
                f"Known layouts: {KNOWN_LAYOUTS}."
            )
        image_id = next((column for column in ID_COLUMNS if column in names), None)
        for column in (*captions, image_id, columns.weights, "json"):
            if column is not None and _is_decoded(features.get(column)):  # it would be opened before any check
                raise ValueError(f"{found.name} has files in its column {column!r}, where text is expected.")
        if not isinstance(features[image], Image | Value | Mapping | str | bytes | None):
            raise ValueError(f"{found.name} has no images in its column {image!r}.")
        labels = columns.labels
        if labels is not None and not _may_be_labels(_feature(features, labels)):
            labels = None
        is_text = isinstance(features[image], Value) and features[image].dtype in ("string", "large_string")
        relative = found.root is not None and is_text
        return cls(image, captions, image_id, found.root, columns.weights, labels, is_relative=relative)

    def columns(self, features: Iterable[str]) -> list[str]:
        """The columns to read. Others are skipped: they may contain files, which are opened with the row."""
        wanted = {self.image, *self.captions, self.image_id, self.weights, self.labels, "json"}
        if self.is_ours:
            wanted |= {WHERE, PROBLEM}
        return [column for column in features if column in wanted]

    @property
    def checked(self) -> Features:
        """Columns of checked rows."""
        optional = {WEIGHTS: self.weights, LABELS: self.labels}
        return Features({**CHECKED, **{name: OPTIONAL[name] for name, column in optional.items() if column}})


def _image_column(features: Mapping[str, Any]) -> str | None:
    """The image column: by name, otherwise the only one with images, otherwise one with paths."""
    by_plain = {plain_name(name): name for name in reversed(list(features))}
    if named := next((by_plain[name] for name in IMAGE_COLUMNS if name in by_plain), None):
        return named
    decoded = [name for name, feature in features.items() if isinstance(feature, Image)]
    if decoded:
        return decoded[0] if len(decoded) == 1 else None
    return next((by_plain[name] for name in map(plain_name, IMAGE_NAMES) if name in by_plain), None)


def _feature(features: Mapping[str, Any], column: str) -> Any:
    fields = features.get("json")
    return features[column] if column in features or not isinstance(fields, Mapping) else fields.get(column)


def _may_be_labels(feature: Any) -> bool:
    """Whether a column's type, or a value of an untyped stream, is a list of strings; others have another meaning."""
    item = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return feature is None or is_list_of_text(feature) or (isinstance(item, Value) and item.dtype == "string")


def _is_decoded(feature: Any) -> bool:
    """Whether `datasets` opens files for a column's values, or parts of them."""
    if isinstance(feature, Mapping):
        return any(map(_is_decoded, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(_is_decoded, feature))
    return hasattr(feature, "decode_example") or (hasattr(feature, "feature") and _is_decoded(feature.feature))
