"""Recognizes the kind of a source of captioned images, and locates the images of caption files.

Has no heavy imports, so that an unreadable source is rejected before the training libraries are loaded.
"""

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError, counted, listed, reason_of
from ..untrusted_images import ADDRESSES
from .caption_files import (
    KNOWN_FILES,
    SUFFIXES,
    TEXT_FOLDERS,
    Captions,
    ImageEntry,
    merged_files,
    read_captions,
    split_of,
)
from .columns import IMAGE_SUFFIXES, KNOWN_LAYOUTS, SPLIT_NAMES, find_columns, shown_names
from .folders import Archive, DiskFolder, File, Folder, ImageFinder, open_folder
from .reading import ReadingOptions
from .shards import shard_rows
from .tables import UnknownColumnsError

VALIDATION_SHARE = 0.05  # of the images, if a source has only a train split
ALL = "all"  # name for the whole of a source without splits
FEW, SHARE_OF_FEW = 1000, 0.15  # a larger share of fewer images, so that scores are meaningful
USUAL_FOLDERS = (
    *("images", "image", "img", "imgs", "photos", "photo", "pictures", "Flicker8k_Dataset", "Flickr8k_Dataset"),
    *("Flickr8k_Dataset/Flicker8k_Dataset", "flickr30k-images", "flickr30k_images"),
    *("train2017", "val2017", "train2014", "val2014", "train", "validation", "val", "test"),
)
NAMED_FILES = 3  # listed in a notice about spelling


class NoSplitError(ValueError):
    """A source doesn't have a split; the message lists those it has."""


class LocatedImage(NamedTuple):
    """An image with its file's size and time, so that a changed file of the same name is noticed."""

    path: str
    captions: tuple[str, ...]
    image_id: str
    num_bytes: int  # -1 if there is no such file
    mtime_ns: int
    caption_weights: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    where: str = ""  # its row
    problem: str | None = None  # why it can't be used, if known


@dataclass(frozen=True)
class ListedSource:
    """Files that list images and captions.

    Attributes:
        name: Name given by the user.
        captions: Content of the files.
        is_own: Whether the user named the file itself, which may then refer to any file on this machine.
    """

    name: str
    captions: Captions
    is_own: bool


@dataclass(frozen=True)
class Shards:
    """Webdataset shards by split."""

    name: str
    files: dict[str, list[str]]


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file that contains the images."""

    name: str
    path: Path


@dataclass(frozen=True)
class SavedSource:
    """A folder written by `save_to_disk`."""

    name: str
    path: Path


@dataclass(frozen=True)
class DatasetsSource:
    """A source for `datasets.load_dataset`: a folder, or a dataset on the Hub if there is no `path`."""

    name: str
    path: Path | None


Source = ListedSource | Shards | ParquetFile | SavedSource | DatasetsSource


def recognize(source: str | Path, options: ReadingOptions, *, captioned: bool = True) -> Source:
    """Recognizes the kind of a source, and reads caption files. Doesn't access the network.

    Args:
        source: A Hub id, or a path.
        options: Reading options.
        captioned: Whether it must have captions; otherwise images without captions are left to `datasets`.

    Raises:
        FileNotFoundError: No such folder or file.
        ValueError: It can't be read; the message says where and what to do.
    """
    name = str(source)
    path = Path(name).expanduser()
    if any(letter in name for letter in "*?[") and not path.exists():
        return _shards(name, [Path(each) for each in sorted(glob.glob(str(path)))], options)
    if path.is_file():
        return _file(name, path, options)
    looks_like_path = (
        isinstance(source, Path)
        or name.startswith(("/", ".", "~"))
        or "\\" in name
        or name.count("/") > 1
        or path.suffix.lower() in (*SUFFIXES, *IMAGE_SUFFIXES)
    )
    if not path.is_dir():
        if looks_like_path or path.exists():
            raise FileNotFoundError(
                f"{name} does not exist: name a caption file, or the folder of a captioned dataset."
            )
        _refuse_images(name, options)
        return DatasetsSource(name, None)
    if tars := sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]):
        return _shards(name, tars, options)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _refuse_images(name, options)
        return SavedSource(name, path)
    has_tables_of_datasets = any(
        not _is_of_img2dataset(each)
        for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet", "*.arrow", "*/*.arrow")
        for each in path.glob(pattern)
    )
    has_metadata = any(each.is_file() for pattern in ("metadata.*", "*/metadata.*") for each in path.glob(pattern))
    if not has_tables_of_datasets and (captioned or not has_metadata) and (captions := _read(path, options)):
        return ListedSource(name, captions, is_own=False)
    _refuse_images(name, options)
    if captioned and not has_tables_of_datasets:
        _refuse_uncaptioned(name, DiskFolder(path))
    return DatasetsSource(name, path)


def _is_of_img2dataset(path: Path) -> bool:
    """Whether a table describes the images in a folder of the same name: https://github.com/rom1504/img2dataset."""
    return path.stem.isdigit() and path.with_suffix("").is_dir()


def _file(name: str, path: Path, options: ReadingOptions) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return _shards(name, [path], options)
    if suffix in IMAGE_SUFFIXES:
        raise UsageError(
            f"{name} is a single image. At least 2 images with captions are needed, one to train on and one to "
            "validate on, and some hundreds for useful captions: name a table of images and captions, or a folder of "
            "images with a text file of the same name beside each."
        )
    if suffix == ".parquet" and _has_images_inside(path, options):
        _refuse_images(name, options)
        return ParquetFile(name, path)
    captions = _read(path, options)
    if captions is None:
        raise UsageError(f"{name} has no captions: {_how_to_caption()}")
    return ListedSource(name, captions, is_own=suffix != ".zip")


def _refuse_images(name: str, options: ReadingOptions) -> None:
    if options.images is not None:
        raise ValueError(f"{name} is not a caption file but contains its images: omit {options.setting('images')}.")


def _refuse_uncaptioned(name: str, folder: Folder) -> None:
    images = [each for each in folder.names if each.lower().endswith(IMAGE_SUFFIXES)]
    if images:
        raise UsageError(f"{name} has {counted(len(images), 'image')} and no captions: {_how_to_caption()}")
    raise FileNotFoundError(
        f"{name} is not a captioned dataset: it has nothing that datasets reads, and no caption file ({KNOWN_FILES})."
    )


def _how_to_caption() -> str:
    return (
        "put a table with columns image and caption into it (captions.csv), or a text file of the same name beside "
        "each image (photo.txt)."
    )


def _has_images_inside(path: Path, options: ReadingOptions) -> bool:
    """Whether the image column of a Parquet file contains images rather than paths."""
    import pyarrow

    schema = _schema(path)
    columns = find_columns(tuple(schema.names), *options.columns)
    kind = schema.field(columns.image).type if columns.image else None
    text = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
    return kind is not None and kind not in text and not pyarrow.types.is_dictionary(kind)


def _read(path: Path, options: ReadingOptions) -> Captions | None:
    try:
        if path.is_dir():
            return read_captions(path, options.columns)
        state = path.stat()
        return _read_once(path, state.st_size, state.st_mtime_ns, options)
    except UnknownColumnsError as error:
        raise ValueError(error.with_remedy(options.setting(error.option, "NAME"))) from error


@lru_cache(maxsize=1)
def _read_once(path: Path, num_bytes: int, mtime_ns: int, options: ReadingOptions) -> Captions | None:
    """Reads a file once for all of its splits, unless it changes."""
    return read_captions(path, options.columns)


def _shards(name: str, tars: list[Path], options: ReadingOptions) -> Shards:
    """Webdataset shards; the split comes from the folder's name, otherwise from a word in the file's name."""
    if not tars:
        raise FileNotFoundError(f"{name} matches no file.")
    if other := next((tar for tar in tars if tar.suffix.lower() != ".tar"), None):
        raise ValueError(f"{name} matches {other}: a pattern may match webdataset shards (.tar) only.")
    _refuse_images(name, options)
    files: dict[str, list[str]] = {}
    for tar in tars:
        own = SPLIT_NAMES.get(tar.parent.name) or split_of(tar.stem) or "train"
        files.setdefault(own, []).append(str(tar.absolute()))
    return Shards(name, files)


def located_split(source: ListedSource, split: str, options: ReadingOptions) -> tuple[list[LocatedImage], list[str]]:
    """The images of one split with their files, and sentences about files found under another spelling.

    Raises:
        NoSplitError: No such split.
        FileNotFoundError: No image exists; names the folders that were searched.
        ValueError: The split is empty.
    """
    entries = source.captions.entries
    own_split, divided = choose_split(source.name, split, list({entry.split or "train": None for entry in entries}))
    entries = [entry for entry in entries if (entry.split or "train") == own_split]
    folder = Path(options.images).expanduser().absolute() if options.images is not None else None
    if folder and not folder.exists():
        raise FileNotFoundError(f"{options.setting('images', options.images)} is not a folder.")
    found, notices = locate_images(
        entries,
        source.captions.folder,
        open_folder(folder) if folder else None,
        outside=source.is_own,
        hint=f"Name the folder of the images with {options.setting('images')}.",
    )
    if divided:  # unusable images count as training images
        number = len(found)
        usable = [index for index, image in enumerate(found) if _is_usable(image)]
        chosen = {usable[index] for index in divide([found[index].image_id for index in usable], split)}
        if SPLIT_NAMES.get(split) != "validation":
            chosen |= set(range(number)) - set(usable)
        found = [image for index, image in enumerate(found) if index in chosen]
        if not found:
            raise nothing_in(source.name, split, number)
    if not found:
        raise nothing_in(source.name, split)
    return found, notices


def nothing_in(name: str, split: str, number: int | None = None) -> UsageError:
    """The error for a split without images.

    Args:
        name: Name of the source.
        split: The requested split.
        number: Number of images in the source, if train and validation are split here.
    """
    why = "."
    if number == 1:
        why = (
            ": it has 1 image, and at least 2 are needed, one to train on and one to validate on, and some hundreds "
            "for useful captions."
        )
    return UsageError(f"{name} has no images in its split {split!r}{why}")


def _is_usable(image: LocatedImage) -> bool:
    return bool(image.captions) and image.problem is None and image.num_bytes >= 0


def locate_images(
    entries: Sequence[ImageEntry],
    folder: Folder | Path,
    images: Folder | Path | None = None,
    outside: bool = True,
    hint: str = "Name the folder of the images with images=.",
) -> tuple[list[LocatedImage], list[str]]:
    """Finds the image files in `images`, otherwise in the usual folders beside the caption file in `folder`.

    URLs are returned unchanged. With `outside`, paths may also be relative to the working directory; without it, paths
    that lead out of these folders are matched by their last components. Images of the same file are merged.

    Returns:
        The images, and a sentence about names spelled differently from their files, if any.

    Raises:
        FileNotFoundError: None of the files exists; names the folders searched, and ends in `hint`.
    """
    folder, images = _opened(folder), None if images is None else _opened(images)
    roots: list[Folder] = [folder if images is None else images]
    if images is None and folder.path.name in TEXT_FOLDERS:
        roots.append(DiskFolder(folder.path.parent))
    finder = ImageFinder(
        (entry.path for entry in entries),
        [(root, _subfolders(root)) for root in roots],
        outside=outside,
        from_working_directory=outside and images is None,
    )
    files: dict[tuple[str, str | None], File] = {}
    for entry in entries:
        if not entry.path:
            files[_key(entry)] = File("", -1, -1)
        elif entry.path.startswith(ADDRESSES):
            files[_key(entry)] = File(entry.path, 0, 0)
        else:  # folders of other splits last: the same names may occur there
            found = finder.find(entry.path, lambda place, split=entry.split: split_of(place) in (None, split))
            files[_key(entry)] = found or File(_missing(entry, roots[0], outside), -1, -1)
    named = [entry for entry in entries if entry.path]
    if named and all(files[_key(entry)].num_bytes < 0 for entry in named):
        searched = ", ".join(str(root.path) for root in roots)
        raise FileNotFoundError(
            f"None of the {len(named)} images exists, the first is {named[0].path!r}{_in(named[0])}. "
            f"Searched: {searched} and the subfolders {', '.join(USUAL_FOLDERS)}. {hint}"
        )
    respelled = [(entry, files[_key(entry)]) for entry in named if not files[_key(entry)].is_exact]
    merged = merged_files(entries, lambda entry: files[_key(entry)].path or entry.where or entry.image_id)
    located = []
    for entry in merged:
        path, num_bytes, mtime_ns, _ = files[_key(entry)]
        located.append(
            LocatedImage(
                *(path, entry.captions, entry.image_id, num_bytes, mtime_ns),
                *(entry.caption_weights, entry.labels, entry.where, entry.problem),
            )
        )
    return located, _spelling_notice(respelled)


def _opened(folder: Folder | Path) -> Folder:
    return DiskFolder(folder) if isinstance(folder, Path) else folder


def _key(entry: ImageEntry) -> tuple[str, str | None]:
    return (entry.path or entry.where or entry.image_id, entry.split)


def _in(entry: ImageEntry) -> str:
    return f" ({entry.where})" if entry.where else ""


def _spelling_notice(respelled: Sequence[tuple[ImageEntry, File]]) -> list[str]:
    if not respelled:
        return []
    pairs = [f"{entry.path} is {file.path}{_in(entry)}" for entry, file in respelled]
    number = counted(len(respelled), "image was", "images were")
    return [f"{number} found under another spelling: {listed(pairs, NAMED_FILES)}"]


def _missing(entry: ImageEntry, root: Folder, outside: bool) -> str:
    """The file that would have been read."""
    leads_out = os.path.isabs(entry.path) or ".." in Path(entry.path).parts
    path = os.path.basename(entry.path) if leads_out and not outside else entry.path
    if isinstance(root, Archive):
        return f"zip://{path}::{root.path.absolute()}"
    return str(root.path / path)


def _subfolders(folder: Folder) -> list[str]:
    """Existing folders with the usual names, as spelled on disk; the folder itself comes first."""
    folders = [""]
    if isinstance(folder, Archive):
        inside = {os.path.dirname(name) for name in folder.names}
        inside |= {name.split("/")[0] for name in inside}
    else:
        try:
            inside = {each.name for each in os.scandir(folder.path) if each.is_dir()}
        except OSError:
            inside = set()
        inside |= {name for name in USUAL_FOLDERS if "/" in name and (folder.path / name).is_dir()}
    for name in USUAL_FOLDERS:
        folders += [each for each in sorted(inside) if each.casefold() == name.casefold()]
    return list(dict.fromkeys(folders))


def is_drawn(source: str | Path, split: str, options: ReadingOptions) -> bool:
    """Whether a split is drawn from a file or folder without splits.

    Raises:
        FileNotFoundError, NoSplitError, ValueError: As in `load_captions`.
    """
    found = recognize(source, options)
    if isinstance(found, ListedSource):
        splits = list({entry.split or "train": None for entry in found.captions.entries})
    elif isinstance(found, Shards):
        splits = list(found.files)
    elif isinstance(found, ParquetFile):
        splits = [split_of(found.path.stem) or "train"]
    else:
        return False
    return choose_split(found.name, split, splits)[1]


def choose_split(name: str, split: str, splits: list[str]) -> tuple[str, bool]:
    """The source's own name for the split, and whether it must be divided into train and validation here.

    `ALL` stands for the only split of a source, whatever its name.

    Raises:
        NoSplitError: The source doesn't have it.
    """
    canonical = {SPLIT_NAMES.get(own, own): own for own in splits}
    wanted = SPLIT_NAMES.get(split, split)
    if split == ALL and len(splits) == 1:
        return splits[0], False
    if list(canonical) == ["train"] and wanted in ("train", "validation"):
        return canonical["train"], True
    if split in splits:
        return split, False
    if wanted in canonical:
        return canonical[wanted], False
    raise NoSplitError(f"{name} has no split {split!r}, it has {', '.join(splits)}.")


def divide(keys: Sequence[str], split: str) -> list[int]:
    """Indices of the images in one split, if train and validation are split here: the validation split has the smallest
    draws: 5 % of the images, more if there are few, at least one.
    """
    draws = [draw(key) for key in keys]
    border = max(VALIDATION_SHARE, min(draws, default=0.0))
    if 0 < len(draws) < FEW:
        border = sorted(draws)[max(1, round(SHARE_OF_FEW * len(draws))) - 1]
    wants_validation = SPLIT_NAMES.get(split) == "validation"
    return [index for index, number in enumerate(draws) if (number <= border) == wants_validation]


def draw(key: str) -> float:
    """A pseudorandom number from 0 to 1, determined by the key."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def check_source(source: str | Path, splits: Sequence[str], options: ReadingOptions) -> None:
    """Rejects an unreadable source, as far as possible without reading images or accessing the network.

    Raises:
        FileNotFoundError, NoSplitError, ValueError: As in `load_captions`.
    """
    found = recognize(source, options)
    if isinstance(found, ParquetFile | DatasetsSource) and found.path is not None:
        files = [found.path] if found.path.is_file() else sorted(found.path.rglob("*.parquet"))[:1]
        for file in files:
            _check_columns(found.name, file, options)
    for split in splits:
        if isinstance(found, ListedSource):
            located_split(found, split, options)
        elif isinstance(found, Shards):
            own_split, _ = choose_split(found.name, split, list(found.files))
            next(shard_rows(found.files[own_split][:1]), None)


def _check_columns(name: str, path: Path, options: ReadingOptions) -> None:
    """Rejects a Parquet file without captions."""
    names = _schema(path).names
    if not find_columns(tuple(names), *options.columns).captions:
        raise ValueError(
            f"{name} has no captions in a known layout: name the column with "
            f"{options.setting('caption_column', 'NAME')}. Columns found: {shown_names(names)}. Known layouts: "
            f"{KNOWN_LAYOUTS}."
        )


def _schema(path: Path) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path)
    except Exception as error:  # pyarrow raises errors of its own, and OSError for damage too
        raise ValueError(f"{path} can't be read, it may be damaged ({reason_of(error)}).") from error
