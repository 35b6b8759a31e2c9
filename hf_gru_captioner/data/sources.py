"""Photos with their captions, from a Hub data set or a folder, as rows `{"image_id", "image", "captions"}`."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List, Value, get_dataset_split_names, load_dataset

KNOWN_LAYOUTS = (
    "captions (a list of strings), caption or text (a string or a list), caption_0 ... caption_4 (strings), "
    "sentences (a list of strings or of {'raw': string})"
)


def load_captions(source: str | Path, split: str = "train") -> Dataset:
    """Reads one split of a captioned data set.

    Args:
        source: Hub id (`"jxie/flickr8k"`), or a folder that `datasets.load_dataset` reads: parquet files, a saved data
            set's repository, images with `metadata.jsonl` or `metadata.csv`.
        split: Name of the split.

    Returns:
        Rows of `image_id` (the file name where there is one, else the row number), `image` and `captions`, in the order
        of the source. Photos without a caption are left out, with a warning that counts them.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No such split, no image column, or captions in no known layout; shows the columns that were found.
    """
    name = str(source)
    looks_like_path = name.startswith(("/", ".", "~")) or isinstance(source, Path) or name.count("/") > 1
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder)
    elif looks_like_path or folder.exists():
        raise FileNotFoundError(f"{name} is not a folder of a captioned data set.")

    splits = get_dataset_split_names(name)
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}, it has {', '.join(splits)}.")
    dataset = load_dataset(name, split=split)
    columns = dataset.column_names
    if "image" not in columns:
        raise ValueError(f"{name} has no column 'image'. Columns found: {', '.join(columns)}.")
    caption_columns = _caption_columns(columns)
    if not caption_columns:
        raise ValueError(
            f"{name} has no captions in a known layout. Columns found: {', '.join(columns)}. "
            f"Known layouts: {KNOWN_LAYOUTS}."
        )
    id_column = next((column for column in ("image_id", "filename", "file_name") if column in columns), None)
    features = dataset.features.copy()
    captions = dataset.select_columns(caption_columns + ([id_column] if id_column else [])).map(
        lambda row, index: {
            "image_id": str(row[id_column]) if id_column else str(index),
            "captions": _captions_of_row([row[column] for column in caption_columns]),
        },
        with_indices=True,
        remove_columns=[column for column in caption_columns if column != "captions"],
        desc="reading captions",
    )
    dataset = dataset.select_columns(["image"])
    if not isinstance(features["image"], Image):
        dataset = dataset.cast_column("image", Image())
    captions = captions.cast_column("captions", List(Value("string")))
    dataset = dataset.add_column("captions", captions["captions"]).add_column("image_id", captions["image_id"])
    captioned = [index for index, of_image in enumerate(captions["captions"]) if of_image]
    if len(captioned) < len(dataset):
        warnings.warn(
            f"{len(dataset) - len(captioned)} of {len(dataset)} photos of {name} have no caption and are left out.",
            stacklevel=2,
        )
        dataset = dataset.select(captioned)
    return dataset


def _caption_columns(columns: list[str]) -> list[str]:
    for column in ("captions", "caption", "text", "sentences"):
        if column in columns:
            return [column]
    return sorted(column for column in columns if column.startswith("caption_") and column[8:].isdigit())


def _captions_of_row(cells: list[Any]) -> list[str]:
    captions: list[str] = []
    for cell in cells:
        if cell is None:
            continue
        for caption in [cell] if isinstance(cell, str | Mapping) else cell:
            text = caption.get("raw") or caption.get("sentence") if isinstance(caption, Mapping) else caption
            if text and text.strip():
                captions.append(text.strip())
    return captions
