import numpy as np
import pytest

from hf_gru_captioner.evaluation import METRICS, CaptionSet, ScoringOptions
from hf_gru_captioner.evaluation.metrics import HUB_SCORES, SCORES, few_images_note

OFFLINE = [name for name in METRICS if name != "evaluate/bleu"]  # which downloads its code


@pytest.fixture(scope="module")
def results(captions):
    """Each metric's results for two sets: the edge cases, and a subset of them."""
    part = CaptionSet(captions.hypotheses[:9], captions.references[:9], captions.tokenizer)
    options = ScoringOptions([], [], training_captions=["a dog runs"])
    return {name: METRICS[name].load()([captions, part], options) for name in OFFLINE}


@pytest.mark.parametrize("name", OFFLINE)
def test_a_metric_returns_the_scores_of_its_entry_for_each_set(results, name):
    by_name = {score.name: score for score in METRICS[name].scores}
    assert len(results[name]) == 2
    for result in results[name]:
        assert result.values.keys() == by_name.keys()
        of_images = {each for statistics in result.statistics for each in statistics.names}
        assert of_images == {each for each, score in by_name.items() if score.is_per_image}
    assert results[name][0].values != results[name][1].values


@pytest.mark.parametrize("name", OFFLINE)
def test_scores_lie_between_zero_and_their_maximum(results, name):
    for result in results[name]:
        for statistics in result.statistics:
            for column, score in enumerate(statistics.names):
                values = statistics.per_image[:, column]
                assert values.min() >= 0
                assert values.max() <= (SCORES[score].maximum or np.inf) + 1e-9
        assert all(0 <= value <= (SCORES[score].maximum or np.inf) for score, value in result.values.items())


def test_names_are_unique_and_the_tables_of_cards_keep_their_order():
    assert len(SCORES) == sum(len(metric.scores) for metric in METRICS.values())
    assert list(HUB_SCORES) == ["cider", "meteor", "bleu_4", "bleu_3", "bleu_2", "bleu_1", "rouge_l"]
    assert {score.hub_type for score in HUB_SCORES.values()} == {"cider", "meteor", "bleu", "rouge"}


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (1, "Only 1 image: neither"),
        (9, "Only 9 images: neither"),
        (10, "Only 10 images: the scores say little"),
        (99, "Only 99 images: the scores say little"),
        (100, ""),
    ],
)
def test_the_fewer_images_the_less_scores_say(images, said):
    note = few_images_note(images)
    assert note.startswith(said)
    assert bool(note) == bool(said)
