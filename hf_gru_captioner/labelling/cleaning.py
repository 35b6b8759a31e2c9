"""Removes the boilerplate that large captioners habitually add to captions.

A student learns every habit of its teacher and wastes words on it. [`HABITS`] is the full list, in the order of
application; docs/distillation.md shows it.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_OF_PICTURES = r"(?:image|picture|photo|photograph|pic|scene)"
_SHOWS = r"(?:shows?|depicts?|displays?|features?|captures?|showcases?|portrays?|illustrates?|contains?|is of)"
_BEFORE_PLURALS = r"(?:two|three|four|five|six|seven|eight|nine|ten|some|several|many|few|group|both|these|those)"
_ON_SHOW = r".*\b(?:walls?|frames?|framed|hang\w*|hung|screens?|posters?|magazines?|books?)\b"  # a picture in the photo
_ANSWER = re.compile(r"^\W*(?:assistant|answer|caption|description|response)\s*:\s*", re.IGNORECASE)
_THERE_IS = re.compile(r"^there(?:\s+(?:is|are|was|were|seems? to be|appears? to be)|['’]s)\s+(?=\S)", re.IGNORECASE)
_THAT_IS = re.compile(r"^(\S+(?: \S+){0,4}?) (?:that|who|which) (?:is|are) (?=\w+ing\b)", re.IGNORECASE)
_IMAGE_SHOWS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^(?:the|this)\s+{_OF_PICTURES}\s+{_SHOWS}\s+(?=\S)",
        rf"^in\s+(?:the|this)\s+{_OF_PICTURES}\s*(?:,\s*(?=\S)|(?=there\b)|(?=(?:we|you|one)\s+can\b))",
        r"^(?:we|you|i|one)\s+can\s+see\s+(?=\S)",
        r"^(?:this|that|it)\s+is\s+(?=an?\b)",
    )
]
_PHOTO_OF = re.compile(
    rf"^(?:an?|the)\s+(?:close[- ]?up|(?:close[- ]?up\s+)?{_OF_PICTURES})\s+of\s+(?=\S)(?!{_ON_SHOW})", re.IGNORECASE
)
_IN_THE_IMAGE = re.compile(
    rf"[\s,]+(?:with)?in\s+(?:the|this)\s+{_OF_PICTURES}$|[\s,]+on\s+(?:the|this)\s+image$", re.I
)
_ARAFED = re.compile(r"\b(?:(?P<before>\w+)\s+)?araf\w*(?:\s+(?P<after>\w+))?", re.IGNORECASE)
# Words that are never doubled on purpose; others are: a yo yo, a choo choo train, the number 7 7.
_NEVER_DOUBLED = (
    "a|an|the|this|these|its|his|her|their|of|in|on|at|to|by|for|from|with|and|or|is|are|while|as|into|over|under|near|"
    "red|orange|yellow|green|blue|purple|pink|brown|black|white|gray|grey|beige|golden|silver"
)
_REPEATED = re.compile(rf"\b(?:(\w+)(?:\s+\1\b){{2,}}|({_NEVER_DOUBLED})\s+\2\b)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[^\s.!?])[.!?]+[\"'”’)*]*(?=\s+\S)")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|no|jr|sr|[a-z])$", re.IGNORECASE)
_MARKS = " \t\n*_`#-–—:;,"  # removed at both ends
_STOPS = " .!?,;:"  # removed at the end
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"))  # opening and closing
_EDGES = _MARKS + "".join(map("".join, _QUOTES))
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_STOP_IN_QUOTES = re.compile(r"[.,]+(?=[\"”]$)")  # as Americans write


class Habit(NamedTuple):
    """A pattern that is removed from captions.

    Attributes:
        name: Its name in the final counts.
        clean: Caption -> the caption without it.
        example: A caption with it, before and after.
    """

    name: str
    clean: Callable[[str], str]
    example: tuple[str, str]


def _first_line(caption: str) -> str:
    return next((line.strip() for line in caption.splitlines() if line.strip(_EDGES)), "")


def _without_answer(caption: str) -> str:
    return _ANSWER.sub("", caption)


def _without_quotes(caption: str) -> str:
    return _repeat(lambda text: _unquoted(text.strip(_MARKS)), caption)


def _repeat(change: Callable[[str], str], caption: str) -> str:
    """Changes a caption until nothing changes any more."""
    while (changed := change(caption)) != caption:
        caption = changed
    return caption


def _unquoted(caption: str) -> str:
    """Removes quotation marks around the whole caption, or one at an end that lacks its partner; keeps all others."""
    for opening, closing in _QUOTES:
        body = caption.rstrip(_STOPS)
        inner = body[1:-1]
        plain = _APOSTROPHE.sub("", inner)
        if len(body) > 1 and body[0] == opening and body[-1] == closing and not {opening, closing} & set(plain):
            return inner + caption[len(body) :]
        plain = _APOSTROPHE.sub("", caption)
        num_open, num_closed = plain.count(opening), plain.count(closing)
        if (num_open % 2 == 0) if opening == closing else (num_open == num_closed):
            continue
        surplus = opening if num_open >= num_closed else closing
        if surplus == opening and caption.startswith(surplus):
            return caption[1:]
        if caption.endswith(surplus):
            return caption[:-1]
        if caption.startswith(surplus):
            return caption[1:]
    return caption


def _first_sentence(caption: str) -> str:
    for end in _SENTENCE_END.finditer(caption):
        if not _ABBREVIATION.search(caption[: end.start()]):
            return caption[: end.end()]
    return caption


def _without_period(caption: str) -> str:
    return _repeat(lambda text: _STOP_IN_QUOTES.sub("", _unquoted(text.rstrip(_STOPS))), caption)


def _without_image_shows(caption: str) -> str:
    for pattern in _IMAGE_SHOWS:
        caption = pattern.sub("", caption)
    return caption


def _without_photo_of(caption: str) -> str:
    return _PHOTO_OF.sub("", caption)


def _without_there_is(caption: str) -> str:
    cleaned = _THERE_IS.sub("", caption)
    return caption if cleaned == caption else _THAT_IS.sub(r"\1 ", cleaned)


def _without_in_the_image(caption: str) -> str:
    return _IN_THE_IMAGE.sub("", caption)


def _without_arafed(caption: str) -> str:
    return _ARAFED.sub(_replace_arafed, caption)


def _replace_arafed(match: re.Match[str]) -> str:
    """BLIP writes "arafed" in place of "a", or after it."""
    before, after = match["before"], match["after"]
    if after is None or re.fullmatch(r"is|are|in|on|at|with|and|of|\w+ing", after, re.IGNORECASE):
        return match[0]  # in place of an unknown noun
    words = [after]
    if before is None or before.lower() in ("a", "an"):
        is_determined = re.fullmatch(rf"an?|the|{_BEFORE_PLURALS}|(?:wo)?men|people|children", after, re.IGNORECASE)
        words = [after] if is_determined else ["an" if after[0].lower() in "aeiou" else "a", after]
    elif before.lower() in ("is", "are", "of", "with", "in", "on", "and", "by", "near"):
        words = [before, "an" if after[0].lower() in "aeiou" else "a", after]
    else:
        words = [before, after]
    return " ".join(words)


def _without_repetition(caption: str) -> str:
    return _repeat(lambda text: _REPEATED.sub(lambda match: match[1] or match[2], text), caption)


HABITS = (
    Habit("several lines", _first_line, ("A dog.\n\nIt runs.", "A dog.")),
    Habit("Assistant:", _without_answer, ("Assistant: a dog on grass", "a dog on grass")),
    Habit("quotation marks", _without_quotes, ('"a dog on grass"', "a dog on grass")),
    Habit("several sentences", _first_sentence, ("A dog runs. It is brown.", "A dog runs.")),
    Habit("a period at the end", _without_period, ("a dog runs.", "a dog runs")),
    Habit("arafed", _without_arafed, ("arafed dog on grass", "a dog on grass")),
    Habit("the image shows", _without_image_shows, ("The image shows a dog on grass", "a dog on grass")),
    Habit("there is", _without_there_is, ("there is a dog that is running", "a dog running")),
    Habit("a photo of", _without_photo_of, ("a close up photo of a dog", "a dog")),
    Habit("in the image", _without_in_the_image, ("a dog on grass in the image", "a dog on grass")),
    Habit("a word twice in a row", _without_repetition, ("a red red dog", "a red dog")),
)


class Cleaner:
    """Cleans captions and counts the habits removed.

    Args:
        prompt: The teacher's prompt, which some repeat.
        is_on: Whether captions are cleaned; otherwise only whitespace is normalized.
    """

    ECHO = "the prompt's echo"

    def __init__(self, prompt: str | None = None, is_on: bool = True):
        self.counts: Counter[str] = Counter()
        self._prompt, self._is_on = " ".join((prompt or "").split()), is_on

    def __call__(self, caption: str) -> str:
        """The cleaned caption; empty if nothing useful is left."""
        if not self._is_on:
            return " ".join(caption.split())
        cleaned = caption.strip()
        if self._prompt and " ".join(cleaned.split()).lower().startswith(self._prompt.lower()):
            cleaned = " ".join(cleaned.split())[len(self._prompt) :].strip(_MARKS + ".")
            self.counts[self.ECHO] += 1
        for habit in HABITS:
            before, cleaned = cleaned, habit.clean(cleaned)
            self.counts[habit.name] += before != cleaned
        cleaned = " ".join(cleaned.split())
        return "" if _ARAFED.search(cleaned) or not re.search(r"\w", cleaned) else cleaned
