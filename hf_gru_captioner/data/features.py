"""A cache on disk of what a frozen vision encoder says of each image, so that training runs the encoder once.

    <folder>/<key>/cache.json           the shape, and what made it
    <folder>/<key>/shard-00000.bin      (256, P, D) fp16 or bf16 numbers of the first 256 images, read by memory map

The key covers all that the numbers depend on: the encoder's configuration and weights, the image processor's settings,
the view and the bytes of every image in their order. So a cache is never wrong, only absent. Weights enter the key in
half precision: a checkpoint stored in fp16 finds the cache of the encoder it was made with, and the cache's own
rounding is as coarse.

A shard is written atomically, so a killed run goes on where it stopped. Several processes need no
talk: each starts at its own place, goes round, and skips what is there. On a disk that machines share they share the
work too, without one each machine makes its own cache; nothing else here assumes a shared disk.

A trainable encoder or random augmentation must not be cached, which is the caller's to see to.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
import warnings
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

from ..files import PARTIAL, write_atomically
from .sources import decode_photos

IMAGES_A_SHARD = 256
LEFTOVER_AFTER = 3600  # seconds since a file was last written to; a shard takes seconds
CROPPED_AREA = (0.6, 1.0)  # share of the image that a random crop keeps
# What a configuration says of where it came from and not of what is computed.
PROVENANCE = {"_name_or_path", "architectures", "auto_map", "dtype", "processor_class", "transformers_version"}

ImageToPixels = Callable[[list[PILImage.Image]], torch.Tensor]


@dataclass(frozen=True)
class View:
    """One way to look at every image of a data set; a cache holds one.

    Args:
        mirror: Left and right change places.
        crop: Number of a random crop, 1 or more: 60 to 100 % of the area in the image's own proportions, mirrored half
            of the time. The same number always cuts the same part out of the image at a place in the data set. None:
            the whole image.
    """

    mirror: bool = False
    crop: int | None = None

    def __call__(self, image: PILImage.Image, index: int) -> PILImage.Image:
        mirror = self.mirror
        if self.crop is not None:
            random = np.random.default_rng((self.crop, index))
            scale = random.uniform(*CROPPED_AREA) ** 0.5
            width, height = round(image.width * scale), round(image.height * scale)
            left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
            image = image.crop((left, top, left + width, top + height))
            mirror ^= bool(random.integers(2))
        return ImageOps.mirror(image) if mirror else image

    def __str__(self) -> str:
        name = "whole" if self.crop is None else f"crop {self.crop}"
        return f"{name}, mirrored" if self.mirror else name


class Regions(torch.utils.data.Dataset):
    """The regions of every image, `(P, D)` each, mapped from disk: memory does not grow with their number."""

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
        return self._shards[index // IMAGES_A_SHARD][index % IMAGES_A_SHARD].clone()  # (P, D), writing into it is safe


class RegionCache:
    """Caches of one encoder with one image processor.

    Args:
        folder: Where caches live.
        encoder: Frozen vision encoder, `(B, 3, height, width)` -> `(B, P, D)`.
        encoder_config: Its configuration; part of the key.
        to_pixel_values: Images -> `(B, 3, height, width)`.
        settings: All that `to_pixel_values` depends on, the image processor's `to_dict()`; part of the key.
        precision: `"float16"` or `"bfloat16"`, of the numbers on disk; part of the key.
        batch_size: Images a call of the encoder. With more, a CPU spends as long on fresh memory for the first layers'
            outputs as on computing them.
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
        """Regions of every image of a data set, from the cache, or made now together with the other processes.

        Runs on every process that shares the work, with its number `process` of `processes` on this machine; the first
        one shows a progress bar. Each process leaves when all shards are there.

        Args:
            dataset: Rows with columns `image` and `image_digest`, as `load_captions` gives them.
            view: How each image is looked at; the whole image when not given.

        Raises:
            OSError: Not enough free disk; says how much is needed.
            ValueError: The encoder's output doesn't fit into half precision.
        """
        view = view or View()
        home = self.home(dataset, view)
        shape = (len(dataset), *self.region_shape)
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        shards = self._shards(home, len(dataset))
        missing = sum(size for path, size in shards.items() if self._is_missing(path, size))
        if missing:
            self._check_free_disk(home, missing)
            made_of = {"shape": shape, "dtype": str(self.dtype), "view": str(view), "settings": self.settings}
            _write_whole(home / "cache.json", json.dumps(made_of, indent=2).encode())
            self._encode_missing(dataset, view, shards, process, processes)
        return Regions(list(shards), shape, self.dtype)

    def home(self, dataset: Dataset, view: View) -> Path:
        """Folder of this data set's cache."""
        digest = hashlib.sha256(f"{self._encoder_digest}|{self.settings}|{self.dtype}|{view}".encode())
        digest.update("".join(dataset["image_digest"][:]).encode())
        return self.folder / digest.hexdigest()[:32]

    def missing_bytes(self, dataset: Dataset, view: View | None = None) -> int:
        """What is still to be written for this data set."""
        shards = self._shards(self.home(dataset, view or View()), len(dataset))
        return sum(size for path, size in shards.items() if self._is_missing(path, size))

    @cached_property
    def region_shape(self) -> tuple[int, int]:
        """`(P, D)`, found by encoding a grey image."""
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
                f"the encoder's output doesn't fit into {self.dtype}: it can't be cached so. Take bfloat16, or train "
                "without the cache."
            )
        return regions

    def _encode_missing(self, dataset, view, shards: dict[Path, int], process: int, processes: int) -> None:
        numbered = list(enumerate(shards.items()))
        first = len(shards) * process // processes
        progress = tqdm(total=len(dataset), desc=f"encoding photos, {view}", unit="photo", disable=process > 0)
        with progress:
            for number, (path, size) in [*numbered[first:], *numbered[:first]]:
                start = number * IMAGES_A_SHARD
                stop = min(start + IMAGES_A_SHARD, len(dataset))
                if self._is_missing(path, size):
                    batches = []
                    for begin in range(start, stop, self.batch_size):
                        images = decode_photos(dataset, range(begin, min(begin + self.batch_size, stop)))
                        batches.append(self._encode([view(image, begin + k) for k, image in enumerate(images)]))
                        progress.update(len(images))
                    numpy = torch.cat(batches).view(torch.int16).numpy()  # numpy has no bfloat16
                    _write_whole(path, numpy.tobytes())
                else:
                    progress.update(stop - start)

    def _shards(self, home: Path, num_images: int) -> dict[Path, int]:
        """Files of a cache in their order, with the bytes that each has when it is whole."""
        places, width = self.region_shape
        sizes = (num * places * width * self.dtype.itemsize for num in _images_of_shards(num_images))
        return {home / f"shard-{number:05d}.bin": size for number, size in enumerate(sizes)}

    @staticmethod
    def _is_missing(path: Path, size: int) -> bool:
        """Whether a shard is still to be made. A file of another size was torn by a power cut: it is named."""
        if not path.exists():
            return True
        found = path.stat().st_size
        if found != size:
            warnings.warn(f"{path} is torn ({found} of {size} bytes): it is made anew.", stacklevel=4)
        return found != size

    def _check_free_disk(self, folder: Path, needed: int) -> None:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                f"the feature cache needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: make room, or "
                "name another data.cache_folder."
            )


def _without_provenance(settings: dict[str, Any]) -> str:
    kept = {name: value for name, value in settings.items() if name not in PROVENANCE}
    return json.dumps(kept, sort_keys=True, default=str)


def _images_of_shards(num_images: int) -> list[int]:
    """How many images each shard holds."""
    return [min(IMAGES_A_SHARD, num_images - start) for start in range(0, num_images, IMAGES_A_SHARD)]


def _remove_leftovers(home: Path) -> None:
    """Removes what killed processes had begun to write. Another, of any machine, may be writing just now."""
    for leftover in home.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AFTER:
                leftover.unlink()


def _write_whole(path: Path, content: bytes) -> None:
    write_atomically(path, content, writer=f"{platform.node()}.{os.getpid()}")


class CaptionedRegions(torch.utils.data.Dataset):
    """Rows `{"regions": (P, D) tensor, "captions": [...]}`: a data set whose images were encoded before.

    Args:
        views: One cache an augmentation of the images; each epoch draws one of them for each image.
        captions: The captions of each image.
        seed: Of the draw, which depends on nothing but seed, epoch and image.
    """

    def __init__(self, views: Sequence[Regions], captions: Sequence[list[str]], seed: int = 0):
        self.views = views
        self.captions = captions
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        view = 0
        if len(self.views) > 1:
            view = int(np.random.default_rng((self.seed, self.epoch, index)).integers(len(self.views)))
        return {"regions": self.views[view][index], "captions": self.captions[index]}


class CaptionedImages(torch.utils.data.Dataset):
    """Rows `{"image": PIL image, "captions": [...]}`, for an encoder that learns too.

    Args:
        dataset: Rows with columns `image` and `captions`.
        augment: A new random crop of each image each epoch, mirrored half of the time.
        color_jitter: Brightness, contrast and saturation of a crop each change by up to this share, [0, 1).
        seed: Of crops and colors, which depend on nothing but seed, epoch and image.
    """

    def __init__(self, dataset: Dataset, augment: bool = True, color_jitter: float = 0.0, seed: int = 0):
        self.images = dataset.select_columns([name for name in ("image", "image_id") if name in dataset.column_names])
        self.captions = list(dataset["captions"])
        self.augment = augment
        self.color_jitter = color_jitter
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        image = ImageOps.exif_transpose(*decode_photos(self.images, [index]))
        if self.augment:
            image = View(crop=1 + self.seed * 1_000_003 + self.epoch)(image, index)
            if self.color_jitter:
                image, random = image.convert("RGB"), np.random.default_rng((self.seed, self.epoch, index))
                for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                    image = enhance(image).enhance(random.uniform(1 - self.color_jitter, 1 + self.color_jitter))
        return {"image": image, "captions": self.captions[index]}
