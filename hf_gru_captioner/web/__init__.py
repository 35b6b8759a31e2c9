"""The demo: a page where people drop photos and look around in the captions, safe to put on the open web."""

from ..untrusted_images import LIMITS, Limits, RefusedError, fetch_picture, is_public, open_picture, read_pictures
from .page import build_page, launch, serve
from .service import BusyError, Captioned, CaptionService, Decoding, ServicePool

__all__ = [
    "LIMITS",
    "BusyError",
    "CaptionService",
    "Captioned",
    "Decoding",
    "Limits",
    "RefusedError",
    "ServicePool",
    "build_page",
    "fetch_picture",
    "is_public",
    "launch",
    "open_picture",
    "read_pictures",
    "serve",
]
