"""Decodes text files: UTF-8 with or without a byte order mark, UTF-16 and UTF-32; nothing else is guessed.

A table in another encoding is rejected, since a wrong guess would train on wrong letters; the message names the most
likely encoding.
"""

import codecs

MARKS = (  # longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CANDIDATES = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "koi8_r", "mac_roman"),
)
LOOKED_AT = 1 << 15  # bytes before and after the first one that is not UTF-8
LATIN = ("cp1250", "cp1254", "cp1257", "cp1258", "mac_roman")
WESTERN = frozenset([*map(chr, range(0xC0, 0x100)), *"ŠšŽžŒœŸ€‚„…‘’“”–—«»°²³§"])  # letters and symbols of cp1252
HALFWIDTH_KATAKANA = range(0xFF61, 0xFFA0)  # Thai decoded as Shift JIS


def decode_text(content: bytes, name: object) -> str:
    """Decodes the text of a file.

    Args:
        content: The file's bytes.
        name: Its name in messages.

    Raises:
        ValueError: It is in another encoding, or has zero bytes; names the line and the most likely encoding.
    """
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), None) or _unmarked(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise ValueError(
                f"{name} is not whole {encoding.upper()} text ({error.reason}): save it as UTF-8."
            ) from error
        line = content.count(b"\n", 0, error.start) + 1
        fitting = fitting_encoding(content[max(0, error.start - LOOKED_AT) : error.start + LOOKED_AT])
        hint = f" The encoding that fits is {fitting}: iconv -f {fitting} -t UTF-8 converts it." if fitting else ""
        raise ValueError(
            f"{name} is not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}): save it as UTF-8.{hint}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{name} has a zero byte in line {line}, which no text has: it is damaged, or of another kind."
        )
    return text


def _unmarked(content: bytes) -> str:
    """Detects UTF-16 without a byte order mark by zeros in every other byte, which Western text has."""
    beginning = content[:4096]
    half = len(beginning) // 2
    for encoding, zeros in (("utf-16-le", beginning[1::2]), ("utf-16-be", beginning[::2])):
        if half >= 4 and zeros.count(0) > 0.4 * half and beginning.count(0) < 0.6 * len(beginning):
            return encoding
    return "utf-8"


def fitting_encoding(content: bytes) -> str | None:
    """The most likely encoding, by its `iconv` name; None if it doesn't look like text."""
    if content.count(0):
        return None
    try:
        from charset_normalizer import from_bytes  # comes with `datasets`
    except ImportError:
        return "cp1252"
    best = from_bytes(content, cp_isolation=list(CANDIDATES)).best()
    if best is None:
        return None
    name = best.encoding
    katakana = sum(ord(letter) in HALFWIDTH_KATAKANA for letter in str(best))
    if katakana > 0.1 * len(str(best)) and _decodes(content, "cp874"):
        return "cp874"
    western = _decoded(content, "cp1252")
    if name in LATIN and western and all(letter.isascii() or letter in WESTERN for letter in western):
        return "cp1252"  # the most common Western European encoding
    return name


def _decodes(content: bytes, encoding: str) -> bool:
    return _decoded(content, encoding) is not None


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None
