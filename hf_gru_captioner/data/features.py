"""A cache on disk of what a frozen vision encoder says of each image, so that training runs the encoder once.

    <folder>/<key>/regions.f16      (images, P, D) half-precision numbers, read through a memory map
    <folder>/<key>/cache.json       the shape, and what made it

The key covers all that the numbers depend on: the encoder's configuration and weights, the image processor's settings
and the bytes of every image in their order. So a cache is never wrong, only absent. It is written beside its place and
renamed when whole. A trainable encoder or random augmentation must not be cached, which is the caller's to see to.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from PIL import ImageOps
from torch import nn

CROPPED_AREA = (0.6, 1.0)  # share of the image that a random crop keeps

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


def cache_regions(
    dataset: Dataset,
    encoder: nn.Module,
    to_pixel_values: ImageToPixels,
    settings: str,
    folder: str | Path,
    *,
    view: View | None = None,
    batch_size: int = 32,
    progress: Callable[[Iterator[int], int], Iterator[int]] = lambda batches, total: batches,
) -> np.memmap:
    """Regions of every image of a data set, from the cache or made now. Runs on one process; the others then read it.

    Args:
        dataset: Rows with a column `image`.
        encoder: Frozen vision encoder, `(B, 3, height, width)` -> `(B, P, D)`.
        to_pixel_values: Images -> `(B, 3, height, width)`.
        settings: All that `to_pixel_values` and the encoder depend on but its weights, as text. Part of the key.
        folder: Where caches live.
        view: How each image is looked at; the whole image when not given.
        batch_size: Images a call of the encoder.
        progress: Wraps the batches, given their number, to show a progress bar.

    Returns:
        `(images, P, D)` fp16, mapped from disk, in the order of the data set.

    Raises:
        OSError: Not enough free disk; says how much is needed.
    """
    view = view or View()
    key = _key(dataset, encoder, settings, view)
    home = Path(folder).expanduser() / key
    if not home.exists():
        aside = home.with_name(f"{key}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        shape = _write(dataset, encoder, to_pixel_values, aside / "regions.f16", view, batch_size, progress)
        (aside / "cache.json").write_text(
            json.dumps({"shape": shape, "view": str(view), "settings": settings}, indent=2)
        )
        aside.rename(home)
    shape = json.loads((home / "cache.json").read_text())["shape"]
    return np.memmap(home / "regions.f16", dtype=np.float16, mode="c", shape=tuple(shape))  # "c": writes stay in memory


def _write(dataset, encoder, to_pixel_values, path: Path, view: View, batch_size, progress) -> tuple[int, ...]:
    shape: tuple[int, ...] = (0,)
    device = next(encoder.parameters()).device
    starts = range(0, len(dataset), batch_size)
    with path.open("wb") as file, torch.inference_mode():
        for start in progress(iter(starts), len(starts)):
            images = dataset[start : start + batch_size]["image"]
            images = [view(image, start + offset) for offset, image in enumerate(images)]
            regions = encoder(to_pixel_values(images).to(device)).to("cpu", torch.float16).numpy()  # (B, P, D)
            if not np.isfinite(regions).all():
                raise ValueError("the encoder's output doesn't fit into half precision: it can't be cached.")
            if start == 0:
                shape = (len(dataset), *regions.shape[1:])
                _check_free_disk(path, int(np.prod(shape)) * regions.itemsize)
            regions.tofile(file)
    return shape


def _check_free_disk(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(f"the feature cache needs {needed / 1e9:.1f} GB, {path.parent} has {free / 1e9:.1f} GB free.")


def _key(dataset: Dataset, encoder: nn.Module, settings: str, view: View) -> str:
    digest = hashlib.sha256(f"{settings}|{view}".encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for row in dataset.select_columns(["image"]).cast_column("image", Image(decode=False)):
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]


class CaptionedRegions(torch.utils.data.Dataset):
    """Rows `{"regions": (P, D) tensor, "captions": [...]}`: a data set whose images were encoded before.

    Args:
        views: One cache an augmentation of the images, all of shape `(images, P, D)`; each reading of a row draws one
            of them with torch's random generator.
        captions: The captions of each image.
    """

    def __init__(self, views: Sequence[np.ndarray], captions: Sequence[list[str]]):
        self.views = views
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict:
        view = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        return {"regions": torch.from_numpy(self.views[view][index]), "captions": self.captions[index]}
