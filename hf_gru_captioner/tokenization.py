"""Learns caption tokenizers, word-level or with byte-pair encoding.

A caption's words are those counted by the usual scorers (the Penn Treebank tokenizer of pycocoevalcap): lower case, no
punctuation, `man's` as `man 's`, `isn't` as `is n't`, `t-shirt` and `my_dog` whole. Decoding joins them again: "the
man's t-shirt".

That suits English. Other languages have no spaces between words, or need capitals and punctuation; their captions are
split into byte-pair pieces of the raw text (Kudo and Richardson, 2018, "SentencePiece",
https://aclanthology.org/D18-2012, with spaces as part of the pieces), and are decoded unchanged.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .evaluation.writing_systems import FOREIGN, MANY, language_of, num_foreign, spaceless_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# In the order of their ids: 0 start, 1 padding, 2 end, 3 unknown, as in GRUCaptionerConfig.
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))(?![\p{L}\p{N}])"
_WORD_BEFORE_NOT = r"[\p{L}\p{M}]+(?=n't(?![\p{L}\p{N}]))"  # greedy, then backtracking: "isn't" -> "is"


def _words(letters: str, first: str) -> str:
    """A regular expression for words of these letters; `first` matches the first letter."""
    word = rf"{first}[{letters}]*(?:(?!{_CLITIC})(?:[-'.]|(?<=\p{{N}}),(?=\p{{N}}))[{letters}]+)*"
    return rf"{_CLITIC}|{_WORD_BEFORE_NOT}|{word}|[&$%]"


_PATTERN = _words(r"\p{L}\p{N}\p{M}_", r"(?<!_)_*[\p{L}\p{N}\p{M}]")  # `my_dog` and `_dog` are words, `__` is not
_PATTERN_BEFORE_UNDERSCORES = _words(r"\p{L}\p{N}\p{M}", r"[\p{L}\p{N}\p{M}]").replace(
    "][\\p{L}\\p{N}\\p{M}]*(", "]+(", 1
)
_QUOTES = "[‘’`´]"
_BEFORE_CLITIC = rf" (?={_CLITIC})"
_SPACES = r"\s+"
PATTERNS = {  # all regular expressions of these tokenizers, including those of version 0.1
    *(_PATTERN, _PATTERN_BEFORE_UNDERSCORES, _QUOTES, _BEFORE_CLITIC, _SPACES),
}

SPACE = "\u2581"  # represents a space in pieces of raw text
CAPITALIZED = 0.5  # share of captions with a capitalized word after the first, as in German
LENGTH = 40  # tokens of a caption, including the end token
MAX_LENGTH = 250  # default maximum in pieces of raw text
NEARLY_ALL = 0.995  # of the captions


def suitable_kind(captions: Iterable[str]) -> tuple[str, str]:
    """The appropriate kind of tokenizer for captions, and the reason, for a message."""
    captions = list(captions)
    if spaceless_share(captions) >= MANY:
        return "verbatim", f"{language_of(captions)} puts no spaces between words"
    foreign = num_foreign(captions)
    if foreign > FOREIGN * len(captions):
        return "verbatim", f"{foreign:,} of {len(captions):,} captions have letters other than a to z"
    capitalized = sum(
        any(word[0].isupper() for word in caption.split()[1:]) and not caption.isupper() for caption in captions
    )
    if capitalized > CAPITALIZED * len(captions):
        return "verbatim", f"{capitalized:,} of {len(captions):,} captions have capitals inside"
    return "word", "the captions are in lower case English, or in a language written like it"


def build_tokenizer(
    captions: Iterable[str],
    *,
    kind: str = "word",
    min_count: int = 5,
    vocab_size: int | None = None,
    max_length: int | None = None,
) -> "PreTrainedTokenizerFast":
    """Learns a caption tokenizer.

    Args:
        captions: The raw training captions.
        kind: `"word"`, or `"bpe"` for byte-pair pieces of words, which can spell words not seen in training;
            `"verbatim"` for byte-pair pieces of the raw text, with capitals, punctuation and spaces.
        min_count: Words (for pieces, pairs) that occur less often are dropped.
        vocab_size: Maximum vocabulary size, including the four special tokens; None for no limit (for pieces 8192).
        max_length: Captions are truncated to this number of tokens, including the end token. None: 40; for
            `"verbatim"` what nearly all captions need, from 40 to 250.

    Returns:
        A tokenizer that appends the end token to each caption, but doesn't prepend the start token.

    Raises:
        ValueError: An unknown kind, or an empty vocabulary.
    """
    from transformers import PreTrainedTokenizerFast  # deferred: graphs use this module without torch

    captions = list(captions)
    special_tokens = list(SPECIAL_TOKENS.values())
    unknown = SPECIAL_TOKENS["unk_token"]
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
        trainer: trainers.Trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size or 2**31 - 1,
            min_frequency=min_count,
            special_tokens=special_tokens,
            show_progress=False,
        )
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown, continuing_subword_prefix="##"))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size or 8192,
            min_frequency=min_count,
            special_tokens=special_tokens,
            continuing_subword_prefix="##",
            show_progress=False,
        )
    elif kind == "verbatim":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size or 8192,
            min_frequency=min_count,
            special_tokens=special_tokens,
            show_progress=False,
        )
    else:
        raise ValueError(f'kind must be "word", "bpe" or "verbatim", found {kind!r}.')

    if kind == "verbatim":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(_SPACES), " "), normalizers.Strip()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(SPACE, prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
        )
        tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(_QUOTES), "'")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.WordPiece(prefix="##", cleanup=False),  # words apart, pieces together
                decoders.Fuse(),
                decoders.Replace(Regex(_BEFORE_CLITIC), ""),  # "man 's" -> "man's"
            ]
        )
    tokenizer.train_from_iterator(captions, trainer)
    if tokenizer.get_vocab_size() <= len(special_tokens):
        raise ValueError(f"no word occurs {min_count} times in the captions: give more captions or a lower min_count.")
    end = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    built = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LENGTH if max_length is None else max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # the decoder joins words
        **SPECIAL_TOKENS,
    )
    if max_length is None and kind == "verbatim":
        built.model_max_length = needed_length(built, captions)
    return built


def is_verbatim(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether a tokenizer's tokens are pieces of the raw text."""
    return isinstance(tokenizer.backend_tokenizer.decoder, decoders.Metaspace)


def needed_length(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> int:
    """The number of tokens, including the end token, that nearly all captions need, from 40 to 250."""
    needed = sorted(lengths(tokenizer, captions))
    return max(LENGTH, min(MAX_LENGTH, needed[min(len(needed) - 1, int(NEARLY_ALL * len(needed)))]))


def extend_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", captions: Iterable[str], min_count: int
) -> tuple["PreTrainedTokenizerFast", list[str]]:
    """Adds the words of captions to a word-level tokenizer; ids of known words are kept.

    Args:
        tokenizer: Not modified. Nothing is added to byte-pair encodings, since they can spell any word.
        captions: Raw captions.
        min_count: Words that occur less often are dropped.

    Returns:
        The extended tokenizer, and the new words, most frequent first.
    """
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "WordLevel":
        return tokenizer, []
    vocabulary = state["model"]["vocab"] | tokenizer.get_vocab()  # with tokens added since
    state["model"]["vocab"] = vocabulary
    if state["pre_tokenizer"].get("pattern") == {"Regex": _PATTERN_BEFORE_UNDERSCORES}:
        state["pre_tokenizer"]["pattern"] = {"Regex": _PATTERN}  # new words may have underscores
    split = Tokenizer.from_str(json.dumps(state))
    counts = Counter(
        word
        for caption in captions
        for word, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(caption))
    )
    words = [word for word, count in counts.most_common() if count >= min_count and word not in vocabulary]
    vocabulary |= {word: number for number, word in enumerate(words, max(vocabulary.values()) + 1)}
    extended = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )
    return extended, words


def special_token_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """The fields of `GRUCaptionerConfig` that must match the tokenizer."""
    return {"vocab_size": len(tokenizer), **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL_TOKENS}}


def count_unknown(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> tuple[int, int]:
    """The number of unknown words in the captions, and the number of all words."""
    ids = [token for row in tokenizer(list(captions), add_special_tokens=False)["input_ids"] for token in row]
    return sum(token == tokenizer.unk_token_id for token in ids), len(ids)


def lengths(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> list[int]:
    """The number of tokens in each caption, including the end token, before truncation."""
    return [len(row) for row in tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]
