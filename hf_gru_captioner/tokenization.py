"""Captions -> a tokenizer of them, by whole words or by byte-pair pieces.

A caption's words are what the field's scorers count (the Penn Treebank tokenizer of pycocoevalcap): lower case, no
punctuation, `man's` as `man 's`, `isn't` as `is n't`, `t-shirt` and `my_dog` whole. Decoding joins them again: "the
man's t-shirt".

That suits English. Other languages put no spaces between words, or need capitals and punctuation to be right; their
captions are cut into byte-pair pieces of the text as it is written (Kudo and Richardson, 2018, "SentencePiece",
https://aclanthology.org/D18-2012, with the spaces as part of the pieces), and come out as they were written.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .evaluation.writing_systems import FOREIGN, MANY, language_of, num_foreign, spaceless_share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The order gives the ids: 0 start, 1 padding, 2 end, 3 unknown, as in GRUCaptionerConfig.
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))(?![\p{L}\p{N}])"
_WORD_BEFORE_NOT = r"[\p{L}\p{M}]+(?=n't(?![\p{L}\p{N}]))"  # greedy, then backtracking: "isn't" -> "is"


def _words(letters: str, first: str) -> str:
    """The expression of words of these letters, the first of which may be another expression."""
    word = rf"{first}[{letters}]*(?:(?!{_CLITIC})(?:[-'.]|(?<=\p{{N}}),(?=\p{{N}}))[{letters}]+)*"
    return rf"{_CLITIC}|{_WORD_BEFORE_NOT}|{word}|[&$%]"


_PATTERN = _words(r"\p{L}\p{N}\p{M}_", r"(?<!_)_*[\p{L}\p{N}\p{M}]")  # `my_dog` and `_dog` are words, `__` is not
_PATTERN_BEFORE_UNDERSCORES = _words(r"\p{L}\p{N}\p{M}", r"[\p{L}\p{N}\p{M}]").replace(
    "][\\p{L}\\p{N}\\p{M}]*(", "]+(", 1
)
_QUOTES = "[‘’`´]"
_BEFORE_CLITIC = rf" (?={_CLITIC})"
_SPACES = r"\s+"
PATTERNS = {  # all regular expressions of these tokenizers, and of those of version 0.1
    *(_PATTERN, _PATTERN_BEFORE_UNDERSCORES, _QUOTES, _BEFORE_CLITIC, _SPACES),
}

SPACE = "\u2581"  # how a space is written in pieces of the text as it is
CAPITALIZED = 0.5  # share of captions with a capital inside, below the first word, as in German
LENGTH = 40  # tokens of a caption, the end token included
MAX_LENGTH = 250  # of a caption in pieces, unless the caller wants more
NEARLY_ALL = 0.995  # of the captions


def suitable_kind(captions: Iterable[str]) -> tuple[str, str]:
    """The kind of tokenizer that suits captions, and why, for a message."""
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
        captions: The training captions, as they are.
        kind: `"word"`, or `"bpe"` for byte-pair pieces of words, which can spell those that training never saw;
            `"verbatim"` for byte-pair pieces of the text as it is written, with capitals, punctuation and spaces.
        min_count: Words (of pieces, pairs) seen less often are left out.
        vocab_size: At most so many tokens, the four special ones included; None for no limit (of pieces: 8192).
        max_length: Longer captions are cut to so many tokens, the end token included. None: 40; for `"verbatim"` what
            nearly all captions need, from 40 to 250.

    Returns:
        A tokenizer that ends each caption with its end token and never begins it with the start token.

    Raises:
        ValueError: An unknown kind, or no word is left.
    """
    from transformers import PreTrainedTokenizerFast  # not above: graphs go by what is said there, without torch

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
    """Whether a tokenizer's tokens are pieces of the text as it is written."""
    return isinstance(tokenizer.backend_tokenizer.decoder, decoders.Metaspace)


def needed_length(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> int:
    """The number of tokens, the end token included, that nearly all captions need, from 40 to 250."""
    needed = sorted(lengths(tokenizer, captions))
    return max(LENGTH, min(MAX_LENGTH, needed[min(len(needed) - 1, int(NEARLY_ALL * len(needed)))]))


def extend_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", captions: Iterable[str], min_count: int
) -> tuple["PreTrainedTokenizerFast", list[str]]:
    """Adds the words of captions to a tokenizer of whole words; the ids of known words stay.

    Args:
        tokenizer: Stays unchanged. Of byte-pair pieces nothing is added, since they spell any word.
        captions: As they are.
        min_count: Words seen less often are left out.

    Returns:
        The extended tokenizer, and the new words, the most frequent first.
    """
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "WordLevel":
        return tokenizer, []
    vocabulary = state["model"]["vocab"]
    if state["pre_tokenizer"].get("pattern") == {"Regex": _PATTERN_BEFORE_UNDERSCORES}:
        state["pre_tokenizer"]["pattern"] = {"Regex": _PATTERN}  # new words may have underscores
    split = Tokenizer.from_str(json.dumps(state))
    counts = Counter(
        word
        for caption in captions
        for word, _ in split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(caption))
    )
    words = [word for word, count in counts.most_common() if count >= min_count and word not in vocabulary]
    vocabulary |= {word: number for number, word in enumerate(words, len(vocabulary))}
    extended = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )
    return extended, words


def special_token_ids(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """The fields of `GRUCaptionerConfig` that must agree with the tokenizer."""
    return {"vocab_size": len(tokenizer), **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in SPECIAL_TOKENS}}


def count_unknown(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> tuple[int, int]:
    """How many words of the captions are unknown to the tokenizer, and how many there are."""
    ids = [token for row in tokenizer(list(captions), add_special_tokens=False)["input_ids"] for token in row]
    return sum(token == tokenizer.unk_token_id for token in ids), len(ids)


def lengths(tokenizer: "PreTrainedTokenizerFast", captions: Sequence[str]) -> list[int]:
    """The number of tokens of each caption, the end token included, before it is cut."""
    return [len(row) for row in tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]
