"""Captioned images: sources, the cache of encoder outputs, batch sampling, the collator.

Names are imported lazily: checking whether a source can be read needs neither torch nor datasets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import needs_extra

_MODULE_OF = {
    "CaptionCollator": "collator",
    "CaptionedImages": "features",
    "CaptionedRegions": "features",
    "EpochBatches": "batches",
    "MixedSource": "mixture",
    "MixedStream": "mixture",
    "Mixture": "mixture",
    "NoSplitError": "recognition",
    "ReadingOptions": "reading",
    "RegionCache": "features",
    "Regions": "features",
    "StreamedBatches": "batches",
    "View": "features",
    "check_source": "recognition",
    "decode_images": "sources",
    "is_drawn": "recognition",
    "load_captions": "sources",
    "stream_captions": "sources",
}

__all__ = [
    "CaptionCollator",
    "CaptionedImages",
    "CaptionedRegions",
    "EpochBatches",
    "MixedSource",
    "MixedStream",
    "Mixture",
    "NoSplitError",
    "ReadingOptions",
    "RegionCache",
    "Regions",
    "StreamedBatches",
    "View",
    "check_source",
    "decode_images",
    "is_drawn",
    "load_captions",
    "stream_captions",
]

if TYPE_CHECKING:
    from .batches import EpochBatches, StreamedBatches
    from .collator import CaptionCollator
    from .features import CaptionedImages, CaptionedRegions, RegionCache, Regions, View
    from .mixture import MixedSource, MixedStream, Mixture
    from .reading import ReadingOptions
    from .recognition import NoSplitError, check_source, is_drawn
    from .sources import decode_images, load_captions, stream_captions


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_extra("train"):
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
