"""Captions as JSON."""

import math

import pytest

from hf_gru_captioner.captioner import Caption
from hf_gru_captioner.web.answers import caption_as_json


def caption(words: str, *probabilities: float, alternatives=()) -> Caption:
    logs = tuple(map(math.log, probabilities))
    return Caption(words, sum(logs), tuple(words.split()), logs, None, tuple(alternatives))


def test_the_probability_of_a_caption_is_the_mean_of_its_words_whatever_its_length():
    assert caption_as_json(caption("a dog", 0.9, 0.4))["mean_probability"] == 0.6
    assert caption_as_json(caption("a dog a dog", 0.9, 0.4, 0.9, 0.4))["mean_probability"] == 0.6
    assert caption_as_json(caption(""))["mean_probability"] == 1


def test_the_first_five_alternatives_that_are_words_or_the_end_are_offered():
    likely = [("dog", 0.5), ("<unk>", 0.2), ("</s>", 0.1), ("<pad>", 0.05), ("cat", 0.04), ("<s>", 0.03)]
    likely += [("cow", 0.02), ("hen", 0.01), ("pig", 0.005)]
    (offered,) = caption_as_json(caption("dog", 0.5, alternatives=[likely]))["alternatives"]
    assert offered == [["dog", 0.5], ["</s>", 0.1], ["cat", 0.04], ["cow", 0.02], ["hen", 0.01]]


def test_a_caption_without_alternatives_has_none():
    assert caption_as_json(caption("dog", 0.5))["alternatives"] == []
    assert caption_as_json(caption("dog", 0.5))["log_probabilities"] == [pytest.approx(math.log(0.5), abs=1e-4)]
