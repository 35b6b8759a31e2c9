"""Rows in, batches out: where captions come from, the cache of encoder outputs, the collator."""

from .collator import CaptionCollator
from .features import CaptionedRegions, View, cache_regions
from .sources import load_captions

__all__ = ["CaptionCollator", "CaptionedRegions", "View", "cache_regions", "load_captions"]
