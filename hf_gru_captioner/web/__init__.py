"""The demo: a web page that captions images and shows how, safe to serve to the public."""

from ..errors import needs_extra
from ..untrusted_images import LIMITS, Limits, RefusedError, fetch_image, is_public, open_image, read_images

with needs_extra("demo"):
    from .page import build_page, launch, serve
    from .service import BusyError, Captioned, CaptionService, ClosedError, Decoding, ServicePool

__all__ = [
    "LIMITS",
    "BusyError",
    "CaptionService",
    "Captioned",
    "ClosedError",
    "Decoding",
    "Limits",
    "RefusedError",
    "ServicePool",
    "build_page",
    "fetch_image",
    "is_public",
    "launch",
    "open_image",
    "read_images",
    "serve",
]
