import numpy as np
import pytest

from hf_gru_captioner.evaluation import CaptionSet, ScoreStatistics, bleu_scores, bootstrap_interval, paired_bootstrap
from hf_gru_captioner.evaluation.caption_bleu import bleu_from_statistics


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    """Mean 0, deviation 1, 2,500 images: 95 % lie within 1.96 / 50 of the sample's mean."""
    values = np.random.default_rng(0).normal(size=2500)
    low, high = bootstrap_interval(ScoreStatistics.mean("score", values), resamples=4000)["score"]
    error = 1.96 * values.std() / 50
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.003)


def test_an_interval_without_spread_is_a_point():
    assert bootstrap_interval(ScoreStatistics.mean("score", np.full(10, 0.25)))["score"] == (0.25, 0.25)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    metric = ScoreStatistics.mean("score", np.arange(50.0))
    assert bootstrap_interval(metric, seed=1) == bootstrap_interval(metric, seed=1)
    assert bootstrap_interval(metric, seed=1) != bootstrap_interval(metric, seed=2)


def test_bleu_of_a_resample_is_bleu_of_the_drawn_captions(captions):
    metric = ScoreStatistics(("1", "2", "3", "4"), bleu_scores(captions).statistics, bleu_from_statistics)
    drawn = np.random.default_rng(3).integers(len(captions), size=len(captions))
    again = CaptionSet([captions.hypotheses[i] for i in drawn], [captions.references[i] for i in drawn], "none")
    np.testing.assert_allclose(metric.resampled(1, seed=3)[0], bleu_scores(again).corpus, rtol=0, atol=1e-12)


def test_a_system_compared_with_itself_differs_by_nothing_and_p_is_one():
    metric = ScoreStatistics.mean("score", np.random.default_rng(0).random(100))
    comparison = paired_bootstrap(metric, metric)["score"]
    assert (comparison.difference, comparison.low, comparison.high, comparison.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_constant_gain_is_as_sure_as_the_resamples_can_say():
    values = np.random.default_rng(0).random(100)
    comparison = paired_bootstrap(
        ScoreStatistics.mean("score", values), ScoreStatistics.mean("score", values + 0.1), 999
    )["score"]
    assert comparison.difference == pytest.approx(0.1)
    assert (comparison.low, comparison.high) == pytest.approx((0.1, 0.1))
    assert comparison.p_value == 1 / 1000


def test_the_p_value_of_a_difference_of_two_errors_is_about_a_twentieth():
    noise = np.random.default_rng(0).normal(size=2000)
    noise -= noise.mean()
    gain = 1.96 * noise.std() / np.sqrt(2000)
    first, second = ScoreStatistics.mean("score", np.zeros(2000)), ScoreStatistics.mean("score", noise + gain)
    assert paired_bootstrap(first, second, resamples=4000)["score"].p_value == pytest.approx(0.05, abs=0.01)


def test_drawing_the_images_of_two_systems_apart_makes_a_constant_gain_look_unsure():
    """The broken variant: resampling the systems' images independently widens the interval of a constant gain."""
    values = np.random.default_rng(0).random(100)
    first, second = ScoreStatistics.mean("score", values), ScoreStatistics.mean("score", values + 0.1)
    apart = second.resampled(1000, seed=1) - first.resampled(1000, seed=2)
    assert np.ptp(apart) > 0.1


def test_systems_on_different_images_are_refused():
    with pytest.raises(ValueError, match=r"on 3 images with .* on 4"):
        paired_bootstrap(ScoreStatistics.mean("score", np.zeros(3)), ScoreStatistics.mean("score", np.zeros(4)))


def test_no_resamples_are_refused():
    with pytest.raises(ValueError, match="Found 0 bootstrap resamples"):
        bootstrap_interval(ScoreStatistics.mean("score", np.zeros(3)), resamples=0)


def test_resamples_are_scored_together():
    scored = []

    def score(statistics):
        scored.append(len(statistics))
        return bleu_from_statistics(statistics)

    images = np.random.default_rng(0).random((1000, 10))
    bootstrap_interval(ScoreStatistics(("1", "2", "3", "4"), images, score), resamples=500)
    assert scored == [500]
