"""Images from untrusted sources: uploads, URLs, ZIP archives. All are checked before they are opened.

An image is rejected by its size in bytes and pixels before any pixel is decoded; for a camera's raw file, its largest
preview is checked, which `raw_photos` extracts. A URL is fetched only from the public web: http or https on the default
ports, every IP address of the host public, connected to the very address that was checked, each redirect checked like
the first URL, within limits of size and time. An archive is read in memory, never extracted to disk, and only up to the
limits.

Every rejection is a sentence for the visitor of the page, and reveals nothing about the server.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import string
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from PIL import Image

from .model.image_loading_gru_captioner import (
    HEIC_SUFFIXES,
    INSTALL_READERS,
    JXL_SUFFIXES,
    MAX_PIXELS,
    RAW_SUFFIXES,
    REFUSED_FORMATS,
    ascii_url,
    is_installed,
    is_raw,
    reader_of,
    register_readers,
)
from .raw_photos import UnreadableError, preview_of

ADDRESS_PORTS = {"http": 80, "https": 443}
ADDRESSES = tuple(f"{scheme}://" for scheme in ADDRESS_PORTS)  # prefixes of URLs
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 4
CHUNK = 1 << 16  # bytes
MAX_CAPTION = 10_000  # characters; more is not a sentence, and some metrics take quadratic time
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    *(HEIC_SUFFIXES + JXL_SUFFIXES + RAW_SUFFIXES),  # read, or rejected with a message that names the format
)
KINDS = {"pillow_heif": "HEIC picture", "pillow_jxl": "JPEG XL picture", "rawpy": "raw file of a camera"}  # by reader

# IANA's registries of special-purpose addresses (https://www.iana.org/assignments/iana-ipv4-special-registry,
# .../iana-ipv6-special-registry) as of 2025, plus multicast and reserved ranges; `ipaddress` may be outdated, depending
# on the Python release. Written out, since an incomplete list would be a security hole.
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by a provider's customers
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host, for its virtual machines; in no registry
            "169.254.0.0/16",  # link-local; cloud metadata services with credentials
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # protocol assignments, including Teredo
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, deprecated
            "2620:4f:8000::/48",  # AS112
            "3ffe::/16",  # formerly 6bone
            "3fff::/20",  # documentation
        ),
    )
)
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all other IPv6 is special or unassigned
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # embeds an IPv4 address in the last 32 bits
ISATAP = 0x5EFE  # bits 64 to 95 of an address, except one bit: also embeds an IPv4 address in the last 32

MAX_NAME = 1000  # characters of a file's name, with its folders
MAX_MEMBERS = 10_000  # of an archive, images or not: each takes memory before it is read
DIRECTORY_SIGN = b"PK\x01\x02"  # signature of an entry in an archive's central directory
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # LZMA may need gigabytes to decompress a few bytes

Resolve = Callable[[str, int], list[str]]


class RefusedError(ValueError):
    """An upload or URL is rejected; the message tells its sender why."""


@dataclass(frozen=True)
class Limits:
    """Limits on what is accepted.

    Attributes:
        image_bytes: Size of an image file.
        file_bytes: Size of any other upload: an archive, or a camera's raw file, of which only a preview is loaded into
            memory.
        image_pixels: Pixels of an image, width times height.
        archive_images: Number of images in an archive.
        archive_bytes: Total uncompressed size of the images in an archive.
        seconds: Time to fetch a URL, including redirects.
        text_bytes: Size of a request other than an upload, such as an image in base64.
        kept_seconds: Time that an upload is kept on disk.
        visitor_files, visitor_bytes: Uploads per visitor in this time.
        uploads_bytes: Total size of all visitors' uploads in this time.
    """

    image_bytes: int = 20_000_000
    file_bytes: int = 100_000_000
    image_pixels: int = MAX_PIXELS  # the limit of load_image
    archive_images: int = 500
    archive_bytes: int = 500_000_000
    seconds: float = 10.0
    text_bytes: int = 10_000_000
    kept_seconds: float = 600.0
    visitor_files: int = 1000
    visitor_bytes: int = 500_000_000
    uploads_bytes: int = 4_000_000_000


LIMITS = Limits()


def read_photo(upload: Path, limits: Limits = LIMITS) -> bytes:
    """The content of an image file; for a camera's raw file, which is not loaded into memory, its largest preview.

    Raises:
        RefusedError: Too large, or a raw file that can't be read.
        OSError: The file no longer exists.
    """
    suffix = upload.suffix.lower()
    _check_bytes(upload.stat().st_size, suffix, limits)
    if suffix not in RAW_SUFFIXES:
        content = upload.read_bytes()
        if not _is_raw(content):
            return content
    return _preview_of(upload)


def photo_of(content: bytes, limits: Limits = LIMITS, name: str = "") -> bytes:
    """Like [`read_photo`] for a file's bytes; some raw files can only be recognized by their name, if known.

    Raises:
        RefusedError: As in [`read_photo`].
    """
    suffix = PurePosixPath(name).suffix.lower()
    _check_bytes(len(content), suffix, limits)
    if suffix not in RAW_SUFFIXES and not _is_raw(content):
        return content
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, f"photo{suffix}")
        written.write_bytes(content)
        return _preview_of(written)


def _preview_of(path: Path) -> bytes:
    if not is_installed("rawpy"):
        raise RefusedError(_not_read("rawpy"))
    try:
        return preview_of(path)
    except UnreadableError:
        raise RefusedError("This raw file of a camera has no preview that can be read, or it is damaged.") from None


def _check_bytes(num_bytes: int, suffix: str, limits: Limits) -> None:
    if num_bytes > most_bytes(limits, suffix):
        raise RefusedError(too_large(limits, suffix))


def _is_raw(content: bytes) -> bool:
    """Whether load_image would treat these bytes as a camera's raw file."""
    if reader_of(content) == "rawpy":
        return True
    if not content.startswith((b"II", b"MM")):  # not TIFF
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                return is_raw(image, content)
    except Exception:  # Pillow raises errors of any kind; open_image reports the damage
        return False


def open_image(content: bytes, limits: Limits = LIMITS) -> Image.Image:
    """Bytes of an image file, from [`read_photo`] or [`photo_of`] -> the image, not yet decoded.

    Raises:
        RefusedError: Too large, or not an image.
    """
    if len(content) > limits.image_bytes:
        raise RefusedError(too_large(limits))
    reader = reader_of(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            if reader is not None:
                register_readers()
            image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError:
        raise RefusedError(_too_many_pixels(limits)) from None
    except Exception:  # as above
        if reader is not None and not is_installed(reader):
            raise RefusedError(_not_read(reader)) from None
        raise RefusedError("This is not a picture, or it is damaged.") from None
    if is_raw(image, content):
        raise RefusedError("This is a raw file of a camera, of which only the preview can be opened.")
    if image.format in REFUSED_FORMATS:
        raise RefusedError(f"This is of the format {image.format}, which is not for photos.")
    if image.width * image.height > limits.image_pixels:
        raise RefusedError(_too_many_pixels(limits))
    return image


def read_images(archive: BinaryIO, limits: Limits = LIMITS) -> Iterator[tuple[str, bytes | RefusedError]]:
    """Yields name, with its folders, and content of each image in a ZIP archive.

    Unreadable images are rejected one by one. Other files come last, rejected too; hidden ones are skipped.

    Raises:
        RefusedError: Not a ZIP archive, no images in it, or too many.
    """
    try:
        num_members = _count(archive, DIRECTORY_SIGN)
        if num_members > MAX_MEMBERS:
            raise RefusedError(f"There are {num_members} files in this archive; {MAX_MEMBERS} can be looked at.")
        with zipfile.ZipFile(archive) as opened:
            seen = [info for info in opened.infolist() if not info.is_dir() and not _is_hidden(info)]
            members = [info for info in seen if _is_image(info)]
            if not members:
                raise RefusedError("There is no picture in this archive.")
            if len(members) > limits.archive_images:
                raise RefusedError(
                    f"There are {len(members)} pictures in this archive; {limits.archive_images} can be taken."
                )
            left = limits.archive_bytes
            for info in members:
                allowed = most_bytes(limits, _suffix(info))
                most = min(allowed, left)
                try:
                    if info.compress_type not in PACKED:
                        raise ValueError("packed in an unusual way")
                    with opened.open(info) as file:
                        content: bytes | RefusedError = file.read(most + 1)  # the size in the archive may be false
                except Exception:  # zipfile raises errors of any kind
                    content = RefusedError(
                        "This picture of the archive is damaged or encrypted, or packed in an unusual way."
                    )
                if isinstance(content, bytes):
                    if len(content) > most:
                        content = RefusedError(
                            "The archive is too large when unpacked."
                            if most < allowed
                            else too_large(limits, _suffix(info))
                        )
                    else:
                        left -= len(content)
                yield safe_name(info.filename), content
            for info in seen:
                if not _is_image(info):
                    yield safe_name(info.filename), RefusedError("This is not a picture, by the ending of its name.")
    except RefusedError:
        raise
    except Exception:  # as above
        raise RefusedError("This is not a ZIP archive, or it is damaged.") from None


def fetch_image(address: str, limits: Limits = LIMITS, resolve: Resolve | None = None) -> bytes:
    """Fetches an image from the web.

    Args:
        address: Its URL, http or https.
        limits: Limits of size and time.
        resolve: Host and port -> IP addresses; by default the system's resolver.

    Raises:
        RefusedError: Not a public URL, or the server fails.
    """
    deadline = time.monotonic() + limits.seconds
    for _ in range(MAX_REDIRECTS + 1):
        answer = _get(address, limits, deadline, resolve or _resolve)
        if isinstance(answer, bytes):
            return answer
        try:
            address = urljoin(address, answer)
        except ValueError:
            raise RefusedError("This address is redirected to something that is not an address.") from None
    raise RefusedError("This address is redirected too often.")


def _get(address: str, limits: Limits, deadline: float, resolve: Resolve) -> bytes | str:
    """The content, or the URL of a redirect."""
    try:
        parts = urlsplit(ascii_url(address))
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RefusedError("This is not an address of the web.") from None
    if parts.scheme not in ADDRESS_PORTS or not host:
        raise RefusedError("An address begins with http:// or https://.")
    if port not in (None, ADDRESS_PORTS[parts.scheme]) or parts.username is not None:
        raise RefusedError("Only plain addresses are fetched: no port, no user name.")
    try:
        found = resolve(host, ADDRESS_PORTS[parts.scheme])
    except (OSError, UnicodeError):
        raise RefusedError("There is no server of this name.") from None
    if not found or not all(map(is_public, found)):
        raise RefusedError("This address is not on the public web.")

    target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    connection = _connect(parts.scheme, host, list(dict.fromkeys(found)), deadline)
    # Shuts the socket at the deadline: its own timeout restarts with every byte.
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [connection.sock])
    timer.daemon = True
    timer.start()
    try:
        headers = {"Host": f"[{host}]" if ":" in host else host, "User-Agent": "hf_gru_captioner"}
        headers |= {"Accept": "image/*", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if response.status in REDIRECTS and response.headers["Location"]:
            # Headers are read as Latin-1, but are mostly UTF-8.
            return quote(response.headers["Location"], safe=string.punctuation, encoding="latin-1")
        if response.status != 200:
            raise RefusedError(f"The server of this address answers with status {response.status}.")
        content = bytearray()
        while chunk := response.read(CHUNK):
            content += chunk
            if len(content) > limits.image_bytes:
                raise RefusedError(too_large(limits))
        if time.monotonic() > deadline:  # a body without a length just ends when the socket is closed
            raise TimeoutError
        return bytes(content)
    except RefusedError:
        raise
    except (OSError, http.client.HTTPException, ValueError):
        slow = time.monotonic() >= deadline
        raise RefusedError(
            "The server of this address is too slow." if slow else "The server of this address can't be reached."
        ) from None
    finally:
        timer.cancel()
        connection.close()


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, including one embedded in an IPv6 address."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        low = int(ip) & 0xFFFFFFFF
        if ip in NAT64 or (int(ip) >> 32) & 0xFDFFFFFF == ISATAP:  # ignores the bit for globally unique addresses
            return (ip in NAT64 or _is_global(ip)) and _is_global(ipaddress.IPv4Address(low))
    return _is_global(ip)


def _is_global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if ip.version == 6 and ip not in GLOBAL_UNICAST:
        return False
    return not any(ip in network for network in NOT_PUBLIC if network.version == ip.version)


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _connect(scheme: str, host: str, addresses: Sequence[str], deadline: float) -> http.client.HTTPConnection:
    """A connection to the first of the checked IP addresses that answers; TLS and the Host header use the host name."""
    port = ADDRESS_PORTS[scheme]
    connection = http.client.HTTPConnection(host, port)
    for number, address in enumerate(addresses):
        left = deadline - time.monotonic()
        if number and left <= 0:
            break
        try:
            # A silent address leaves time for the others.
            plain = socket.create_connection((address, port), timeout=max(0.1, left / (len(addresses) - number)))
            try:
                if scheme == "https":
                    connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
                else:
                    connection.sock = plain
            except (OSError, ValueError):
                plain.close()
                raise
        except (OSError, ValueError):
            continue
        connection.sock.settimeout(max(0.1, deadline - time.monotonic()))
        return connection
    raise RefusedError("The server of this address can't be reached.")


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):  # may already be closed
        connected.shutdown(socket.SHUT_RDWR)


def safe_name(name: str) -> str:
    """A file's name from any system as a relative path with slashes that stays inside its folder."""
    parts = PurePosixPath(name.replace("\\", "/").replace("\0", "")).parts
    kept = (part for part in parts if part not in ("/", "//", "..") and not part.endswith(":"))
    return "/".join(kept)[-MAX_NAME:].lstrip("/") or "photo"


def _is_hidden(info: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(info.filename.replace("\\", "/")).parts
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in parts)


def _is_image(info: zipfile.ZipInfo) -> bool:
    return _suffix(info) in SUFFIXES


def _suffix(info: zipfile.ZipInfo) -> str:
    return PurePosixPath(info.filename.replace("\\", "/")).suffix.lower()


def most_bytes(limits: Limits, suffix: str) -> int:
    """Maximum size of a file with this suffix."""
    return limits.file_bytes if suffix in (*RAW_SUFFIXES, ".zip") else limits.image_bytes


def too_large(limits: Limits, suffix: str = "") -> str:
    return f"This file is larger than {most_bytes(limits, suffix) / 1e6:.0f} MB."


def _not_read(reader: str) -> str:
    return (
        f"This is a {KINDS[reader]}, which this page can't read yet: save it as JPEG, or install what reads it "
        f"({INSTALL_READERS}) and start the page again."
    )


def _count(file: BinaryIO, sign: bytes) -> int:
    """How often these bytes occur in a file of any size."""
    number, end = 0, b""
    while chunk := file.read(CHUNK):
        number += (end + chunk).count(sign)
        end = (end + chunk)[1 - len(sign) :]
    return number


def _too_many_pixels(limits: Limits) -> str:
    return f"This picture has more than {limits.image_pixels / 1e6:.0f} million pixels."
