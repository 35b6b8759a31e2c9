"""Finds the labels that a caption names, and how many of each.

A label is named by its own words, its synonyms and the English plurals of both. The longest name wins, so that "hot
dog" does not name a dog.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import UsageError, reason_of

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
POSSESSIVE = re.compile(r"['’]s$")
INVARIANT = (  # same form in singular and plural
    *("aircraft", "binoculars", "cattle", "deer", "fish", "furniture", "glasses", "jeans", "luggage", "pants"),
    *("police", "scissors", "sheep", "shorts", "skis"),
)
IRREGULAR = dict(
    **{word: word for word in INVARIANT},
    **{word: f"{word}s" for word in ("german", "human")},  # which end like "man"
    **{word: f"{word}es" for word in ("potato", "tomato")},
    **{f"{word}f": f"{word}ves" for word in ("cal", "hal", "lea", "loa", "scar", "shel", "wol")},
    child="children",
    foot="feet",
    goose="geese",
    knife="knives",
    mouse="mice",
    ox="oxen",
    person="people",
    tooth="teeth",
)
MANY = (3, math.inf)
NUMBERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("a", "an", "another", "lone", "one", "other", "single"), (1, 1)),
    **dict.fromkeys(("both", "couple", "pair", "two"), (2, 2)),
    **{word: (number, number) for number, word in enumerate(("three", "four", "five", "six", "seven", "eight"), 3)},
    **dict.fromkeys(("family", "multiple", "some", "team"), (2, math.inf)),
    **dict.fromkeys(("bunch", "crowd", "dozens", "few", "flock", "group", "herd", "lots", "many"), MANY),
    **dict.fromkeys(("numerous", "pack", "several", "various"), MANY),
}
# A number before one of these words doesn't refer to the name after it.
BORDERS = {
    *("and", "are", "as", "at", "behind", "beside", "by", "for", "from", "holding", "in", "is", "near", "next", "on"),
    *("or", "over", "riding", "that", "to", "under", "while", "with"),
}
MAX_DISTANCE = 4  # words between a number and the name


class Said(NamedTuple):
    """The number of objects with a label, according to a caption."""

    minimum: float
    maximum: float


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return WORD.findall(text.lower())


def normalized(label: str) -> str:
    """A normalized label for comparison: "Hot_dog" -> "hot dog"."""
    return " ".join(words_of(label.replace("_", " ")))


def plural_of(name: str) -> str:
    """The English plural of a name; only the last word changes."""
    first, _, last = name.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("man"):
        last = f"{last[:-3]}men"
    elif re.search(r"[^aeiou]y$", last):
        last = f"{last[:-1]}ies"
    else:
        last += "es" if re.search(r"(?:[sxz]|[cs]h)$", last) else "s"
    return f"{first} {last}".strip()


def read_synonyms(*paths: str | Path) -> dict[str | None, list[str]]:
    """Reads YAML files of `label: [words that name it]`; words under `null` name no label, unless a later file says so.

    Raises:
        FileNotFoundError: No such file.
        UsageError: The file is malformed; says where.
    """
    synonyms: dict[str | None, list[str]] = {}
    for path in paths:
        own = _read_synonyms(path)
        named = {name for label, names in own.items() if label is not None for name in names}
        if None in synonyms:
            synonyms[None] = [name for name in synonyms[None] if name not in named]
        for label, names in own.items():
            synonyms.setdefault(label, []).extend(names)
    return synonyms


def _read_synonyms(path: str | Path) -> dict[str | None, list[str]]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must map each label to a list of words, such as `cat: [kitten, kitty]`.")
    for label, names in content.items():
        is_list = isinstance(names, list) and all(isinstance(name, str) and words_of(name) for name in names)
        if not isinstance(label, str | None) or not is_list:
            raise UsageError(
                f"{path}: the label {label!r} must be text, and its words a list of texts, such as "
                "`cat: [kitten, kitty]`; quote words like 'no' and 'on'."
            )
    return content


class LabelNames:
    """Finds labels in captions.

    Args:
        labels: All labels.
        synonyms: Words that name a label, by label; those of None name no label ("bus stop").
    """

    def __init__(self, labels: Iterable[str], synonyms: Mapping[str | None, Sequence[str]] | None = None):
        names: dict[str, list[str]] = {normalized(label): [normalized(label)] for label in labels}
        nothing: list[str] = []
        for label, words in (synonyms or {}).items():
            own = nothing if label is None else names.setdefault(normalized(label), [normalized(label)])
            own += map(normalized, words)
        self.labels = sorted(filter(None, names))
        self.index = {label: number for number, label in enumerate(self.labels)}
        self._by_words: dict[tuple[str, ...], list[tuple[int, bool | None]]] = {}
        for label in self.labels:
            for name, is_plural in _with_plurals(names[label]).items():
                self._by_words.setdefault(tuple(name.split()), []).append((self.index[label], is_plural))
        for name in nothing:
            for each in (name, plural_of(name)):
                self._by_words[tuple(each.split())] = []
        self._longest = max(map(len, self._by_words), default=0)

    def said(self, caption: str) -> dict[int, Said]:
        """The labels that a caption names, by index, with their numbers."""
        words = [POSSESSIVE.sub("", word) for word in words_of(caption)]
        mentions: dict[int, list[tuple[Said, bool]]] = {}
        position = border = 0
        while position < len(words):
            longest = min(self._longest, len(words) - position)
            length = next(
                (n for n in range(longest, 0, -1) if tuple(words[position : position + n]) in self._by_words), 0
            )
            if not length:
                position += 1
                continue
            before = words[max(border, position - MAX_DISTANCE) : position]
            for label, is_plural in self._by_words[tuple(words[position : position + length])]:
                mentions.setdefault(label, []).append(_mention(before, words[position + length - 1], is_plural))
            position += length
            border = position
        return {label: _combined(each) for label, each in mentions.items()}

    def named(self, caption: str) -> set[str]:
        """The labels that a caption names."""
        return {self.labels[index] for index in self.said(caption)}


def _with_plurals(names: Sequence[str]) -> dict[str, bool | None]:
    """These names and their plurals, and whether each is a plural; None if both forms are the same."""
    plurals = {plural_of(name) for name in names}
    singular = {name: None if plural_of(name) == name else name in plurals for name in names}
    return {**dict.fromkeys(plurals, True), **singular}


def _mention(before: Sequence[str], last: str, is_plural: bool | None) -> tuple[Said, bool]:
    """The number given by a mention, and whether it introduces new objects; `before` are the preceding words."""
    if last in NUMBERS:  # "a crowd", "a couple"
        return Said(*NUMBERS[last]), True
    number = None
    for word in reversed(before):
        if word in BORDERS:
            break
        if word in NUMBERS and not (is_plural is None and word == "pair"):  # a pair of scissors is one
            number = NUMBERS[word]
            break
    if is_plural:
        minimum, maximum = number or (2, math.inf)
        return Said(
            max(2, minimum), max(2, maximum) if maximum > 1 else math.inf
        ), number is not None  # "one of the dogs"
    if number is not None:
        return Said(*number), True
    return Said(1, math.inf if is_plural is None else 1), False


def _combined(mentions: Sequence[tuple[Said, bool]]) -> Said:
    """The number given by several mentions: "a cat and a cat" are two, "a cat and the cat" one or two."""
    introduced = sum(said.minimum for said, introduces in mentions if introduces)
    minimum = max(introduced, *(said.minimum for said, _ in mentions))
    return Said(minimum, max(minimum, sum(said.maximum for said, _ in mentions)))
