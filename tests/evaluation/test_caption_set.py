import numpy as np
import pytest

from hf_gru_captioner.evaluation import CaptionSet
from hf_gru_captioner.evaluation.caption_set import count_ngrams


def test_ngrams_are_counted_caption_by_caption_and_never_across_captions():
    unigrams, bigrams, trigrams, fourgrams = count_ngrams(["a a b", "", "b a a a"])

    def counts(table):
        rows = zip(table.caption, table.ngram, table.count, strict=True)
        return {(int(caption), table.texts[ngram]): int(count) for caption, ngram, count in rows}

    assert counts(unigrams) == {(0, "a"): 2, (0, "b"): 1, (2, "a"): 3, (2, "b"): 1}
    assert counts(bigrams) == {(0, "a a"): 1, (0, "a b"): 1, (2, "b a"): 1, (2, "a a"): 2}
    assert counts(trigrams) == {(0, "a a b"): 1, (2, "b a a"): 1, (2, "a a a"): 1}
    assert counts(fourgrams) == {(2, "b a a a"): 1}


def test_ngrams_of_nothing_are_four_empty_tables():
    assert [len(table.count) for table in count_ngrams(["", ""])] == [0, 0, 0, 0]


def test_common_rows_pair_a_hypothesis_with_its_own_references_only():
    captions = CaptionSet(["a b", "c"], [["b", "c"], ["a", "c c"]], "none")
    table = captions.ngrams[0]
    pairs = [
        (int(table.caption[ours]), int(table.caption[theirs]), table.texts[table.ngram[theirs]])
        for ours, theirs in zip(*captions.common_rows(table), strict=True)
    ]
    assert pairs == [(0, 2, "b"), (1, 5, "c")]


def test_captions_are_regrouped_after_tokenization_whatever_the_number_of_references():
    captions = CaptionSet.from_text(["A .", "B"], [["C", "D"], ["E !"]], "simple")
    assert list(captions) == [("a", ["c", "d"]), ("b", ["e"])]
    np.testing.assert_array_equal(captions.image, [0, 1, 0, 0, 1])
    assert captions.signature == "tok:simple|refs:1.5|images:2"


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no captions to score"),
        (["a"], [["b"], ["c"]], "Found 1 predictions and 2 lists of references"),
        (["a", "b"], [["c"], []], r"Image 1 has no references \(its prediction: 'b'\)"),
    ],
)
def test_captions_that_cannot_be_scored_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        CaptionSet.from_text(predictions, references, "simple")


def test_a_string_in_place_of_a_list_of_references_is_refused():
    with pytest.raises(TypeError, match="references of image 0 are a string, 'a dog'"):
        CaptionSet.from_text(["a"], ["a dog"], "simple")
