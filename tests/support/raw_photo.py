"""Writes a small camera raw file (DNG 1.4): a thumbnail, sensor data and, optionally, a larger preview."""

import io
import struct
from pathlib import Path

from PIL import Image

SHORT, LONG, ASCII, BYTE, RATIONAL, SRATIONAL = 3, 4, 2, 1, 5, 10
_FORMATS = {SHORT: "H", LONG: "I", ASCII: "B", BYTE: "B", RATIONAL: "I", SRATIONAL: "i"}
_SIZES = {SHORT: 2, LONG: 4, ASCII: 1, BYTE: 1, RATIONAL: 8, SRATIONAL: 8}
SENSOR = (64, 48)  # pixels


def write_dng(path: Path, thumbnail: Image.Image, preview: Image.Image | None, orientation: int = 1) -> None:
    """
    Args:
        path: The file.
        thumbnail: Its first image.
        preview: Kept as JPEG; none where not given.
        orientation: As in EXIF, of all of its images.
    """
    blocks = [thumbnail.convert("RGB").tobytes()]
    width, height = SENSOR
    blocks.append(struct.pack(f"<{width * height}H", *(x % 2 * 8000 + 4000 for x in range(width * height))))
    if preview is not None:
        encoded = io.BytesIO()
        preview.save(encoded, "JPEG", quality=95)
        blocks.append(encoded.getvalue())

    def image_tags(index: int, size: tuple[int, int], is_reduced: int, kind: tuple[int, int, int]) -> dict:
        compression, photometric, samples = kind
        bits = 16 if photometric == 32803 else 8
        return {
            254: (LONG, [is_reduced]),
            256: (LONG, [size[0]]),
            257: (LONG, [size[1]]),
            258: (SHORT, [bits] * samples),
            259: (SHORT, [compression]),
            262: (SHORT, [photometric]),
            273: (LONG, [("block", index)]),
            277: (SHORT, [samples]),
            278: (LONG, [size[1]]),
            279: (LONG, [len(blocks[index])]),
            284: (SHORT, [1]),
        }

    sensor = image_tags(1, SENSOR, 0, (1, 32803, 1)) | {
        33421: (SHORT, [2, 2]),
        33422: (BYTE, [0, 1, 1, 2]),
        50714: (LONG, [0]),
        50717: (LONG, [16383]),
    }
    directories = [sensor]
    if preview is not None:
        directories.append(image_tags(2, preview.size, 1, (7, 6, 3)))
    matrix = [10000, 10000, 0, 10000, 0, 10000, 0, 10000, 10000, 10000, 0, 10000, 0, 10000, 0, 10000, 10000, 10000]
    first = image_tags(0, thumbnail.size, 1, (1, 2, 3)) | {
        271: (ASCII, list(b"Maker\0")),
        272: (ASCII, list(b"Model\0")),
        274: (SHORT, [orientation]),
        330: (LONG, [("directory", index) for index in range(1, len(directories) + 1)]),
        50706: (BYTE, [1, 4, 0, 0]),
        50707: (BYTE, [1, 1, 0, 0]),
        50708: (ASCII, list(b"Maker Model\0")),
        50721: (SRATIONAL, matrix),
        50728: (RATIONAL, [1, 1, 1, 1, 1, 1]),
    }
    path.write_bytes(_tiff([first, *directories], blocks))


def _tiff(directories: list[dict], blocks: list[bytes]) -> bytes:
    """The file: header, then each directory with its long values, then the blocks of pixels."""

    def length(directory: dict) -> int:
        return 6 + 12 * len(directory) + sum(size for size in map(_num_bytes, directory.values()) if size > 4)

    places, position = [], 8
    for directory in directories:
        places.append(position)
        position += length(directory)
    block_places = []
    for block in blocks:
        block_places.append(position)
        position += len(block) + len(block) % 2
    content = bytearray(struct.pack("<2sHI", b"II", 42, places[0]))
    for place, directory in zip(places, directories, strict=True):
        behind = place + 6 + 12 * len(directory)
        entries, values = bytearray(), bytearray()
        for tag, (kind, numbers) in sorted(directory.items()):
            resolved = [
                (block_places if number[0] == "block" else places)[number[1]] if isinstance(number, tuple) else number
                for number in numbers
            ]
            packed = struct.pack(f"<{len(resolved)}{_FORMATS[kind]}", *resolved)
            count = len(packed) // _SIZES[kind]
            if len(packed) > 4:
                entries += struct.pack("<HHII", tag, kind, count, behind + len(values))
                values += packed + b"\0" * (len(packed) % 2)
            else:
                entries += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
        content += struct.pack("<H", len(directory)) + entries + b"\0\0\0\0" + values
    for block in blocks:
        content += block + b"\0" * (len(block) % 2)
    return bytes(content)


def _num_bytes(value: tuple[int, list]) -> int:
    kind, numbers = value
    size = struct.calcsize(f"<{len(numbers)}{_FORMATS[kind]}")
    return size + size % 2
