"""Rows in, batches out: where captions come from, the cache of encoder outputs, the order, the collator."""

from .batches import EpochBatches, StreamedBatches
from .collator import CaptionCollator
from .features import CaptionedImages, CaptionedRegions, RegionCache, Regions, View
from .sources import decode_photos, load_captions, stream_captions

__all__ = [
    "CaptionCollator",
    "CaptionedImages",
    "CaptionedRegions",
    "EpochBatches",
    "RegionCache",
    "Regions",
    "StreamedBatches",
    "View",
    "decode_photos",
    "load_captions",
    "stream_captions",
]
