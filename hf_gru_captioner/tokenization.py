"""Captions -> a tokenizer of them, by whole words or by byte-pair pieces.

A caption's words are what the field's scorers count (the Penn Treebank tokenizer of pycocoevalcap): lower case, no
punctuation, `man's` as `man 's`, `isn't` as `is n't`, `t-shirt` whole. Decoding joins them again: "the man's t-shirt".
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The order gives the ids: 0 start, 1 padding, 2 end, 3 unknown, as in GRUCaptionerConfig.
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

_CLITIC = r"(?:n't|'(?:s|re|ve|ll|d|m))(?![\p{L}\p{N}])"
_WORD = rf"[\p{{L}}\p{{N}}\p{{M}}]+(?:(?!{_CLITIC})(?:[-'.]|(?<=\p{{N}}),(?=\p{{N}}))[\p{{L}}\p{{N}}\p{{M}}]+)*"
_WORD_BEFORE_NOT = r"[\p{L}\p{M}]+(?=n't(?![\p{L}\p{N}]))"  # greedy, then backtracking: "isn't" -> "is"
_PATTERN = rf"{_CLITIC}|{_WORD_BEFORE_NOT}|{_WORD}|[&$%]"
_QUOTES = "[‘’`´]"
_BEFORE_CLITIC = rf" (?={_CLITIC})"
PATTERNS = {_PATTERN, _QUOTES, _BEFORE_CLITIC}  # all regular expressions of these tokenizers


def build_tokenizer(
    captions: Iterable[str],
    *,
    kind: str = "word",
    min_count: int = 5,
    vocab_size: int | None = None,
    max_length: int = 40,
) -> "PreTrainedTokenizerFast":
    """Learns a caption tokenizer.

    Args:
        captions: The training captions, as they are.
        kind: `"word"`, or `"bpe"` for byte-pair pieces, which can spell words that training never saw.
        min_count: Words (for `"bpe"`, pairs) seen less often are left out.
        vocab_size: At most so many tokens, the four special ones included; None for no limit (`"bpe"`: 8192).
        max_length: Longer captions are cut to so many tokens, the end token included.

    Returns:
        A tokenizer that ends each caption with its end token and never begins it with the start token.

    Raises:
        ValueError: An unknown kind, or no word is left.
    """
    from transformers import PreTrainedTokenizerFast  # not above: graphs go by what is said there, without torch

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
    else:
        raise ValueError(f'kind must be "word" or "bpe", found {kind!r}.')

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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,  # the decoder joins words
        **SPECIAL_TOKENS,
    )


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
    split = tokenizer.backend_tokenizer
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
