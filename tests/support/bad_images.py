"""Images that a captioner meets in the wild and wishes it hadn't, made on the spot; Pillow and NumPy are all it takes.

Each has a kind, and kinds tell what may come of them: those in `SOUND` are pictures, odd as they are, those in
`HOPELESS` can't be read by anyone, and of all others either may be said, as long as it is said in one line.
"""

import io
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

SOUND = {
    *("one pixel", "one column", "one row", "wrong ending", "CMYK", "YCCK", "16-bit grey", "float", "palette"),
    *("animation", "orientation", "odd orientation", "broken EXIF", "junk profile", "polyglot", "odd name", "slow"),
}
HOPELESS = {
    *("empty", "out of range", "bomb", "nested bomb", "many scans", "program", "SVG", "HTML"),
    *("pipe", "socket", "folder", "link loop", "dangling link", "unreadable", "vanished", "impossible name"),
}
SIZE = (40, 30)
NEAR_THE_LIMIT = 7000  # pixels a side: the most that is decoded is 50 million in all

Named = Iterator[tuple[str, bytes, str]]  # file name, content, kind


def make_corpus(folder: Path) -> list[tuple[str, str]]:
    """Writes the corpus into a folder -> path and kind of each, in the order of their kinds.

    Paths are those that a command line would be given: text, with surrogates for bytes that are not text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = []
    for name, content, kind in _files():
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        corpus.append((path, kind))
    return corpus + list(_no_files(folder))


def photo(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """A gradient with noise: its Huffman codes are long, so that truncation hits them."""
    random = np.random.default_rng(0)
    smooth = np.linspace((250, 30, 0), (0, 120, 240), size[0] * size[1]).reshape(size[1], size[0], 3)
    return Image.fromarray((smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, file_format: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def _files() -> Named:
    for file_format, content in _whole().items():
        ending = file_format.split()[0].lower()
        for cut in _cuts(file_format.split()[0], content):
            yield f"cut {file_format} at {cut}.{ending}", content[:cut], f"cut {file_format}"
    yield from _odd_shapes()
    yield from _odd_colors()
    yield from _odd_metadata()
    yield from _bombs()
    yield from _other_things()
    yield from _odd_names()


def _whole() -> dict[str, bytes]:
    """A complete file of each format, by its name and special features."""
    exif = Image.Exif()
    exif[0x0112] = 1
    frames = {"save_all": True, "append_images": [photo().rotate(180)], "duration": 100}
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "a photo")
    return {
        "JPEG": encoded(photo(), "JPEG", exif=exif, comment=b"a photo"),
        "JPEG progressive": encoded(photo(), "JPEG", progressive=True),
        "PNG": encoded(photo(), "PNG", pnginfo=comment, exif=exif, dpi=(72, 72)),
        "PNG animated": encoded(photo(), "PNG", **frames),
        "WEBP": encoded(photo(), "WEBP", exif=exif),
        "WEBP lossless": encoded(photo(), "WEBP", lossless=True),
        "WEBP animated": encoded(photo(), "WEBP", **frames),
        "GIF": encoded(photo(), "GIF", comment=b"a photo"),
        "GIF animated": encoded(photo(), "GIF", **frames),
        "TIFF": encoded(photo(), "TIFF"),
        "TIFF deflated": encoded(photo(), "TIFF", compression="tiff_adobe_deflate"),
    }


def _cuts(file_format: str, content: bytes) -> list[int]:
    """Where a file is cut: at the boundaries of its parts, one byte further, and in the middle of everything."""
    boundaries = {"JPEG": _markers, "PNG": _chunks, "WEBP": _riff_chunks, "GIF": _blocks, "TIFF": _entries}
    places = set(boundaries[file_format](content))
    places |= {place + 1 for place in places} | {len(content) * share // 7 for share in range(1, 7)}
    return sorted(place for place in places | {len(content) - 1} if 0 < place < len(content))


def _markers(content: bytes) -> Iterator[int]:
    """Beginning of each marker of a JPEG, of its length and of what follows."""
    place = 0
    while 0 <= place < len(content):
        yield from (place, place + 2, place + 4)
        code = content[place + 1]
        if code in (0xD8, 0xD9):  # stand alone
            place += 2
            continue
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if code == 0xDA:  # codes come until a marker that is none of their own
            while place < len(content) - 1 and not (content[place] == 0xFF and content[place + 1] not in (0, 0xFF)):
                place += 1


def _chunks(content: bytes) -> Iterator[int]:
    """Beginning of each chunk of a PNG, of its name, its data and its checksum."""
    place = 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        yield from (place, place + 4, place + 8, place + 8 + length)
        place += 12 + length


def _riff_chunks(content: bytes) -> Iterator[int]:
    place = 12
    while place < len(content):
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        yield from (place, place + 4, place + 8)
        if content[place : place + 4] == b"ANMF":  # has chunks of its own behind its 16 bytes
            yield from (place + 24, place + 28, place + 32)
        place += 8 + length + length % 2


def _blocks(content: bytes) -> Iterator[int]:
    """Beginning of each block of a GIF, and of the blocks inside of it."""
    yield from (6, 10, 13)
    place = 13 + (3 << (content[10] & 7) + 1) * (content[10] >> 7)  # behind the colors
    while place < len(content):
        yield from (place, place + 1)
        if content[place] == 0x3B:  # the end
            return
        if content[place] == 0x21:
            place += 2
        else:
            flags = content[place + 9]
            place += 10 + (3 << (flags & 7) + 1) * (flags >> 7)
            yield place
            place += 1
        while content[place]:
            yield place
            place += 1 + content[place]
        place += 1


def _entries(content: bytes) -> Iterator[int]:
    """Beginning of the directory of a TIFF, of each of its entries, and of what they point to."""
    (directory,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, directory)
    yield from (4, 8, directory, directory + 2)
    for index in range(number):
        place = directory + 2 + 12 * index
        tag, kind, count, value = struct.unpack_from("<HHII", content, place)
        yield from (place, place + 8)
        if tag == 273 or count * {3: 2, 4: 4, 5: 8}.get(kind, 1) > 4:  # the pixels, or values that fill no entry
            yield value
    yield directory + 2 + 12 * number


def _odd_shapes() -> Named:
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        ending = file_format.lower()
        yield f"empty.{ending}", b"", "empty"
        yield f"1x1.{ending}", encoded(photo((1, 1)), file_format), "one pixel"
        if file_format != "WEBP":  # has at most 16383 pixels a side
            yield f"1x60000.{ending}", encoded(photo((1, 60_000)), file_format), "one column"
            yield f"60000x1.{ending}", encoded(photo((60_000, 1)), file_format), "one row"
    for file_format, ending in (("JPEG", "png"), ("PNG", "jpg"), ("WEBP", "gif"), ("GIF", "webp"), ("TIFF", "bmp")):
        yield f"is {file_format}.{ending}", encoded(photo(), file_format), "wrong ending"
    for file_format in ("PNG", "WEBP", "GIF"):
        frames = [photo().rotate(angle) for angle in (90, 180)]
        content = encoded(photo(), file_format, save_all=True, append_images=frames, duration=10)
        yield f"animation.{file_format.lower()}", content, "animation"


def _odd_colors() -> Named:
    cmyk = encoded(photo(mode="CMYK"), "JPEG")
    transform = cmyk.index(b"Adobe") + 11
    assert cmyk[transform] == 0
    yield "cmyk.jpg", cmyk, "CMYK"
    yield "ycck.jpg", cmyk[:transform] + b"\x02" + cmyk[transform + 1 :], "YCCK"
    deep = Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)
    floats = np.asarray(photo(mode="L"), np.float32) / 255
    for file_format in ("PNG", "TIFF"):
        yield f"deep.{file_format.lower()}", encoded(deep, file_format), "16-bit grey"
    yield "deep 32.tiff", encoded(Image.fromarray(np.asarray(deep).astype(np.int32)), "TIFF"), "16-bit grey"
    yield "floats.tiff", encoded(Image.fromarray(floats), "TIFF"), "float"
    for value in (np.nan, np.inf, -np.inf, -0.5, 255):
        spoilt = floats.copy()
        spoilt[3, 4] = value
        yield f"floats with {value}.tiff", encoded(Image.fromarray(spoilt), "TIFF"), "out of range"
    palette = photo().quantize(16)
    for file_format in ("PNG", "GIF"):
        content = encoded(palette, file_format, transparency=3)
        yield f"a transparent color.{file_format.lower()}", content, "palette"
    yield "half transparent colors.png", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))), "palette"
    yield "transparent grey.png", encoded(photo(mode="L"), "PNG", transparency=90), "palette"
    yield "transparent rgb.png", encoded(photo(), "PNG", transparency=(250, 30, 0)), "palette"
    yield "two colors.png", encoded(photo(mode="1"), "PNG", bits=1), "palette"


def _odd_metadata() -> Named:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
            settings = {"lossless": True} if file_format == "WEBP" else {}
            content = encoded(_as_stored(photo(), orientation), file_format, exif=exif, **settings)
            yield f"orientation {orientation}.{file_format.lower()}", content, "orientation"
    for orientation in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"orientation {orientation}.jpg", encoded(photo(), "JPEG", exif=exif), "odd orientation"
    upright = _exif_block(struct.pack("<HHI4s", 0x0112, 3, 1, b"\x06\0\0\0"))
    broken = {
        "nothing": b"",
        "no TIFF": b"Exif\0\0JUNK",
        "a torn header": upright[:9],
        "a torn directory": upright[:18],
        "a directory far away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "a directory of itself": b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x8769, 4, 1, 8) + bytes(4),
        "an orientation in letters": _exif_block(struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0")),
        "two orientations": _exif_block(struct.pack("<HHIHH", 0x0112, 3, 2, 6, 8)),
        "no orientation at all": _exif_block(struct.pack("<HHI4s", 0x0112, 3, 0, bytes(4))),
        "a fraction of nothing": _exif_block(struct.pack("<HHII", 0x0112, 5, 1, 26)) + bytes(8),
        "values far away": _exif_block(struct.pack("<HHII", 0x010F, 2, 1 << 30, 1 << 30)),
        "many values": _exif_block(struct.pack("<HHII", 0x010F, 4, 0xFFFFFFFF, 8)),
        "an unknown kind of value": _exif_block(struct.pack("<HHII", 0x010F, 99, 1, 8)),
        # what Pillow itself can't write again once it has turned the photo
        "an upright date of numbers": _exif_block(
            struct.pack("<HHI4s", 0x0112, 3, 1, b"\x06\0\0\0"), struct.pack("<HHII", 0x8769, 4, 1, 1 << 30)
        ),
        "a sideways photo of a negative place": _exif_block(
            struct.pack("<HHI4s", 0x0112, 3, 1, b"\x06\0\0\0"), struct.pack("<HHIi", 0x8825, 9, 1, -5)
        ),
    }
    for name, block in broken.items():
        for file_format in ("JPEG", "PNG", "WEBP"):
            content = _with_exif(file_format, block)
            if content is not None:
                yield f"EXIF of {name}.{file_format.lower()}", content, "broken EXIF"
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        content = encoded(photo(), file_format, icc_profile=b"junk" * 40)
        yield f"junk profile.{file_format.lower()}", content, "junk profile"
    png = encoded(photo(), "PNG")
    junk = _png_chunk(b"iCCP", b"profile\0\0 this was never compressed")
    yield "torn profile.png", png[:33] + junk + png[33:], "junk profile"
    text = _png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    yield "a text of 100 MB.png", png[:33] + text + png[33:], "metadata bomb"


def _as_stored(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as stored by a camera with this orientation; rotated by its EXIF, it is the picture again."""
    turns = Image.Transpose
    undo = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE}
    undo |= {6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270}
    return image.transpose(undo[orientation]) if orientation in undo else image


def _exif_block(*entries: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def _with_exif(file_format: str, block: bytes) -> bytes | None:
    """A file with this block inserted manually, since Pillow would parse it."""
    if file_format == "JPEG":
        whole = encoded(photo(), "JPEG")
        return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]
    if file_format == "PNG":
        whole = encoded(photo(), "PNG")
        return whole[:33] + _png_chunk(b"eXIf", block.removeprefix(b"Exif\0\0")) + whole[33:]
    return encoded(photo(), "WEBP", exif=block) if block else None


def _bombs() -> Named:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    claimed = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(bytes(9000)))
    yield "claims 30000x30000.png", claimed + _png_chunk(b"IEND", b""), "bomb"
    yield "one color.png", one_color_png(12_000, 12_000), "bomb"
    yield "one color, 8 bits.png", one_color_png(12_000, 12_000, bits=8), "bomb"
    yield "claims 65500x65500.jpg", _claiming(encoded(photo(), "JPEG"), 65_500), "bomb"
    yield (
        "claims 13000x13000, CMYK.jpg",
        _claiming(encoded(photo(mode="CMYK"), "JPEG", progressive=True), 13_000),
        "bomb",
    )
    yield "claims 12000x12000.jpg", _claiming(encoded(photo(), "JPEG"), 12_000), "vast"
    progressive = encoded(Image.new("L", (12_000, 12_000)), "JPEG", progressive=True)
    yield "progressive of 12000x12000.jpg", progressive, "vast"
    progressive = encoded(Image.new("L", (2_000, 2_000)), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    yield "many scans.jpg", progressive[:last] + progressive[last:-2] * 5_000 + b"\xff\xd9", "many scans"
    jp2 = bytearray(encoded(photo(), "JPEG2000"))
    for box, size in ((b"ihdr", ">II"), (b"\xff\x51", ">4xII")):  # of the file, and of the codes in it
        struct.pack_into(size, jp2, jp2.index(box) + (4 if box == b"ihdr" else 2), 5_000, 5_000)
    yield "claims 5000x5000.jp2", bytes(jp2), "bomb"
    gif = bytearray(encoded(photo(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_000, 65_000)
    yield "claims 65000x65000.gif", bytes(gif), "bomb"
    for side, kind in ((1_000, "slow"), (1_001, "bomb")):  # formats that Pillow decodes in Python
        yield f"decoded in Python {side}.dds", encoded(Image.new("RGBA", (side, side)), "DDS"), kind
        digits = f"P3 {side} {side} 9\n".encode() + b"7 7 7\n" * side**2
        yield f"decoded in Python {side}.ppm", digits, kind
    inside = one_color_png(8_000, 8_000, bits=8)
    ico = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 40, 30, 0, 0, 1, 32, len(inside), 22) + inside
    yield "claims 40x30, has 8000x8000.ico", ico, "nested bomb"
    icon = b"ic07" + struct.pack(">I", 8 + len(inside)) + inside
    yield "claims 128x128, has 8000x8000.icns", b"icns" + struct.pack(">I", 8 + len(icon)) + icon, "nested bomb"


def just_right() -> Named:
    """Pictures just below the pixel limit, each a few kilobytes; they take seconds to make."""
    side = NEAR_THE_LIMIT
    for name, mode, file_format, settings in (
        ("progressive.jpg", "CMYK", "JPEG", {"progressive": True}),
        ("levels.tiff", "I", "TIFF", {"compression": "tiff_lzw"}),
        ("floats.tiff", "F", "TIFF", {"compression": "tiff_lzw"}),
        ("palette.gif", "P", "GIF", {"transparency": 0}),
    ):
        yield name, encoded(Image.new(mode, (side, side)), file_format, **settings), "just right"
    yield "all there.jp2", encoded(Image.new("RGBA", (4000, 4000)), "JPEG2000"), "just right"
    yield "palette.png", one_color_png(side, side, transparency=b"\x80"), "just right"
    yield "transparent.png", one_color_png(side, side, bits=8, kind=6), "just right"
    yield (
        "transparent.webp",
        encoded(Image.new("RGBA", (5000, 4999), (9, 8, 7, 6)), "WEBP", lossless=True),
        "just right",
    )


def one_color_png(width: int, height: int, bits: int = 1, kind: int = 0, transparency: bytes = b"") -> bytes:
    """All zeros, compressed row by row, so that only one row is in memory."""
    kind = 3 if transparency else kind
    row = bytes(1 + (width * bits * {0: 1, 3: 1, 6: 4}[kind] + 7) // 8)
    packer = zlib.compressobj(1)
    packed = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    if transparency:
        chunks[1:1] = [(b"PLTE", b"\x01\x02\x03\x04\x05\x06"), (b"tRNS", transparency)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, data) for name, data in chunks)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _claiming(jpeg: bytes, side: int) -> bytes:
    """The JPEG with a different size in its header."""
    frame = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    return jpeg[: frame + 5] + struct.pack(">HH", side, side) + jpeg[frame + 9 :]


def _other_things() -> Named:
    page = b"<!DOCTYPE html><html><body><script>alert(1)</script></body></html>\n"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("index.html", page)
    yield "with an archive.jpg", encoded(photo(), "JPEG") + archive.getvalue(), "polyglot"
    yield "with a page.gif", encoded(photo(), "GIF", comment=page) + page, "polyglot"
    yield "with a script.png", encoded(photo(), "PNG") + b"\n#!/bin/sh\necho hello\n", "polyglot"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    for ending in ("svg", "jpg"):
        yield f"drawing.{ending}", svg, "SVG"
        yield f"page.{ending}", page, "HTML"
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n{} loop\n%%EOF\n"
    yield "without end.eps", program, "program"
    yield "without end.jpg", program, "program"
    yield "texture.blp", encoded(photo().quantize(16), "BLP"), "program"
    yield "stub.fits", b"SIMPLE  =                    T".ljust(2880), "program"


def _odd_names() -> Named:
    content = encoded(photo(), "PNG")
    names = [b"two\nlines.png", b"tab\tand return\r.png", b"-rf.png", b"--checkpoint=x.png", b"~.png", b" .png"]
    names += [
        b"*.png",
        b"[a].png",
        b"\x1b[31mred.png",
        b"quo'te\".png",
        b"back\\slash.png",
        "línea\u2028sep\x85.png".encode(),
    ]
    names += [b"http:nowhere.png", b"a" * 251 + b".png"]
    if sys.platform == "linux":  # others refuse names that are no text
        names += [b"\xff\xfe.png", b"caf\xe9.png"]
    for name in names:
        yield os.fsdecode(name), content, "odd name"
        yield os.fsdecode(b"torn" + name[-251:]), content[: len(content) // 2], "torn odd name"


def _no_files(folder: Path) -> Iterator[tuple[str, str]]:
    at = {name: str(folder / name) for name in ("pipe.jpg", "socket.jpg", "folder.jpg", "loop.jpg", "dangling.jpg")}
    os.mkfifo(at["pipe.jpg"])
    os.mknod(at["socket.jpg"], stat.S_IFSOCK | 0o600)
    os.mkdir(at["folder.jpg"])
    os.symlink("loop.jpg", at["loop.jpg"])
    os.symlink("nowhere.jpg", at["dangling.jpg"])
    kinds = ("pipe", "socket", "folder", "link loop", "dangling link")
    yield from zip(at.values(), kinds, strict=True)
    yield str(folder / "vanished.jpg"), "vanished"
    yield str(folder / ("a" * 252 + ".png")), "impossible name"  # longer than a name can be
    yield str(folder / "page.svg" / "inside.png"), "impossible name"  # a file is no folder
    if os.geteuid() != 0:  # who may read everything can't be kept out
        secret = folder / "secret.png"
        secret.write_bytes(encoded(photo(), "PNG"))
        secret.chmod(0)
        yield str(secret), "unreadable"
