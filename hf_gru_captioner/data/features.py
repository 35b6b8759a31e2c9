"""A disk cache of a frozen vision encoder's outputs, so that training runs the encoder only once per image.

    <folder>/<key>/cache.json           shape, dtype, view and image processor settings
    <folder>/<key>/shard-00000.bin      (256, P, D) fp16 or bf16 values of the first 256 images, memory-mapped

The key covers everything that the values depend on: the encoder's configuration and weights, the image processor's
settings, the view and the bytes of every image, in order. So a cache is never stale, only absent. Weights are hashed in
half precision, so that a checkpoint stored in fp16 finds the cache of the original encoder; the cache has no more
precision either.

Shards are written atomically, so a killed run resumes where it stopped. Several processes need no communication: each
starts at a different shard, wraps around, and skips existing shards. With a shared disk, machines share the work too;
otherwise each makes its own cache. Nothing else here assumes a shared disk.

The caller must not cache a trainable encoder or random augmentation.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage
from PIL import ImageEnhance, ImageOps
from torch import nn
from tqdm.auto import tqdm

from ..files import PARTIAL, PROVENANCE, write_atomically
from ..model.image_loading_gru_captioner import load_image
from .sources import LABELS, WEIGHTS, decode_images

_logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 256
LEFTOVER_AFTER = 3600  # seconds since the last write; a shard takes seconds
CROPPED_AREA = (0.6, 1.0)  # fraction of the image's area that a random crop keeps

CARRIED = (WEIGHTS, LABELS)  # optional columns of training rows

ImageToPixels = Callable[[list[PILImage.Image]], torch.Tensor]


@dataclass(frozen=True)
class View:
    """An augmentation of every image in a dataset; each cache contains one.

    Args:
        mirror: Flip the image horizontally.
        crop: Number of a random crop, at least 1: 60 to 100 % of the area at the image's aspect ratio. The crop depends
            on this number and the image's index. None: the whole image.
        may_mirror: Whether a crop is mirrored half of the time.
    """

    mirror: bool = False
    crop: int | None = None
    may_mirror: bool = True

    def __call__(self, image: PILImage.Image, index: int) -> PILImage.Image:
        mirror = self.mirror
        if self.crop is not None:
            random = np.random.default_rng((self.crop, index))
            scale = random.uniform(*CROPPED_AREA) ** 0.5
            width, height = round(image.width * scale), round(image.height * scale)
            left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
            image = image.crop((left, top, left + width, top + height))
            mirror ^= self.may_mirror and bool(random.integers(2))
        return ImageOps.mirror(image) if mirror else image

    def __str__(self) -> str:
        name = "whole" if self.crop is None else f"crop {self.crop}"
        if self.crop is not None and not self.may_mirror:
            name += ", never mirrored"
        return f"{name}, mirrored" if self.mirror else name


class Regions(torch.utils.data.Dataset):
    """The regions of every image, `(P, D)` each, memory-mapped: memory does not grow with their number."""

    def __init__(self, shards: Sequence[Path], shape: tuple[int, int, int], dtype: torch.dtype):
        self.shape = shape  # (images, P, D)
        self._shards = [
            torch.from_file(str(path), shared=False, size=num * shape[1] * shape[2], dtype=dtype).view(num, *shape[1:])
            for path, num in zip(shards, _images_of_shards(shape[0]), strict=True)
        ]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._shards[index // IMAGES_PER_SHARD][index % IMAGES_PER_SHARD].clone()  # (P, D), safe to modify


class RegionCache:
    """Caches of one encoder with one image processor.

    Args:
        folder: Directory of all caches.
        encoder: Frozen vision encoder, `(B, 3, height, width)` -> `(B, P, D)`.
        encoder_config: Its configuration; part of the key.
        to_pixel_values: Images -> `(B, 3, height, width)`.
        settings: Everything that `to_pixel_values` depends on, the image processor's `to_dict()`; part of the key.
        precision: Precision on disk, `"float16"` or `"bfloat16"`; part of the key.
        batch_size: Images per call of the encoder. With more, a CPU spends as long allocating memory for the first
            layers' outputs as computing them.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: nn.Module,
        encoder_config: Any,
        to_pixel_values: ImageToPixels,
        settings: dict[str, Any],
        *,
        precision: str = "float16",
        batch_size: int = 4,
    ):
        self.folder = Path(folder).expanduser()
        self.encoder = encoder
        self.encoder_config = encoder_config
        self.to_pixel_values = to_pixel_values
        self.settings = _without_provenance(settings)
        self.dtype: torch.dtype = getattr(torch, precision)
        self.batch_size = batch_size

    def regions(self, dataset: Dataset, view: View | None = None, *, process: int = 0, processes: int = 1) -> Regions:
        """Regions of every image in a dataset, from the cache, or encoded now together with the other processes.

        Runs on every process, with its index `process` of `processes` on this machine; the first one shows a progress
        bar. Each process returns when all shards exist.

        Args:
            dataset: Rows with columns `image` and `image_digest`, as from `load_captions`.
            view: Augmentation of each image; by default the whole image.

        Raises:
            OSError: Not enough free disk space; the message says how much is needed.
            ValueError: The encoder's output exceeds the range of half precision.
        """
        view = view or View()
        directory = self.directory(dataset, view)
        shape = (len(dataset), *self.region_shape)
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        shards = self._shards(directory, len(dataset))
        missing = sum(size for path, size in shards.items() if self._is_missing(path, size))
        if missing:
            self._check_free_disk(directory, missing)
            metadata = {"shape": shape, "dtype": str(self.dtype), "view": str(view), "settings": self.settings}
            _write(directory / "cache.json", json.dumps(metadata, indent=2).encode())
            self._encode_missing(dataset, view, shards, process, processes)
        return Regions(list(shards), shape, self.dtype)

    def directory(self, dataset: Dataset, view: View) -> Path:
        """Directory of this dataset's cache."""
        digest = hashlib.sha256(f"{self._encoder_digest}|{self.settings}|{self.dtype}|{view}".encode())
        digest.update("".join(dataset["image_digest"][:]).encode())
        return self.folder / digest.hexdigest()[:32]

    def missing_bytes(self, dataset: Dataset, view: View | None = None) -> int:
        """Bytes still to be written for this dataset."""
        shards = self._shards(self.directory(dataset, view or View()), len(dataset))
        return sum(size for path, size in shards.items() if self._is_missing(path, size))

    @cached_property
    def region_shape(self) -> tuple[int, int]:
        """`(P, D)`, determined by encoding a grey image."""
        regions = self._encode([PILImage.new("RGB", (64, 64), "grey")])
        return regions.shape[1], regions.shape[2]

    @cached_property
    def _encoder_digest(self) -> str:
        digest = hashlib.sha256(_without_provenance(self.encoder_config.to_dict()).encode())
        for name, tensor in self.encoder.state_dict().items():
            tensor = tensor.detach().cpu()
            tensor = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def _encode(self, images: list[PILImage.Image]) -> torch.Tensor:
        device = next(self.encoder.parameters()).device
        regions = self.encoder(self.to_pixel_values(images).to(device)).to("cpu", self.dtype)  # (B, P, D)
        if not regions.isfinite().all():
            raise ValueError(
                f"the encoder's output exceeds the range of {self.dtype}: set data.cache_precision to bfloat16, or "
                "data.cache to false."
            )
        return regions

    def _encode_missing(self, dataset, view, shards: dict[Path, int], process: int, processes: int) -> None:
        numbered = list(enumerate(shards.items()))
        first = len(shards) * process // processes
        progress = tqdm(total=len(dataset), desc=f"encoding images, {view}", unit="image", disable=process > 0)
        with progress:
            for number, (path, size) in [*numbered[first:], *numbered[:first]]:
                start = number * IMAGES_PER_SHARD
                stop = min(start + IMAGES_PER_SHARD, len(dataset))
                if self._is_missing(path, size):
                    batches = []
                    for begin in range(start, stop, self.batch_size):
                        images = decode_images(dataset, range(begin, min(begin + self.batch_size, stop)))
                        batches.append(self._encode([view(image, begin + k) for k, image in enumerate(images)]))
                        progress.update(len(images))
                    numpy = torch.cat(batches).view(torch.int16).numpy()  # numpy has no bfloat16
                    _write(path, numpy.tobytes())
                else:
                    progress.update(stop - start)

    def _shards(self, directory: Path, num_images: int) -> dict[Path, int]:
        """Files of a cache in order, with their full sizes in bytes."""
        num_regions, width = self.region_shape
        sizes = (num * num_regions * width * self.dtype.itemsize for num in _images_of_shards(num_images))
        return {directory / f"shard-{number:05d}.bin": size for number, size in enumerate(sizes)}

    @staticmethod
    def _is_missing(path: Path, size: int) -> bool:
        """Whether a shard is still to be written. Logs a warning if it was truncated by a power cut."""
        if not path.exists():
            return True
        num_bytes = path.stat().st_size
        if num_bytes != size:
            _logger.warning("%s is damaged (%d of %d bytes) and is written again.", path, num_bytes, size)
        return num_bytes != size

    def _check_free_disk(self, folder: Path, needed: int) -> None:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"the feature cache needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: make room, or "
                "set data.cache_folder to another disk."
            )


def _without_provenance(settings: dict[str, Any]) -> str:
    kept = {name: value for name, value in settings.items() if name not in PROVENANCE}
    return json.dumps(kept, sort_keys=True, default=str)


def _images_of_shards(num_images: int) -> list[int]:
    """Number of images in each shard."""
    return [min(IMAGES_PER_SHARD, num_images - start) for start in range(0, num_images, IMAGES_PER_SHARD)]


def _remove_leftovers(directory: Path) -> None:
    """Removes unfinished files of killed processes; recent ones may belong to a running process on another machine."""
    for leftover in directory.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AFTER:
                leftover.unlink()


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content, writer=f"{platform.node()}.{os.getpid()}")


def carried_columns(dataset: Dataset) -> dict[str, list[Any]]:
    """The optional columns that a dataset has: `caption_weights` and `labels` of each image."""
    return {name: list(dataset[name]) for name in CARRIED if name in dataset.column_names}


class CaptionedRegions(torch.utils.data.Dataset):
    """Rows `{"regions": (P, D) tensor, "captions": [...]}` of encoded images, with optional columns if given.

    Args:
        views: One cache per augmentation; each epoch samples one for each image.
        captions: The captions of each image.
        seed: Random seed; samples depend only on seed, epoch and image.
        caption_weights: Weight of each caption of each image.
        labels: The labels of each image, or None if they are unknown.
    """

    def __init__(
        self,
        views: Sequence[Regions],
        captions: Sequence[list[str]],
        seed: int = 0,
        caption_weights: Sequence[list[float] | None] | None = None,
        labels: Sequence[list[str] | None] | None = None,
    ):
        self.views = views
        self.captions = captions
        carried = {WEIGHTS: caption_weights, LABELS: labels}
        self.carried = {name: values for name, values in carried.items() if values is not None}
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        view = 0
        if len(self.views) > 1:
            view = int(np.random.default_rng((self.seed, self.epoch, index)).integers(len(self.views)))
        row = {"regions": self.views[view][index], "captions": self.captions[index]}
        return row | {name: values[index] for name, values in self.carried.items()}


class CaptionedImages(torch.utils.data.Dataset):
    """Rows `{"image": PIL image, "captions": [...]}`, for a trainable or uncached encoder.

    Args:
        dataset: Rows with columns `image` and `captions`, optionally `caption_weights` and `labels`.
        augment: Take a new random crop of each image in each epoch.
        color_jitter: Maximum relative change of a crop's brightness, contrast and saturation, [0, 1).
        seed: Random seed; crops and colors depend only on seed, epoch and image.
        mirror: Mirror half of the crops.
    """

    def __init__(
        self, dataset: Dataset, augment: bool = True, color_jitter: float = 0.0, seed: int = 0, mirror: bool = True
    ):
        self.images = dataset.select_columns([name for name in ("image", "image_id") if name in dataset.column_names])
        self.captions = list(dataset["captions"])
        self.carried = carried_columns(dataset)
        self.augment = augment
        self.color_jitter = color_jitter
        self.mirror = mirror
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        image = ImageOps.exif_transpose(*decode_images(self.images, [index]))
        if self.augment:
            image = View(crop=1 + self.seed * 1_000_003 + self.epoch, may_mirror=self.mirror)(image, index)
            if self.color_jitter:
                image, random = load_image(image), np.random.default_rng((self.seed, self.epoch, index))
                for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                    image = enhance(image).enhance(random.uniform(1 - self.color_jitter, 1 + self.color_jitter))
        row = {"image": image, "captions": self.captions[index]}
        return row | {name: values[index] for name, values in self.carried.items()}
