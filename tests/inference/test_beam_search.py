"""Our search compared with transformers' generate(), on a model whose captions vary in length."""

from itertools import chain

import numpy as np
import pytest
import torch

from hf_gru_captioner import Captioner
from hf_gru_captioner.inference.beam_search import StepOutput, _largest, beam_search


@pytest.fixture
def captioner(make_model, processor, draw_weights):
    model = draw_weights(make_model(), seed=5)
    with torch.no_grad():
        model.lm_head.weight.mul_(12)  # sharper: captions of two to nine words
        model.lm_head.bias[model.config.eos_token_id] += 9
        model.lm_head.bias[[model.config.bos_token_id, model.config.pad_token_id, model.config.unk_token_id]] = -100
    model.generation_config.update(num_beams=3, max_new_tokens=9, length_penalty=0.9)
    return Captioner(model, processor)


@pytest.fixture
def photos(make_photo):
    return [make_photo(seed) for seed in range(12)]


def by_generate(captioner, monkeypatch, photos, **settings):
    with monkeypatch.context() as patch:
        patch.setattr("hf_gru_captioner.inference.pytorch.PyTorchBackend.can_search", False)
        return captioner(photos, **settings)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.9, 2.0, -1.0])
@pytest.mark.parametrize("suppresses", [False, True])
def test_captions_are_those_of_generate(captioner, photos, monkeypatch, num_beams, length_penalty, suppresses):
    suppressed = None
    if suppresses:
        words = max((caption.words for caption in captioner(photos)), key=len)[:2]  # which it would write
        assert len(words) == 2
        suppressed = captioner.processor.tokenizer.convert_tokens_to_ids(list(words))
    settings = {"num_beams": num_beams, "num_captions": num_beams, "suppress_tokens": suppressed}
    if num_beams > 1:
        settings["length_penalty"] = length_penalty
    found = captioner(photos, **settings)
    expected = by_generate(captioner, monkeypatch, photos, **settings)
    if length_penalty < 2:  # which prefers the longest by far
        assert len({len(caption.words) for of_photo in found for caption in of_photo}) > 1
    if suppressed:
        assert not [caption for of_photo in found for caption in of_photo if set(words) & set(caption.words)]
    for of_photo, expected_of_photo in zip(found, expected, strict=True):
        assert [caption.words for caption in of_photo] == [caption.words for caption in expected_of_photo]
        for caption, other in zip(of_photo, expected_of_photo, strict=True):
            assert caption.score == pytest.approx(other.score, abs=1e-4)
            assert caption.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
            np.testing.assert_allclose(caption.attention, other.attention, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("begin", ["a", "Two children play"])
def test_captions_go_on_from_words_as_those_of_generate_do(captioner, photos, monkeypatch, num_beams, begin):
    settings = {"num_beams": num_beams, "num_captions": num_beams, "begin": begin}
    found = captioner(photos, **settings)
    expected = by_generate(captioner, monkeypatch, photos, **settings)
    given = tuple(begin.lower().split())
    plain = captioner(photos)
    assert len({caption.words for of_photo in found for caption in of_photo}) > 1
    for of_photo, expected_of_photo in zip(found, expected, strict=True):
        assert [caption.words for caption in of_photo] == [caption.words for caption in expected_of_photo]
        for caption, other in zip(of_photo, expected_of_photo, strict=True):
            assert caption.words[: len(given)] == given
            assert caption.score == pytest.approx(other.score, abs=1e-4)
            assert caption.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
            np.testing.assert_allclose(caption.attention, other.attention, atol=1e-5)
    assert [caption.text for caption in captioner(photos)] == [caption.text for caption in plain]


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("begin", ["", "a dog"])
def test_no_phrase_is_repeated_as_with_generate(captioner, photos, monkeypatch, num_beams, size, begin):
    with torch.no_grad():  # longer captions, which repeat themselves
        captioner.model.lm_head.bias[captioner.model.config.eos_token_id] -= 6
    settings = {"num_beams": num_beams, "num_captions": num_beams, "begin": begin, "max_new_tokens": 14}
    repetitive = captioner(photos, **settings)
    found = captioner(photos, **settings, no_repeat_ngram_size=size)
    expected = by_generate(captioner, monkeypatch, photos, **settings, no_repeat_ngram_size=size)
    assert any(repeats(caption.words, size) for caption in chain(*repetitive))
    for caption, other in zip(chain(*found), chain(*expected), strict=True):
        assert not repeats(caption.words, size)
        assert caption.words == other.words
        assert caption.score == pytest.approx(other.score, abs=1e-4)


def repeats(words, size):
    ngrams = [words[start : start + size] for start in range(len(words) - size + 1)]
    return len(set(ngrams)) < len(ngrams)


def test_a_caption_that_begins_as_it_would_anyhow_is_the_same(captioner, photos):
    """With greedy search, each word is the likeliest one given the words before it."""
    caption = max((captioner(photo, num_beams=1) for photo in photos), key=lambda caption: len(caption.words))
    photo = next(photo for photo in photos if captioner(photo, num_beams=1).words == caption.words)
    again = captioner(photo, num_beams=1, begin=" ".join(caption.words[:2]))
    assert len(caption.words) > 2
    length = len(caption.words)  # which may have been all that it might write, without words that were given
    assert again.words[:length] == caption.words
    assert again.log_probabilities[:length] == pytest.approx(caption.log_probabilities, abs=1e-5)


def test_a_beginning_of_unknown_words_is_refused(captioner, photos):
    with pytest.raises(ValueError, match="can't begin with 'xyzzy': the checkpoint doesn't know the word"):
        captioner(photos[0], begin="a xyzzy dog")


def test_generate_is_not_called_where_the_search_knows_all_settings(captioner, photos, monkeypatch):
    monkeypatch.setattr(captioner.model, "generate", None)
    assert captioner(photos[0]).text == captioner(photos[0], do_sample=False, no_repeat_ngram_size=9).text


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"repetition_penalty": 1.2}, {"early_stopping": True}, {"min_new_tokens": 4}]
)
def test_generate_is_called_for_what_only_it_knows(captioner, photos, monkeypatch, settings):
    called = []
    generate = captioner.model.generate
    monkeypatch.setattr(captioner.model, "generate", lambda **given: called.append(given) or generate(**given))
    captioner(photos[0], **settings)
    assert settings.items() <= called[0].items()


def test_rivals_are_the_likeliest_words_in_each_place(captioner, photos, monkeypatch):
    with torch.inference_mode():
        encoded = captioner.encode(photos)
    found = captioner.decode(encoded, 2, num_alternatives=4)
    with monkeypatch.context() as patch:
        patch.setattr("hf_gru_captioner.inference.pytorch.PyTorchBackend.can_search", False)
        expected = captioner.decode(encoded, 2, num_alternatives=4)
    for caption, other in zip(chain(*found), chain(*expected), strict=True):
        for place, other_place in zip(caption.alternatives, other.alternatives, strict=True):
            assert [word for word, _ in place] == [word for word, _ in other_place]
            assert [share for _, share in place] == pytest.approx([share for _, share in other_place], abs=1e-4)


def test_a_model_without_attention_has_none(make_model, processor, photos):
    model = make_model(attention_type="none")
    model.generation_config.update(max_new_tokens=5)
    assert Captioner(model, processor)(photos[0], num_beams=2).attention is None


class TableStep:
    """A decoder that depends on the last word only: log-probabilities by table row."""

    def __init__(self, table):
        self.table = table

    def __call__(self, tokens, states):
        return StepOutput(self.table[tokens], states, None)

    def of_images(self, images):
        return self


class CountingStep:
    """Wraps a step and records the batch size of each call."""

    def __init__(self, step, rows):
        self.step, self.rows = step, rows

    def __call__(self, tokens, states):
        self.rows.append(len(tokens))
        return self.step(tokens, states)

    def of_images(self, images):
        return CountingStep(self.step.of_images(images), self.rows)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_step_goes_on_without_images_whose_captions_are_done(captioner, photos, num_beams):
    states, step = captioner._backend.begin(captioner.encode(photos))
    config = captioner.model.config
    settings = {"start": config.decoder_start_token_id, "end": config.eos_token_id, "max_words": 9}
    rows = []
    found = beam_search(
        CountingStep(step, rows), states, num_beams=num_beams, num_captions=1, length_penalty=0.9, **settings
    )
    lengths = [len(hypothesis.tokens) for (hypothesis,) in found]
    assert min(lengths) < max(lengths)
    needed = [num_beams * sum(length > position for length in lengths) for position in range(len(rows))]
    if num_beams == 1:
        assert rows == needed
    else:  # which may look for a better one behind the caption that it returns
        assert rows == sorted(rows, reverse=True)
        assert rows[0] == needed[0] > rows[-1]


def test_a_beam_finds_what_greed_passes_over():
    #               end   a     b     c
    table = np.log([[0.01, 0.50, 0.45, 0.04], [0.30, 0.25, 0.25, 0.20], [0.90, 0.05, 0.03, 0.02], [0.25] * 4])
    table = table.astype(np.float32)
    settings = {"start": 0, "end": 0, "num_captions": 1, "max_words": 4, "length_penalty": 0.0}
    ((greedy,),) = beam_search(TableStep(table), np.zeros((2, 1, 1)), num_beams=1, **settings)
    ((beam,),) = beam_search(TableStep(table), np.zeros((2, 1, 1)), num_beams=2, **settings)
    assert greedy.tokens.tolist() == [1, 0]
    assert beam.tokens.tolist() == [2, 0]
    assert beam.log_probabilities.sum() == pytest.approx(np.log(0.45 * 0.9))


def test_a_caption_is_as_long_as_it_may_be_and_no_longer():
    table = np.log(np.full((3, 3), 1e-6, dtype=np.float32))
    table[:, 2] = 0  # never the end
    settings = {"start": 0, "end": 1, "num_captions": 1, "max_words": 4, "length_penalty": 1.0}
    for num_beams in (1, 2):
        ((found,),) = beam_search(TableStep(table), np.zeros((2, 1, 1)), num_beams=num_beams, **settings)
        assert found.tokens.tolist() == [2, 2, 2, 2]


def test_more_captions_than_beams_can_not_be_had():
    with pytest.raises(ValueError, match="2 beams can't give 3 captions"):
        beam_search(
            TableStep(np.zeros((3, 3))),
            np.zeros((2, 1, 1)),
            start=0,
            end=1,
            num_beams=2,
            num_captions=3,
            max_words=4,
            length_penalty=1.0,
        )


@pytest.mark.parametrize(("width", "count"), [(2541, 10), (641, 10), (640, 3), (130, 2), (100, 5), (4, 9), (500, 0)])
def test_the_largest_are_found_in_their_order(width, count):
    values = np.random.default_rng(width).normal(size=(4, width)).astype(np.float32)
    values[1] = values[1].round()  # many are equal
    values[2, ::3] = -np.inf
    values[3, -1] = 9  # behind the last whole block
    places, found = _largest(values, count, width)
    expected = -np.sort(-values, axis=1)[:, :count]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.take_along_axis(values, places, axis=1), expected)
    assert all(len(set(row)) == len(row) for row in places.tolist())


@pytest.mark.parametrize("noise_seed", range(20))
@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_rounding_never_decides_between_candidates_that_are_equal(num_beams, noise_seed):
    """Steps of two runtimes that differ in the last bits, for a model with tied words (1 and 2, 3 and 4)."""
    probabilities = np.array([0.04, 0.3, 0.3, 0.18, 0.18])
    table = np.log(np.stack([probabilities, probabilities[[0, 3, 3, 1, 1]], *[probabilities] * 3]))
    table[3:, 0] += 2  # these captions end
    noise = np.random.default_rng(noise_seed).uniform(-1e-6, 1e-6, table.shape)
    settings = {"start": 0, "end": 0, "max_words": 4, "length_penalty": 0.9, "num_alternatives": 4}
    settings |= {"num_beams": num_beams, "num_captions": num_beams}
    (found,) = beam_search(TableStep((table + noise).astype(np.float32)), np.zeros((2, 1, 1)), **settings)
    (expected,) = beam_search(TableStep(table.astype(np.float32)), np.zeros((2, 1, 1)), **settings)
    assert [each.tokens.tolist() for each in found] == [each.tokens.tolist() for each in expected]
    assert [each.alternatives.tolist() for each in found] == [each.alternatives.tolist() for each in expected]
    assert num_beams > 1 or expected[0].tokens[0] == 1  # the smaller id of two


@pytest.mark.parametrize(("vocab_size", "count"), [(2000, 6), (300, 8), (40, 5)])
def test_equal_values_come_by_token_id_then_by_beam(vocab_size, count):
    values = np.random.default_rng(1).normal(-9, 1, (2, 3 * vocab_size)).astype(np.float32)
    equal = [vocab_size + 30, 2 * vocab_size + 7, 11, vocab_size + 11]  # beam and token
    values[0, equal] = [-1, -1 + 9e-6, -1 - 9e-7, -1 + 9e-7]
    values[1, equal[0]], values[1, equal[2]] = -1, -1 - 2e-5  # told apart by their values
    indices, found = _largest(values, count, vocab_size)
    assert indices[0, :4].tolist() == [2 * vocab_size + 7, 11, vocab_size + 11, vocab_size + 30]
    assert indices[1, :2].tolist() == [vocab_size + 30, 11]
    np.testing.assert_array_equal(found, np.take_along_axis(values, indices, axis=1))
