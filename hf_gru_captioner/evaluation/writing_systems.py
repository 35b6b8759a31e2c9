"""Writing systems without spaces between words, where splitting on spaces doesn't give words.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan. Korean, Arabic and the scripts of India have spaces.
Unicode blocks: https://www.unicode.org/Public/UNIDATA/Blocks.txt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_BLOCKS = {
    "Chinese": ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3347F)),
    "Japanese": (
        (0x3041, 0x3096),
        (0x309D, 0x309F),
        (0x30A1, 0x30FA),
        (0x30FC, 0x30FF),
        (0x31F0, 0x31FF),
        (0xFF66, 0xFF9D),
    ),
    "Thai": ((0x0E01, 0x0E30), (0x0E32, 0x0E33), (0x0E40, 0x0E46)),
    "Lao": ((0x0E81, 0x0EB0), (0x0EB2, 0x0EB3), (0x0EBD, 0x0EC6), (0x0EDC, 0x0EDF)),
    "Tibetan": ((0x0F40, 0x0F6C), (0x0F88, 0x0F8C)),
    "Burmese": ((0x1000, 0x102A), (0x103F, 0x103F), (0x1050, 0x1055)),
    "Khmer": ((0x1780, 0x17B3), (0x17D7, 0x17D7)),
}
FOREIGN = 0.1  # minimum share of captions with letters other than a to z to count as another language
MANY = 0.1  # minimum share of letters to count as written without spaces


def _class(ranges: Iterable[tuple[int, int]]) -> str:
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)


def _mark_ranges() -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for code in range(0x300, 0x10000):
        if unicodedata.category(chr(code)) in ("Mn", "Mc"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = (ranges[-1][0], code)
            else:
                ranges.append((code, code))
    return ranges


MARKS = _class(_mark_ranges()) + "\u200c\u200d"  # accents, vowel signs and joiners, for an `re` character class
_SPACELESS = _class(block for blocks in _BLOCKS.values() for block in blocks)
_LETTER = re.compile(f"[{_SPACELESS}][{MARKS}]*")


def spaceless_share(captions: Iterable[str]) -> float:
    """The share of letters in captions that belong to a script without spaces, 0 to 1."""
    letters = spaceless = 0
    for caption in captions:
        letters += sum(map(str.isalpha, caption))
        spaceless += sum(map(str.isalpha, "".join(_LETTER.findall(caption))))
    return spaceless / letters if letters else 0.0


def num_foreign(captions: Iterable[str]) -> int:
    """The number of captions with letters other than a to z."""
    return sum(any(letter.isalpha() and not letter.isascii() for letter in caption) for caption in captions)


def language_of(captions: Iterable[str]) -> str:
    """The language of the most frequent script without spaces in captions; empty if there is none."""
    text = "".join(captions)
    counts = {name: len(re.findall(f"[{_class(blocks)}]", text)) for name, blocks in _BLOCKS.items()}
    if counts["Japanese"] > 0.05 * counts["Chinese"]:  # Japanese is written with Chinese letters too
        counts["Japanese"] += counts.pop("Chinese")
    language = max(counts, key=lambda name: counts[name])
    return language if counts[language] else ""


def letters_apart(caption: str) -> str:
    """A caption with spaces around each letter of a script without spaces; letters keep their marks."""
    return _LETTER.sub(r" \g<0> ", caption)
