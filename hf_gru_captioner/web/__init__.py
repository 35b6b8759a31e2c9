"""The demo: a web page that captions images and shows how, safe to serve on the public web."""

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
