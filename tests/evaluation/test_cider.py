import math

import evaluate
import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider as ReferenceCider

from hf_gru_captioner.evaluation import (
    CaptionSet,
    Cider,
    CiderDReward,
    DocumentFrequencies,
    cider,
    cider_scores,
)


def test_cider_is_that_of_pycocoevalcap(captions, assert_same, score_by_pycocoevalcap):
    corpus, per_image = score_by_pycocoevalcap(ReferenceCider(), captions)
    assert_same(cider_scores(captions), per_image)
    assert_same(cider_scores(captions).mean(), corpus)


@pytest.mark.slow
def test_cider_is_that_of_pycocoevalcap_on_a_whole_validation_set(many_captions, assert_same, score_by_pycocoevalcap):
    assert_same(cider_scores(many_captions), score_by_pycocoevalcap(ReferenceCider(), many_captions)[1])


def test_a_single_image_scores_zero_as_with_pycocoevalcap(assert_same, score_by_pycocoevalcap):
    captions = CaptionSet(["a dog runs"], [["a dog runs", "a dog"]], "none")
    assert_same(cider_scores(captions), score_by_pycocoevalcap(ReferenceCider(), captions)[1])
    assert cider_scores(captions)[0] == 0.0


def test_the_plain_cosine_fails_the_same_check(captions, assert_same, score_by_pycocoevalcap):
    with pytest.raises(AssertionError):
        assert_same(cider_scores(captions, form="cider"), score_by_pycocoevalcap(ReferenceCider(), captions)[1])


def test_with_another_sigma_the_check_fails(captions, assert_same, score_by_pycocoevalcap, monkeypatch):
    monkeypatch.setattr(cider, "_SIGMA", 5.0)
    with pytest.raises(AssertionError):
        assert_same(cider_scores(captions), score_by_pycocoevalcap(ReferenceCider(), captions)[1])


def test_both_forms_follow_the_formula_by_hand():
    """Two images with one reference each: words in both weigh 0, in one log 2; single words have no orders 2 to 4."""
    captions = CaptionSet(["dog dog", "cat"], [["dog"], ["cat"]], "none")
    cosine = 10 / 4
    penalty = math.exp(-1 / (2 * 6**2))  # one bigram against none
    # Term frequency 2 is clipped to 1, but the norm of the hypothesis stays 2: half the cosine.
    np.testing.assert_allclose(cider_scores(captions), [cosine / 2 * penalty, cosine])
    np.testing.assert_allclose(cider_scores(captions, form="cider"), [cosine, cosine])


def test_an_unknown_form_is_refused_with_the_choices(captions):
    with pytest.raises(ValueError, match=r"form='cider-r' is unknown. Choose \"cider-d\""):
        cider_scores(captions, form="cider-r")


def test_frequencies_of_other_tokens_are_refused(captions):
    with pytest.raises(ValueError, match="counted on 'simple' tokens, the captions are tokenized by 'ptb'"):
        cider_scores(captions, DocumentFrequencies({}, 10, "simple"))


def test_frequencies_of_the_references_given_by_hand_change_nothing(captions):
    frequencies = DocumentFrequencies.from_captions(captions)
    np.testing.assert_array_equal(cider_scores(captions, frequencies), cider_scores(captions))


def test_rewards_are_the_scores_in_any_order_and_number_of_captions_an_image(synthetic_captions, assert_same):
    rows = synthetic_captions(30)
    predictions, references = [row[0] for row in rows], [row[1] for row in rows]
    expected = cider_scores(CaptionSet.from_text(predictions, references, "simple"))
    reward = CiderDReward(references)
    images = [7, 3, 3, 29]
    sampled = [predictions[7], predictions[3], "", predictions[29]]
    assert_same(reward(sampled, images), [expected[7], expected[3], 0.0, expected[29]])


def test_rewards_with_frequencies_of_a_training_set_use_these(synthetic_captions):
    references = [row[1] for row in synthetic_captions(30)]
    frequencies = DocumentFrequencies.from_text([row[1] for row in synthetic_captions(50, seed=5)], "simple")
    caption = references[0][0]
    ours, own = CiderDReward(references, frequencies)([caption], [0]), CiderDReward(references)([caption], [0])
    assert ours[0] != own[0]
    captions = CaptionSet.from_text([caption], references[:1], "simple")
    np.testing.assert_allclose(ours, cider_scores(captions, frequencies))


def test_rewards_refuse_frequencies_of_other_tokens_at_once():
    with pytest.raises(ValueError, match=r"Compute the frequencies with tokenizer='simple'"):
        CiderDReward([["a dog"]], DocumentFrequencies({}, 10, "ptb"))


def test_the_metric_loaded_by_its_path_is_the_function(captions, tmp_path):
    inputs = {"predictions": captions.hypotheses, "references": captions.references, "tokenizer": "none"}
    metric = evaluate.load(cider.__file__)
    assert metric.compute(**inputs) == {
        "cider": cider_scores(captions).mean(),
        "cider_signature": "tok:none|refs:4.6|images:115|form:cider-d|df:references",
    }
    assert metric.compute(**inputs, form="cider")["cider_cosine"] == cider_scores(captions, form="cider").mean()


def test_the_metric_takes_frequencies_from_a_file(captions, tmp_path):
    (tmp_path / "frequencies.json").write_text(DocumentFrequencies({"a": 3}, 7, "none").to_json())
    result = Cider().compute(
        predictions=captions.hypotheses,
        references=captions.references,
        tokenizer="none",
        document_frequencies=str(tmp_path / "frequencies.json"),
    )
    assert result["cider_signature"].endswith("df:7 images of a file")
