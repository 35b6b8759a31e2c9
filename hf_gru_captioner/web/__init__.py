"""The demo: a page where people drop photos and look around in the captions, safe to put on the open web."""

from .intake import LIMITS, Limits, RefusedError, fetch_picture, is_public, open_picture, read_pictures
from .page import build_page
from .service import BusyError, Captioned, CaptionService, Decoding

__all__ = [
    "LIMITS",
    "BusyError",
    "CaptionService",
    "Captioned",
    "Decoding",
    "Limits",
    "RefusedError",
    "build_page",
    "fetch_picture",
    "is_public",
    "open_picture",
    "read_pictures",
]
