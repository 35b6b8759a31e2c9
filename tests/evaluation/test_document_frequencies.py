import json

import numpy as np
import pytest

from hf_gru_captioner.evaluation import DocumentFrequencies

FORMAT = "hf_gru_captioner document frequencies 1"


@pytest.fixture
def frequencies():
    return DocumentFrequencies.from_text([["A dog .", "a dog runs"], ["a café"], ["dog"]], "simple")


def test_an_image_counts_once_however_many_of_its_captions_have_an_ngram(frequencies):
    once = ["runs", "café", "a dog", "dog runs", "a café", "a dog runs"]
    assert frequencies.counts == {"a": 2, "dog": 2} | dict.fromkeys(once, 1)
    assert (frequencies.images, frequencies.tokenizer) == (3, "simple")


def test_an_unknown_ngram_weighs_as_if_one_image_had_it(frequencies):
    np.testing.assert_allclose(frequencies.idf(["dog", "runs", "never seen"]), np.log([3 / 2, 3, 3]))


def test_what_is_written_is_loaded(frequencies, tmp_path):
    (tmp_path / "frequencies.json").write_text(frequencies.to_json())
    assert DocumentFrequencies.load(tmp_path / "frequencies.json") == frequencies


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a file of the format"),
        (json.dumps({"format": "other"}), "is not a file of the format"),
        (json.dumps({"format": FORMAT, "images": 2, "tokenizer": "ptb", "ngrams": {"a": 3}}), "outside 1 to 2"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "frequencies.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        DocumentFrequencies.load(path)
