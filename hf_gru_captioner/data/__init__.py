"""Captioned images: sources, the cache of encoder outputs, the order of batches, the collator."""

from ..errors import needs_extra

with needs_extra("train"):
    from .batches import EpochBatches, StreamedBatches
    from .collator import CaptionCollator
    from .features import CaptionedImages, CaptionedRegions, RegionCache, Regions, View
    from .mixture import MixedSource, MixedStream, Mixture
    from .sources import NoSplitError, decode_images, load_captions, stream_captions

__all__ = [
    "CaptionCollator",
    "CaptionedImages",
    "CaptionedRegions",
    "EpochBatches",
    "MixedSource",
    "MixedStream",
    "Mixture",
    "NoSplitError",
    "RegionCache",
    "Regions",
    "StreamedBatches",
    "View",
    "decode_images",
    "load_captions",
    "stream_captions",
]
