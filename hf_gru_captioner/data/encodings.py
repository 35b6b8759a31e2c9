"""Bytes of a text file -> text: UTF-8 with or without a byte order mark, UTF-16 and UTF-32; nothing else is guessed.

A table in another encoding is refused, since a wrong guess would train on wrong letters; the message names the encoding
that fits.
"""

import codecs

MARKS = (  # the longer ones first: that of UTF-32 begins like that of UTF-16
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
WESTERN = frozenset([*map(chr, range(0xC0, 0x100)), *"ŠšŽžŒœŸ€‚„…‘’“”–—«»°²³§"])  # letters and signs of cp1252
HALFWIDTH_KATAKANA = range(0xFF61, 0xFFA0)  # what Thai looks like in Shift JIS


def decode_text(content: bytes, name: object) -> str:
    """The text of a file.

    Args:
        content: Its bytes.
        name: Its name in messages.

    Raises:
        ValueError: It is in none of these encodings, or has zero bytes; names the line, and the encoding that fits.
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
    """UTF-16 without a mark shows by its zeros: every other byte of mostly Western text."""
    beginning = content[:4096]
    half = len(beginning) // 2
    for encoding, zeros in (("utf-16-le", beginning[1::2]), ("utf-16-be", beginning[::2])):
        if half >= 4 and zeros.count(0) > 0.4 * half and beginning.count(0) < 0.6 * len(beginning):
            return encoding
    return "utf-8"


def fitting_encoding(content: bytes) -> str | None:
    """The name, as `iconv` takes it, of the encoding that text most likely has; None if it looks like no text."""
    if content.count(0):
        return None
    try:
        from charset_normalizer import from_bytes  # comes with `datasets`
    except ImportError:
        return "cp1252"
    found = from_bytes(content, cp_isolation=list(CANDIDATES)).best()
    if found is None:
        return None
    name = found.encoding
    katakana = sum(ord(letter) in HALFWIDTH_KATAKANA for letter in str(found))
    if katakana > 0.1 * len(str(found)) and _decodes(content, "cp874"):
        return "cp874"
    western = _decoded(content, "cp1252")
    if name in LATIN and western and all(letter.isascii() or letter in WESTERN for letter in western):
        return "cp1252"  # the commonest of those that give letters of Western Europe
    return name


def _decodes(content: bytes, encoding: str) -> bool:
    return _decoded(content, encoding) is not None


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None
