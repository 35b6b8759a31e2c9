"""Captions in photo metadata, where digiKam, Immich, PhotoPrism and accessibility tools look for them.

A caption becomes the description (XMP `dc:description`, and the IPTC-IIM caption if the format supports it) and the
alternative text (`Iptc4xmpCore:AltTextAccessibility`, IPTC Photo Metadata 2021.1), either in the photo's own file or in
a sidecar `photo.jpg.xmp`. Exiv2 (https://exiv2.org) reads and writes them, through pyexiv2.

A new file is written, compared with the old one, and renamed: unless the picture is identical byte for byte (for TIFF
and JPEG 2000 pixel for pixel) and all other metadata is unchanged, the photo is left alone. Exiv2 0.28.8, for example,
drops the pages of a TIFF after the fourth.
"""

import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import brief, needs_extra
from ..files import atomic_path
from ..model.image_loading_gru_captioner import RAW_SUFFIXES
from ..untrusted_images import ADDRESSES
from .changes import Change

DESCRIPTION, ALT_TEXT = "Xmp.dc.description", "Xmp.iptc.AltTextAccessibility"
IPTC_CAPTION, IPTC_CHARSET, UTF_8 = "Iptc.Application2.Caption", "Iptc.Envelope.CharacterSet", "\x1b%G"
EXIF_DESCRIPTION = "Exif.Image.ImageDescription"
FIELDS = {DESCRIPTION: "description", ALT_TEXT: "alternative text", IPTC_CAPTION: "IPTC caption"}
DEFAULT_LANGUAGE = 'lang="x-default"'
MAX_IPTC = 2000  # bytes of a caption
CAN_HOLD = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/jp2")  # formats that Exiv2 can write texts to
# Meaningless descriptions written by cameras.
NO_DESCRIPTION = ("OLYMPUS DIGITAL CAMERA", "SONY DSC", "MINOLTA DIGITAL CAMERA", "DCIM", "DIGITAL CAMERA", "SAMSUNG")
# TIFF tags for offsets and sizes, and for metadata that is compared separately.
PLACES = (
    *("StripOffsets", "StripByteCounts", "TileOffsets", "TileByteCounts", "SubIFDs", "ExifTag", "GPSTag"),
    *("InteroperabilityTag", "JPEGInterchangeFormat", "XMLPacket", "IPTCNAA", "ImageResources"),
)
EMPTY_SIDECAR = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta><?xpacket end="w"?>'
).encode()
MUTE = 4  # Exiv2's log level; otherwise it warns of every oddity in maker notes


class Texts(NamedTuple):
    """The metadata of a file, by Exiv2's names."""

    xmp: dict[str, Any]
    iptc: dict[str, Any]
    exif: dict[str, Any]

    def of(self, field: str) -> str:
        """A text in its default language, otherwise in the first one present; empty if there is none."""
        value = (self.iptc if field == IPTC_CAPTION else self.xmp).get(field, "")
        if isinstance(value, Mapping):
            value = value.get(DEFAULT_LANGUAGE) or next(iter(value.values()), "")
        return str(value).strip()

    def descriptions(self) -> list[str]:
        exif = str(self.exif.get(EXIF_DESCRIPTION, "")).strip()
        texts = [self.of(DESCRIPTION), self.of(IPTC_CAPTION), "" if exif.upper() in NO_DESCRIPTION else exif]
        return list(filter(None, texts))


NO_TEXTS = Texts({}, {}, {})


class Metadata:
    """
    Args:
        in_file: Whether captions are written to the photo's own file.
        in_sidecar: Whether they are written to a sidecar.
        overwrite: Whether other texts are replaced; otherwise they are kept, wherever they are, since programs show
            one or the other.

    Raises:
        MissingExtraError: pyexiv2 is not installed.
    """

    def __init__(self, in_file: bool = False, in_sidecar: bool = False, overwrite: bool = False):
        with needs_extra("metadata"):
            import pyexiv2
        pyexiv2.set_log_level(MUTE)
        self._in_file, self._in_sidecar, self._overwrite = in_file, in_sidecar, overwrite

    def is_taken(self, photo: str) -> bool:
        if self._overwrite or photo.startswith(ADDRESSES):
            return False
        try:
            own, beside = (_texts_of(path if path.exists() else None) for path in (_path(photo), _sidecar_of(photo)))
        except (OSError, ValueError):
            return False  # reported when the caption is written
        wanted = [texts for texts, is_wanted in ((own, self._in_file), (beside, self._in_sidecar)) if is_wanted]
        return all(texts.descriptions() and texts.of(ALT_TEXT) for texts in wanted)

    def keep(self, photo: str, captions: Sequence[str], dry_run: bool = False) -> list[Change]:
        if photo.startswith(ADDRESSES):
            raise ValueError(f"{photo} is a URL: it has no metadata to write to.")
        path, sidecar = _path(photo), _sidecar_of(photo)
        content, beside = _read(path), _read(sidecar)
        if content is None:
            raise FileNotFoundError(f"{photo}: no such file.")
        both = [_texts_of(content), _texts_of(beside, sidecar)]
        caption = captions[0]
        others = {text for texts in both for text in texts.descriptions()} - {caption}
        fields = [] if others and not self._overwrite else [DESCRIPTION, IPTC_CAPTION]
        if self._overwrite or not {texts.of(ALT_TEXT) for texts in both} - {caption, ""}:
            fields.append(ALT_TEXT)
        changes: list[Change] = []
        if self._in_sidecar:
            changes += _keep_in(sidecar, str(sidecar), beside or EMPTY_SIDECAR, both[1], fields, caption, dry_run)
        if self._in_file:
            if path.suffix.lower() in RAW_SUFFIXES:
                raise ValueError(f"{photo} is a camera's raw file, which is not modified: use --write xmp.")
            changes += _keep_in(path, photo, content, both[0], fields, caption, dry_run)
        return changes


def _path(photo: str) -> Path:
    return Path(os.path.realpath(os.path.expanduser(photo)))  # preserves symlinks


def _sidecar_of(photo: str) -> Path:
    return Path(os.path.expanduser(photo) + ".xmp")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _texts_of(content: bytes | Path | None, name: Path | None = None) -> Texts:
    """The metadata of a file; given a path, only that is read. Empty for formats that Exiv2 doesn't support.

    Raises:
        ValueError: A sidecar, given by `name`, can't be read.
    """
    if content is None:
        return NO_TEXTS
    try:
        with _opened(content) as image:
            return _texts(image)
    except RuntimeError as error:
        if name is None:
            return NO_TEXTS
        raise ValueError(f"{name} can't be read ({brief(error)}); it is unchanged.") from error


@contextmanager
def _opened(content: bytes | Path) -> Iterator[Any]:
    import pyexiv2

    with pyexiv2.ImageData(content) if isinstance(content, bytes) else pyexiv2.Image(str(content)) as image:
        yield image


def _texts(image: Any) -> Texts:
    try:
        iptc = image.read_iptc()
    except UnicodeDecodeError:  # old files use the encoding of the machine that wrote them
        iptc = image.read_iptc(encoding="latin-1")
    return Texts(image.read_xmp(), iptc, _exif(image))


def _exif(image: Any) -> dict[str, Any]:
    try:
        return dict(image.read_exif())
    except UnicodeDecodeError:
        return dict(image.read_exif(encoding="latin-1"))


def _keep_in(
    file: Path, name: str, content: bytes, texts: Texts, fields: Sequence[str], caption: str, dry_run: bool
) -> list[Change]:
    """Writes the fields that differ, if the file supports them; `name` is the file's name in messages."""
    is_sidecar = file.suffix == ".xmp"
    try:
        with _opened(content) as image:
            kind, can_write = image.get_mime_type(), image.get_access_mode()
            if not is_sidecar and kind not in CAN_HOLD:
                raise ValueError(f"{name}: a file of this format ({kind}) can't hold a caption: use --write xmp.")
            xmp, iptc = _wanted(texts, fields, caption)
            if is_sidecar or not (can_write["iptc"] or "").endswith("write"):
                iptc = {}
            changes = [
                Change(Path(name), FIELDS[field], texts.of(field), caption)
                for field in fields
                if field in xmp or field in iptc
            ]
            if dry_run or not changes:
                return changes
            if xmp:
                image.modify_xmp(xmp)
            if iptc:
                image.modify_iptc(iptc)
            written = image.get_bytes()
        with _opened(written) as image:
            _check_kept(texts, _texts(image), {*xmp, *iptc})
        if not is_sidecar:
            _check_picture(kind, content, written)
    except RuntimeError as error:  # Exiv2's
        advice = "it is unchanged" if is_sidecar else "use --write xmp"
        raise ValueError(f"{name}: its metadata can't be written ({brief(error)}): {advice}.") from error
    _replace(file, written)
    return changes


def _wanted(texts: Texts, fields: Sequence[str], caption: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The XMP and IPTC fields that differ. Texts in other languages are kept."""
    xmp: dict[str, Any] = {}
    iptc: dict[str, Any] = {}
    for field in fields:
        if field == IPTC_CAPTION:
            shortened = caption.encode()[:MAX_IPTC].decode(errors="ignore")
            is_utf_8 = not texts.iptc or texts.iptc.get(IPTC_CHARSET) == UTF_8
            if texts.of(field) != shortened and (is_utf_8 or caption.isascii()):  # other texts keep their encoding
                iptc[field] = shortened
                if not texts.iptc:
                    iptc[IPTC_CHARSET] = UTF_8
        elif texts.of(field) != caption:
            others = texts.xmp.get(field)
            xmp[field] = {**(others if isinstance(others, Mapping) else {}), DEFAULT_LANGUAGE: caption}
    return xmp, iptc


def _check_kept(before: Texts, after: Texts, written: set[str]) -> None:
    """
    Raises:
        RuntimeError: Other metadata has changed.
    """
    for old, new in zip(before, after, strict=True):
        for name in (old.keys() | new.keys()) - written:
            if name in old and old[name] != new.get(name) and name.rpartition(".")[2] not in PLACES:
                raise RuntimeError(f"{name} would be lost")


def _check_picture(kind: str, before: bytes, after: bytes) -> None:
    """
    Raises:
        RuntimeError: The picture has changed.
    """
    parts = {"image/jpeg": _jpeg_parts, "image/png": _png_parts, "image/webp": _webp_parts}.get(kind, _pixels)
    try:
        is_same = list(parts(before)) == list(parts(after))
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise RuntimeError(f"the picture can't be compared: {brief(error)}") from error
    if not is_same:
        raise RuntimeError("the picture would be changed")


def _jpeg_parts(content: bytes) -> Iterator[bytes]:
    """The segments except metadata, then everything from the first scan to the end of the file."""
    position = 2
    while content[position : position + 1] == b"\xff" and content[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position:end]
        if not segment[4:].startswith((b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0")):
            yield segment
        position = end
    yield content[position:]


def _png_parts(content: bytes) -> Iterator[bytes]:
    position = 8
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] not in (b"iTXt", b"tEXt", b"zTXt", b"eXIf"):
            yield content[position:end]
        position = end


def _webp_parts(content: bytes) -> Iterator[bytes]:
    position = 12
    while position < len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        if content[position : position + 4] not in (b"VP8X", b"EXIF", b"XMP "):
            yield content[position : position + 8 + size]
        position += 8 + size + size % 2


def _pixels(content: bytes) -> Iterator[bytes]:
    import hashlib

    from PIL import Image, ImageSequence

    with Image.open(io.BytesIO(content)) as image:
        for page in ImageSequence.Iterator(image):
            yield f"{page.mode} {page.size}".encode() + hashlib.sha256(page.tobytes()).digest()


def _replace(file: Path, content: bytes) -> None:
    """Replaces a file atomically, keeping its permissions."""
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)
        if file.exists():
            state = file.stat()
            with suppress(OSError):  # not supported by all file systems
                shutil.copystat(file, temporary)
            with suppress(OSError, AttributeError):
                os.chown(temporary, state.st_uid, state.st_gid)
            os.utime(temporary)  # other programs detect the change by the time
