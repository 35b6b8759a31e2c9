import numpy as np
import pytest

from hf_gru_captioner.evaluation.breakdown import LengthRecord, WordRecord, by_length, by_word
from hf_gru_captioner.evaluation.caption_set import CaptionSet

CAPTIONS = CaptionSet(
    hypotheses=["a dog runs", "a dog sits", "a man in a hat", "a dog"],
    references=[
        ["a dog runs", "the brown dog", "an animal"],
        ["a cat sits", "a cat on a mat", "a kitten sits"],
        ["a man smiles", "a man and a woman", "people"],
        ["a dog in the snow", "a hat in the snow and more", "nothing much"],
    ],
    tokenizer="none",
)


def test_words_are_counted_where_half_of_the_references_use_them():
    records = {record.word: record for record in by_word(CAPTIONS)}
    assert records["dog"] == WordRecord("dog", 1, 1.0, pytest.approx(1 / 3))  # the cat is called a dog
    assert records["cat"] == WordRecord("cat", 1, 0.0, None)
    assert records["snow"] == WordRecord("snow", 1, 0.0, None)
    assert records["sits"] == WordRecord("sits", 1, 1.0, 0.0)
    assert set(records) == {"dog", "cat", "sits", "man", "snow"}  # neither "a" nor what one of three says
    assert [record.word for record in by_word(CAPTIONS, num_words=2)] == ["cat", "dog"]


def test_images_are_grouped_by_the_length_of_their_references():
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    assert by_length(CAPTIONS, scores, parts=2) == [
        LengthRecord(pytest.approx(8 / 3), pytest.approx(3.0), 2, 3.0),
        LengthRecord(pytest.approx(11 / 3), pytest.approx(14 / 3), 2, 2.0),
    ]
    assert len(by_length(CAPTIONS, scores, parts=9)) == 4
