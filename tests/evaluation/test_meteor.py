import sys

import evaluate
import numpy as np
import pytest

from hf_gru_captioner.evaluation import CaptionSet, meteor, meteor_from_statistics, meteor_statistics


@pytest.fixture(scope="module")
def by_pycocoevalcap(captions, score_by_pycocoevalcap, java_for_pycocoevalcap):
    """Score of the corpus and those of the images; module-wide, since its JVM takes seconds to start."""
    from pycocoevalcap.meteor.meteor import Meteor as ReferenceMeteor

    return score_by_pycocoevalcap(ReferenceMeteor(), captions)


@pytest.fixture(scope="module")
def statistics(captions):
    return meteor_statistics(captions)


def test_meteor_is_that_of_pycocoevalcap(statistics, by_pycocoevalcap, assert_same):
    corpus, per_image = by_pycocoevalcap
    assert_same(meteor_from_statistics(statistics), per_image)
    assert_same(meteor_from_statistics(statistics.sum(axis=0)), corpus)


def test_the_mean_of_images_fails_the_same_check(statistics, by_pycocoevalcap, assert_same):
    with pytest.raises(AssertionError):
        assert_same(meteor_from_statistics(statistics).mean(), by_pycocoevalcap[0])


@pytest.mark.parametrize(("name", "value"), [("_ALPHA", 0.9), ("_BETA", 0.3), ("_GAMMA", 0.5), ("_DELTA", 0.5)])
def test_with_another_parameter_the_check_fails(statistics, by_pycocoevalcap, assert_same, monkeypatch, name, value):
    monkeypatch.setattr(meteor, name, value)
    with pytest.raises(AssertionError):
        assert_same(meteor_from_statistics(statistics), by_pycocoevalcap[1])


def test_a_jvm_that_dies_is_an_error_with_its_last_words(monkeypatch):
    monkeypatch.setattr(meteor, "java_command", lambda *_: ["sh", "-c", "echo out of memory >&2; exit 1"])
    with pytest.raises(ChildProcessError, match="answered 0 of 1 requests and ended with exit code 1: out of memory"):
        meteor_statistics(CaptionSet(["a dog"], [["a dog runs"]], "none"))


def test_text_cannot_break_the_protocol(monkeypatch):
    """Bars and line ends separate fields and requests; here a stub for the jar counts them."""
    jar = "import sys\nfor line in sys.stdin: print(line.count(' ||| '), *[0] * 22, flush=True)"
    monkeypatch.setattr(meteor, "java_command", lambda *_: [sys.executable, "-c", jar])
    captions = CaptionSet(["a ||| b\nc", ""], [["d\ne", "|||"], ["f"]], "none")
    np.testing.assert_array_equal(meteor_statistics(captions)[:, 0], [3, 2])  # one bar before each caption


def test_the_metric_loaded_by_its_path_is_the_function(captions, statistics, monkeypatch):
    metric = evaluate.load(meteor.__file__)
    monkeypatch.setitem(metric._compute.__globals__, "meteor_statistics", lambda _: statistics)
    result = metric.compute(predictions=captions.hypotheses, references=captions.references, tokenizer="none")
    assert result == {
        "meteor": meteor_from_statistics(statistics.sum(axis=0)),
        "meteor_signature": "tok:none|refs:4.6|images:115",
    }
