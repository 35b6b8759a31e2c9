"""Loads any image as upright 8-bit RGB. Needs Pillow and NumPy, not torch, so that graphs run without it.

HEIC, JPEG XL and camera raw files are read by optional packages, pillow-heif, pillow-jxl-plugin and rawpy, which are
imported for the first such file.
"""

import importlib
import importlib.util
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeGuard, Union
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]

MAX_PIXELS = 50_000_000  # decoded at once; less than 500 MB including the decoders' buffers
MAX_PIXELS_OF = {
    "JPEG2000": 16_000_000,  # its decoder needs 24 bytes and 0.1 microseconds per pixel
    "WEBP": 25_000_000,  # 16 bytes
}
MAX_PIXELS_IN_PYTHON = 1_000_000  # for formats decoded in Python, at up to 2 microseconds per pixel
MAX_SAMPLES = 450_000_000  # of a JPEG that is decoded at reduced size
MAX_SAMPLES_HELD = 200_000_000  # with several scans, at 2 bytes each
MAX_SCANS = 50  # of a progressive JPEG; ten are usual, and a scan of a few bytes takes as long as decoding all pixels
MAX_SCANNED = 256_000_000  # bytes of a JPEG whose scans are counted
# Formats that may run Ghostscript indefinitely, contain images of other sizes than stated, or decompression bombs.
REFUSED_FORMATS = ("BLP", "EPS", "FITS", "ICNS", "IPTC")
_ONLY_RECOGNIZED = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow can't decode them by itself
LARGE = 12_000_000  # pixels; larger images are decoded by one thread at a time
MAX_DOWNLOAD = 64_000_000  # bytes
DOWNLOAD_BLOCK = 1 << 16  # bytes
GAP = 3.0  # reducing_gap that Pillow calls indistinguishable from resizing in one step
STRIP = 1_000_000  # pixels of a larger image converted to RGB at once
ENOUGH = 2  # times the target size: decoding more pixels makes no visible difference

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
JXL_SUFFIXES = (".jxl",)
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
EXTRA_READERS = {"pillow_heif": HEIC_SUFFIXES, "pillow_jxl": JXL_SUFFIXES, "rawpy": RAW_SUFFIXES}
INSTALL_READERS = "pip install pillow-heif pillow-jxl-plugin rawpy"  # no extra: this file is copied into checkpoints
MAX_NAME_SHOWN = 260  # characters of a name in a message; file systems allow 255, more was probably image data
_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")  # signatures of a codestream and a container
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_DNG_VERSION, _SUBFILE_TYPE = 50706, 254  # tags of TIFF
_IS_REDUCED = 1  # bit of _SUBFILE_TYPE: a small version of another image in the file

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # all except those inside a scan

_large_image_lock = threading.Lock()

ImageSource = Union[
    str,
    os.PathLike,
    bytes,
    bytearray,
    memoryview,
    IO[bytes],
    Mapping[str, Any],
    Image.Image,
    np.ndarray,
    "torch.Tensor",
]


def load_image(
    source: ImageSource,
    timeout: float = 10.0,
    size: tuple[int, int] | None = None,
    resample: int = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Loads any image as upright 8-bit RGB, with transparency over white.

    The result has pixels only, no orientation, color profile or other metadata, so loading it again changes nothing.

    Args:
        source: Path, `http(s)://` URL, `data:` URI, the bytes of an image file, a file opened in binary mode, a
            `{"bytes": ..., "path": ...}` from `datasets`, PIL image, or an array or tensor `(H, W)`, `(H, W, C)` or
            `(C, H, W)` with 1, 3 or 4 channels: 8- or 16-bit integers, or floats in [0, 1].
            The first frame of an animation is used, of a PIL image the current one, and the largest preview of a
            camera's raw file.
        timeout: Seconds for a download to complete.
        size: Height and width to resize to. A large JPEG is then decoded at reduced size, at least twice this height
            and width, which is much faster.
        resample: Filter for resizing, one of `PIL.Image.Resampling`.

    Raises:
        FileNotFoundError: No file at that path.
        ValueError: Not an image, a damaged one, or one with more than 50 million pixels (WebP: 25, JPEG 2000: 16, rare
            formats that Pillow decodes in Python: 1). The message says which.
        TypeError: Not one of the kinds above.
    """
    if isinstance(source, Image.Image):
        return _to_upright_rgb(source, "the image", size, resample)
    if _is_array(source):
        return _to_upright_rgb(_from_array(_to_numpy(source)), "the array", size, resample)
    image, name = _open(_path_or_bytes(source), timeout)
    with image:  # closes its file
        whole = image.size
        if size is not None:
            _draft(image, name, ENOUGH * max(size))  # not yet upright, hence the max
        # A progressive JPEG is held in memory at full size even if decoded at reduced size.
        width, height = whole if image.info.get("progressive") else image.size
        with _one_at_a_time(width * height):
            return _to_upright_rgb(image, name, size, resample, rewind=True)


def readable_suffixes() -> set[str]:
    """Lower-case suffixes of files that load_image can read with the installed packages."""
    Image.init()
    read = Image.OPEN.keys() - {*REFUSED_FORMATS, *_ONLY_RECOGNIZED}
    builtin = {ending for ending, name in Image.registered_extensions().items() if name in read}
    return builtin.union(*(suffixes for package, suffixes in EXTRA_READERS.items() if is_installed(package)))


def register_readers() -> None:
    """Registers HEIC and JPEG XL with Pillow for this process, if the packages are installed."""
    if is_installed("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    if is_installed("pillow_jxl"):
        _register_jxl()


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, or set to None
        return False


def reader_of(beginning: bytes) -> str | None:
    """The package that reads a file with this beginning."""
    if beginning.startswith(_JXL):
        return "pillow_jxl"
    if beginning[4:8] == b"ftyp":  # ISO base media; other brands are videos
        brand = beginning[8:12]
        if brand == b"crx ":
            return "rawpy"
        return "pillow_heif" if brand[:2] in (b"he", b"mi", b"ms") and brand not in (b"mis1",) else None
    return "rawpy" if beginning.startswith((b"FUJIFILM", b"IIRO", b"IIRS", b"IIU\0", b"\0MRM", b"FOVb")) else None


def is_raw(image: Image.Image, beginning: bytes) -> bool:
    """Whether an image that Pillow opens as TIFF is a camera's raw file, whose first image is a thumbnail."""
    if image.format != "TIFF":
        return False
    tags: Any = image.tag_v2  # type: ignore[attr-defined]  # of a TIFF
    return bool(_DNG_VERSION in tags or tags.get(_SUBFILE_TYPE, 0) & _IS_REDUCED or beginning[8:10] == b"CR")


def _one_at_a_time(num_pixels: int) -> AbstractContextManager:
    """Lets only one thread at a time decode a large image, to limit memory."""
    return _large_image_lock if num_pixels > LARGE else nullcontext()


def _after_fork() -> None:
    """Replaces the lock, which a thread that doesn't exist in the new process may hold forever."""
    global _large_image_lock
    _large_image_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_one_image(images: ImageSource | Sequence[ImageSource]) -> bool:
    """Whether this is one image rather than a sequence of them; a 4-d array or tensor is a sequence."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, Image.Image)
    is_one = isinstance(images, kinds) or _is_array(images) or hasattr(images, "read")
    return is_one and getattr(images, "ndim", 0) != 4


def _to_upright_rgb(
    image: Image.Image, name: str, size: tuple[int, int] | None, resample: int, rewind: bool = False
) -> Image.Image:
    _check_pixels(image, name)
    try:
        num_scans = count_scans(image) if image.info.get("progressive") else 0
        if num_scans > MAX_SCANS:
            raise ValueError(f"it has {num_scans} scans")
        first = getattr(image, "_min_frame", 0)
        # HEIF's primary image may be any in the file; seeking only if needed avoids other frames, which may be damaged.
        if rewind and image.tell() > first and image.format != "HEIF":
            image.seek(first)
        image.load()  # before its orientation is read: Pillow turns a TIFF here, and removes the tag
    except Exception as error:  # Pillow raises errors of any kind for damaged files
        raise ValueError(f"{name} can't be read to its end, it may be damaged: {_reason(error)}.") from error
    _check_pixels(image, name)  # an icon may contain an image of another size than its header says
    turn = _turn(image)
    try:
        if size is None:
            loaded = _to_rgb(image if turn is None else image.transpose(turn), _is_deep(image))
        else:
            loaded = _scale(image, size if turn in _ON_THEIR_SIDE else size[::-1], Image.Resampling(resample))
            loaded = loaded if turn is None else loaded.transpose(turn)
    except Exception as error:
        raise ValueError(f"{name} can't be made an RGB image: {_reason(error)}.") from error
    loaded.info = {}  # Pillow copies metadata, including the orientation
    return loaded


def _check_pixels(image: Image.Image, name: str) -> None:
    most = MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if any(tile.codec_name in Image.DECODERS for tile in getattr(image, "tile", ())):  # decoders in Python
        most = MAX_PIXELS_IN_PYTHON
    if image.width * image.height > most:
        raise ValueError(f"{name} has {image.width} x {image.height} pixels, more than {most:,}: scale it down.")


def _draft(image: Image.Image, name: str, side: int) -> None:
    """Makes a JPEG decode at reduced size, with at least this number of pixels per side."""
    num_samples = image.width * image.height * len(image.getbands())
    try:
        if num_samples <= MAX_SAMPLES_HELD or (num_samples <= MAX_SAMPLES and count_scans(image) <= 1):
            image.draft(None, (side, side))
    except Exception as error:  # as above
        raise ValueError(f"{name} can't be read: {_reason(error)}.") from error


def count_scans(image: Image.Image) -> int:
    """The number of scans in a JPEG that is not decoded yet; 0 for all other images."""
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("JPEG", "MPO"):
        return 0
    file.seek(0)
    content, position, num_scans = file.read(MAX_SCANNED), 2, 0
    if len(content) == MAX_SCANNED:
        raise ValueError(f"it is larger than {MAX_SCANNED // 1_000_000} MB")
    while (marker := _JPEG_MARKER.search(content, position)) and marker[0] != b"\xff\xd9":  # the end
        num_scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return num_scans


def _reason(error: Exception) -> str:
    """An error's message without a final period; its type if it has none."""
    text = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _is_array(source) -> "TypeGuard[np.ndarray | torch.Tensor]":
    torch = sys.modules.get("torch")  # if it was never imported, nothing is a tensor
    return isinstance(source, np.ndarray) or (torch is not None and isinstance(source, torch.Tensor))


def _path_or_bytes(source: Any) -> str | os.PathLike | bytes:
    """Normalizes an encoded image to the bytes of a file, or its path or URL."""
    if isinstance(source, Mapping):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if source is None:
            raise TypeError('a dict of an image has "bytes" or "path", found neither.')
    if isinstance(source, bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read"):
        if callable(getattr(source, "seek", None)) and getattr(source, "seekable", lambda: True)():
            source.seek(0)  # as in Pillow: it may have been read before
        content = source.read(MAX_SCANNED + 1)
        if not isinstance(content, bytes):
            raise TypeError(f'a file of an image is opened with "rb", found one that reads {type(content).__name__}.')
        if len(content) > MAX_SCANNED:
            raise ValueError(f"the file is larger than {MAX_SCANNED // 1_000_000} MB.")
        return content
    if not isinstance(source, bytes | str | os.PathLike):
        raise TypeError(
            "an image is a path, an address, a data: URI, bytes, an open file, a dict with bytes, a PIL image, an "
            f"array or a tensor; found {type(source).__name__}."
        )
    return source


def _open(source: str | os.PathLike | bytes, timeout: float) -> tuple[Image.Image, str]:
    name = "the image" if isinstance(source, bytes) else os.fsdecode(source)
    if isinstance(source, bytes):
        file: BytesIO | Path = BytesIO(source)
    elif name.startswith(("http://", "https://")):
        file = BytesIO(_download(name, timeout))
    elif name.startswith("data:"):
        file, name = BytesIO(_content_of_data_uri(name)), "the data: URI"
    else:
        file = Path(os.path.expanduser(name))
        if max(map(len, name.split("/"))) > MAX_NAME_SHOWN:  # not a valid file name on any system
            name = f"{name[:MAX_NAME_SHOWN]}..."
        _check_file(file, name)
    try:
        image = _identified(file, name)
        if image is None or (is_raw(image, _beginning(file)) and not _is_named_tiff(file)):
            image = _preview(file, name)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has far more than {MAX_PIXELS:,} pixels: scale it down.") from error
    except _ReaderError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{name} can't be read: {_reason(error)}.") from error
    if image.format in REFUSED_FORMATS:
        image.close()
        raise ValueError(f"{name} is of the format {image.format}, which is refused.")
    return image, name


class _ReaderError(ValueError):
    """No installed reader can open the image; the message is complete."""


def _identified(file: BytesIO | Path, name: str) -> Image.Image | None:
    """The image, not decoded; None for a camera's raw file, which Pillow does not support.

    Raises:
        _ReaderError: None of the installed readers supports the format.
    """
    if isinstance(file, Path) and file.suffix.lower() in RAW_SUFFIXES:
        return None
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        package = reader_of(_beginning(file))
        if package is None:
            raise _ReaderError(f"{name} is not an image of a known format.") from error
        if not is_installed(package):
            raise _ReaderError(f"{name} is {_FORMATS[package]}: {INSTALL_READERS} reads it.") from error
        register_readers()
        if package == "rawpy":
            return None
        try:
            return Image.open(file)
        except UnidentifiedImageError as still:
            raise _ReaderError(f"{name} is {_FORMATS[package]} that can't be read, it may be damaged.") from still


_FORMATS = {"pillow_heif": "a HEIC image", "pillow_jxl": "a JPEG XL image", "rawpy": "a camera's raw file"}


def _beginning(file: BytesIO | Path) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(32)
    return file.getvalue()[:32]


def _is_named_tiff(file: BytesIO | Path) -> bool:
    return isinstance(file, Path) and file.suffix.lower() in (".tif", ".tiff")


def _preview(file: BytesIO | Path, name: str) -> Image.Image:
    """The largest preview in a camera's raw file; if there is none, the developed sensor data at half size."""
    if not is_installed("rawpy"):
        raise _ReaderError(f"{name} is {_FORMATS['rawpy']}: {INSTALL_READERS} reads its preview.")
    rawpy = importlib.import_module("rawpy")
    if isinstance(file, BytesIO):
        file.seek(0)
    with rawpy.imread(str(file) if isinstance(file, Path) else file) as raw:
        flip = raw.sizes.flip
        try:
            thumbnail = raw.extract_thumb()
        except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
            if raw.sizes.width * raw.sizes.height > 4 * MAX_PIXELS:
                raise Image.DecompressionBombError from None
            return Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True))  # upright
    if thumbnail.format == rawpy.ThumbFormat.JPEG:
        image: Image.Image = Image.open(BytesIO(thumbnail.data))
    else:
        image = Image.fromarray(thumbnail.data)
    if ExifTags.Base.Orientation not in image.getexif():
        image.getexif()[ExifTags.Base.Orientation] = {3: 3, 5: 8, 6: 6}.get(flip, 1)  # LibRaw's flip -> EXIF
    return image


@cache
def _register_jxl() -> None:
    """Registers pillow-jxl with a size check, since it decodes images on opening."""
    importlib.import_module("pillow_jxl")
    opens: Callable[[Any, Any], Any]
    opens, accepts = Image.OPEN["JXL"]

    def opens_checked(file: IO[bytes], filename: str | bytes) -> Any:
        beginning = file.read(1 << 16)
        file.seek(0)
        width, height = _size_of_jxl(beginning)
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels")
        return opens(file, filename)

    Image.register_open("JXL", opens_checked, accepts)  # a function works as well as a class


def _size_of_jxl(content: bytes) -> tuple[int, int]:
    """Width and height of a JPEG XL image, from the header of its codestream (ISO/IEC 18181-1, D.2).

    Raises:
        SyntaxError: There is none; Pillow's convention for files in another format.
    """
    position = 0
    if not content.startswith(_JXL[0]):
        while (kind := content[position + 4 : position + 8]) not in (b"jxlc", b"jxlp"):
            size = int.from_bytes(content[position : position + 4], "big")
            if len(kind) < 4 or size < 8:
                raise SyntaxError("a JPEG XL file without an image")
            position += size
        position += 8 if kind == b"jxlc" else 12  # a partial codestream starts with its index
    if content[position : position + 2] != _JXL[0]:
        raise SyntaxError("a JPEG XL file without an image")
    bits, used = int.from_bytes(content[position + 2 : position + 14], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        used += count
        return bits >> (used - count) & ((1 << count) - 1)

    def side(is_small: int) -> int:
        return 8 * (take(5) + 1) if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    is_small = take(1)
    height = side(is_small)
    ratio = take(3)
    if ratio:
        across, down = _JXL_RATIOS[ratio - 1]
        return height * across // down, height
    return side(is_small), height


def _check_file(file: Path, name: str) -> None:
    try:
        mode = file.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such file.") from error
    except (OSError, ValueError) as error:  # a symlink loop, or a name that is too long or has a null byte
        raise ValueError(f"{name!r} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} is a folder, not an image." if name else "an empty path names no image.")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} is not a file but a pipe, a socket or a device.")  # reading might never end


def ascii_url(address: str) -> str:
    """A URL as browsers send it: the host in IDNA, what is not ASCII or a space percent-encoded; `%20` stays.

    Raises:
        ValueError: It is malformed.
    """
    parts = urlsplit(address.strip())
    account, at, host = parts.netloc.rpartition("@")
    if not host.isascii():
        name, colon, port = host.partition(":")
        host = f"{name.encode('idna').decode()}{colon}{port}"
    url = parts._replace(netloc=f"{account}{at}{host}").geturl()
    return re.sub("[^!-~]+", lambda found: quote(found[0]), url)


def _download(address: str, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    content = bytearray()
    try:
        request = Request(ascii_url(address), headers={"User-Agent": "hf_gru_captioner"})
        with urlopen(request, timeout=timeout) as response:
            while block := response.read1(DOWNLOAD_BLOCK):
                content += block
                if len(content) > MAX_DOWNLOAD:
                    raise ValueError(f"it is larger than {MAX_DOWNLOAD // 1_000_000} MB")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it took more than {timeout:g} seconds")
            if response.length:
                raise ValueError(f"{response.length} bytes of it are missing")
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"{address} can't be fetched: {error}.") from error
    return bytes(content)


def _content_of_data_uri(uri: str) -> bytes:
    try:
        if "," not in uri:
            raise ValueError("no comma before its data")
        with urlopen(uri) as response:  # decodes it without network access
            return response.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"the data: URI can't be decoded: {_reason(error)[:MAX_NAME_SHOWN]}.") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition required by EXIF, if any; ImageOps.exif_transpose fails if another tag is damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block is ignored, the image is still usable
        return None


def _to_numpy(array: "np.ndarray | torch.Tensor") -> np.ndarray:
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy has no bfloat16
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an image array holds numbers, found {array.dtype}.")
    return array


def _from_array(array: np.ndarray) -> Image.Image:
    channels = (1, 3, 4)
    if array.ndim == 3 and array.shape[-1] not in channels and array.shape[0] in channels:
        array = array.transpose(1, 2, 0)  # (H, W, C)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in channels) or 0 in array.shape:
        raise ValueError(
            f"an image array is (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, found {array.shape}."
        )
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses nan
            raise ValueError(
                f"a float image has values in [0, 1], found {array.min():g} to {array.max():g}: pass 8-bit integers."
            )
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"an integer image has values in [0, 255], found {array.min()} to {array.max()}.")
        array = array.astype(np.uint8)
    return Image.fromarray(array)


def _scale(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """RGB at a width and height, equal to `_to_rgb()` and `resize(size, resample, reducing_gap=GAP)` of Pillow 12.

    A large image is converted to RGB and reduced by integer factors, resize()'s first step, strip by strip: there is
    never a second copy of all its pixels.
    """
    width, height = image.size
    across, down = (max(1, int(side / wanted / GAP)) for side, wanted in zip(image.size, size, strict=True))
    is_deep = _is_deep(image)
    if across == down == 1 or resample is Image.Resampling.NEAREST:
        return _resize(_to_rgb(image, is_deep), size, resample, image.size)
    reduced = Image.new("RGB", (-(-width // across), -(-height // down)))
    num_rows = down * max(1, STRIP // (width * down))
    for top in range(0, height, num_rows):
        strip = _to_rgb(image.crop((0, top, width, min(top + num_rows, height))), is_deep)
        reduced.paste(strip.reduce((across, down)), (0, top // down))
    return _resize(reduced, size, resample, (width / across, height / down))


def _resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, part: tuple[float, float]
) -> Image.Image:
    """Resizes the upper left part of an image, `(width, height)` in pixels, to a width and height.

    First the width, then the height, as in Pillow before version 13, which uses the other order for some tall images
    and rounds differently there. The shipped weights were trained with this order.
    """
    if resample is Image.Resampling.NEAREST:  # picks pixels, in one step
        return image.resize(size, resample, box=(0, 0, *part))
    image = image.resize((size[0], image.height), resample, box=(0, 0, part[0], image.height))
    return image.resize(size, resample, box=(0, 0, size[0], part[1]))


def _is_deep(image: Image.Image) -> bool:
    """Whether an image with 32-bit levels contains 16-bit grey rather than 8-bit; needs the whole image."""
    return image.mode == "I" and image.getextrema()[1] > 255  # type: ignore[operator]  # one band, one pair


def _to_rgb(image: Image.Image, is_deep: bool) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey, which convert("RGB") would clip to white
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I":
        levels = np.asarray(image) >> (8 if is_deep else 0)
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = _from_array(np.asarray(image))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")  # avoids a copy
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image)
        return canvas
    return image.convert("RGB")


__all__ = [
    "ImageSource",
    "ascii_url",
    "is_installed",
    "is_one_image",
    "is_raw",
    "load_image",
    "readable_suffixes",
    "reader_of",
    "register_readers",
]
