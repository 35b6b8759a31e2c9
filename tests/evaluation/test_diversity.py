import evaluate
import numpy as np
import pytest

from hf_gru_captioner.evaluation import Diversity, diversity, diversity_scores

CAPTIONS = ["a dog runs", "a dog a dog", "the the cat", "a dog runs", ""]


def test_scores_are_those_counted_by_hand():
    scores = diversity_scores(CAPTIONS, training_captions=["a dog runs", "a cat"])
    assert scores.distinct_1 == 5 / 13  # a dog runs the cat
    assert scores.distinct_2 == 5 / 9  # "a dog", "dog runs", "dog a", "the the", "the cat"
    assert scores.vocabulary == 5
    np.testing.assert_array_equal(scores.length, [3, 4, 3, 3, 0])
    np.testing.assert_array_equal(scores.repeats_word, [False, False, True, False, False])
    np.testing.assert_array_equal(scores.novel, [False, True, True, False, True])


def test_a_twin_that_averages_over_captions_fails_the_same_check():
    by_caption = np.mean([len(set(caption.split())) / max(len(caption.split()), 1) for caption in CAPTIONS])
    assert diversity_scores(CAPTIONS).distinct_1 != by_caption


def test_without_a_training_set_nothing_is_said_about_novelty():
    assert diversity_scores(CAPTIONS).novel is None


def test_empty_captions_divide_by_nothing():
    assert diversity_scores(["", ""]).distinct_1 == diversity_scores(["", ""]).distinct_2 == 0.0


def test_the_metric_loaded_by_its_path_tokenizes_both_sides():
    metric = evaluate.load(diversity.__file__)
    result = metric.compute(
        predictions=["A dog runs .", "A cat cat"], tokenizer="simple", training_captions=["a dog runs!"]
    )
    assert result == {
        "distinct_1": 4 / 6,
        "distinct_2": 1.0,
        "vocabulary": 4,
        "mean_length": 3.0,
        "repeated_word_share": 0.5,
        "novel_share": 0.5,
        "diversity_signature": "tok:simple|images:2",
    }


def test_no_captions_are_refused():
    with pytest.raises(ValueError, match="no captions to describe"):
        Diversity().compute(predictions=[], tokenizer="simple")
