import evaluate
import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from hf_gru_captioner.evaluation import CaptionBleu, CaptionSet, bleu_scores, caption_bleu


def by_pycocoevalcap(captions, reference_length="closest"):
    scorer = BleuScorer(n=4)
    for hypothesis, references in captions:
        scorer += (hypothesis, references)
    corpus, per_image = scorer.compute_score(option=reference_length)
    return np.array(corpus), np.array(per_image).T


@pytest.mark.parametrize("reference_length", ["closest", "shortest", "average"])
def test_bleu_is_that_of_pycocoevalcap(captions, assert_same, reference_length):
    ours = bleu_scores(captions, reference_length)
    corpus, per_image = by_pycocoevalcap(captions, reference_length)
    assert_same(ours.corpus, corpus)
    assert_same(ours.per_image, per_image)


@pytest.mark.slow
def test_bleu_is_that_of_pycocoevalcap_on_a_whole_validation_set(many_captions, assert_same):
    assert_same(bleu_scores(many_captions).corpus, by_pycocoevalcap(many_captions)[0])


@pytest.mark.parametrize(
    "twin",
    [
        lambda captions: bleu_scores(captions, reference_length="shortest").corpus,
        lambda captions: bleu_scores(captions, brevity_penalty=False).corpus,
        lambda captions: bleu_scores(captions).per_image.mean(axis=0),
    ],
    ids=["shortest reference", "no brevity penalty", "mean of images"],
)
def test_a_broken_twin_fails_the_same_check(captions, assert_same, twin):
    with pytest.raises(AssertionError):
        assert_same(twin(captions), by_pycocoevalcap(captions)[0])


def test_with_another_guard_the_check_of_single_captions_fails(captions, assert_same, monkeypatch):
    monkeypatch.setattr(caption_bleu, "_MATCH_GUARD", 1e-12)
    with pytest.raises(AssertionError):
        assert_same(bleu_scores(captions).per_image, by_pycocoevalcap(captions)[1])


def test_without_the_brevity_penalty_a_short_caption_keeps_its_precision():
    captions = CaptionSet(["a dog"], [["a dog runs fast"]], "none")
    assert bleu_scores(captions, brevity_penalty=False).corpus[0] == pytest.approx(1.0)
    assert bleu_scores(captions).corpus[0] == pytest.approx(np.exp(1 - 4 / 2))


def test_the_closest_reference_is_the_shorter_of_two_as_close():
    captions = CaptionSet(["a b c"], [["a b c d", "a b"]], "none")
    assert bleu_scores(captions).length_ratio == 1.5


def test_an_unknown_length_rule_is_refused_with_the_choices(captions):
    with pytest.raises(ValueError, match=r"reference_length='longest' is unknown. Choose \"closest\""):
        bleu_scores(captions, reference_length="longest")


def test_the_metric_is_the_function_with_a_signature(captions):
    result = CaptionBleu().compute(
        predictions=captions.hypotheses, references=captions.references, tokenizer="none", reference_length="shortest"
    )
    assert result["bleu_4"] == bleu_scores(captions, "shortest").corpus[3]
    ratio = result["length_ratio"]
    assert result["bleu_signature"] == f"tok:none|refs:4.6|images:115|reflen:shortest|ratio:{ratio:.2f}"


def test_the_metric_loaded_by_its_path_and_fed_in_batches_says_the_same(captions):
    metric = evaluate.load(caption_bleu.__file__)
    for start in range(0, len(captions), 50):
        some = slice(start, start + 50)
        metric.add_batch(predictions=captions.hypotheses[some], references=captions.references[some])
    assert metric.compute(tokenizer="none")["bleu_4"] == bleu_scores(captions).corpus[3]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no captions to score"),
        (["a", "b"], [["c"], []], "Image 1 has no references"),
        (["a", "b"], [["c"]], "Mismatch in the number of predictions"),
    ],
)
def test_the_metric_refuses_captions_that_cannot_be_scored(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        CaptionBleu().compute(predictions=predictions, references=references, tokenizer="simple")
