import pytest
from transformers import AutoTokenizer

from hf_gru_captioner.tokenization import build_tokenizer, count_unknown, extend_tokenizer, special_token_ids

SENTENCES = {
    "A Dog RUNS .": "a dog runs",
    'Two men, one in red ; "stop" ( sign ) -- go!': "two men one in red stop sign go",
    "A man's T-shirt": "a man 's t-shirt",
    "It isn't, can't and won't": "it is n't ca n't and wo n't",
    "They're we've I'll he'd I'm": "they 're we 've i 'll he 'd i 'm",
    "The dogs' ball": "the dogs ball",
    "It’s a “café” at 5 o’clock": "it 's a café at 5 o'clock",
    "1,000 people , 2.5 km": "1,000 people 2.5 km",
    "black-and-white": "black-and-white",
    "ﬁsh & chips": "fish & chips",
}


def tokens_of(tokenizer, sentence):
    return tokenizer.convert_ids_to_tokens(tokenizer(sentence, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("sentence", SENTENCES)
def test_words_are_what_scorers_count(sentence):
    tokenizer = build_tokenizer(SENTENCES, min_count=1)
    assert tokens_of(tokenizer, sentence) == SENTENCES[sentence].split()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_decoding_gives_a_readable_sentence(kind):
    tokenizer = build_tokenizer(SENTENCES, kind=kind, min_count=1)
    for sentence, readable in {
        "A man's T-shirt": "a man's t-shirt",
        "It isn't, can't and won't": "it isn't can't and won't",
        "Two men, one in red": "two men one in red",
    }.items():
        assert tokenizer.decode(tokenizer(sentence)["input_ids"], skip_special_tokens=True) == readable


def test_captions_end_with_the_end_token_and_have_no_start_token():
    tokenizer = build_tokenizer(SENTENCES, min_count=1)
    ids = tokenizer("A dog runs")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in ids


def test_long_captions_are_cut_but_keep_their_end():
    tokenizer = build_tokenizer(SENTENCES, min_count=1, max_length=5)
    ids = tokenizer(["a dog runs in red at a man"], truncation=True)["input_ids"][0]
    assert len(ids) == 5
    assert ids[-1] == tokenizer.eos_token_id


def test_rare_words_are_unknown():
    tokenizer = build_tokenizer(["a dog", "a dog", "a cat"], min_count=2)
    assert tokens_of(tokenizer, "a dog a cat") == ["a", "dog", "a", "<unk>"]
    assert count_unknown(tokenizer, ["a dog", "a cat ."]) == (1, 4)
    assert special_token_ids(tokenizer) == {
        "vocab_size": 6,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 3,
    }


def test_the_vocabulary_keeps_the_most_frequent_words():
    tokenizer = build_tokenizer(["a dog", "a dog", "a cat"], min_count=1, vocab_size=6)
    assert set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) == {"a", "dog"}


def test_byte_pairs_spell_words_that_training_never_saw():
    tokenizer = build_tokenizer(["dog ran", "cat sat", "dogs run", "cats sit", "car art"], kind="bpe", min_count=1)
    assert tokenizer.decode(tokenizer("carts dog")["input_ids"], skip_special_tokens=True) == "carts dog"
    assert count_unknown(tokenizer, ["carts dog"])[0] == 0


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_tokenizer_survives_the_way_to_disk_and_back(kind, tmp_path):
    tokenizer = build_tokenizer(SENTENCES, kind=kind, min_count=1)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for sentence in SENTENCES:
        ids = tokenizer(sentence)["input_ids"]
        assert loaded(sentence)["input_ids"] == ids
        assert loaded.decode(ids) == tokenizer.decode(ids)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match='kind must be "word", "bpe" or "verbatim", found \'char\''):
        build_tokenizer(SENTENCES, kind="char")
    with pytest.raises(ValueError, match="no word occurs 9 times"):
        build_tokenizer(["a dog"], min_count=9)


def test_new_words_take_no_id_of_tokens_that_were_added():
    tokenizer = build_tokenizer(["a dog runs"], min_count=1)
    tokenizer.add_tokens(["quux", "zzyzx"])
    before = tokenizer.get_vocab()
    extended, words = extend_tokenizer(tokenizer, ["a cat , zzyzx"], min_count=1)
    assert words == ["cat"]
    assert extended.get_vocab() == before | {"cat": len(before)}
    assert extended.decode(extended("quux cat zzyzx", add_special_tokens=False)["input_ids"]) == "quux cat zzyzx"
