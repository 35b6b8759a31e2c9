import evaluate
import numpy as np
import pytest

from hf_gru_captioner.evaluation import (
    CaptionBleu,
    CaptionSet,
    Cider,
    Diversity,
    DocumentFrequencies,
    RougeL,
    bleu_scores,
    cider_scores,
    compare,
    leave_one_out,
    meteor,
    meteor_from_statistics,
    rouge_l_scores,
    score_captions,
)
from hf_gru_captioner.evaluation.caption_bleu import bleu_statistics

CHEAP = ("bleu", "rouge_l", "cider")


@pytest.fixture(scope="module")
def rows(synthetic_captions):
    rows = synthetic_captions(60)
    return [row[0] for row in rows], [row[1] for row in rows]


def made_up_meteor_statistics(captions):
    """Plausible counts of METEOR's jar without starting its JVM; test_meteor.py tests the real ones."""
    images = len(captions)
    words = np.stack([captions.length[:images], bleu_statistics(captions)[:, 1]], axis=1)
    statistics = np.zeros((images, 23))
    statistics[:, 0:2] = words
    statistics[:, 4:6] = statistics[:, 21:23] = words.min(axis=1, keepdims=True) / 2
    statistics[:, 20] = 1
    return statistics


@pytest.fixture(scope="module")
def scores(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, "meteor_statistics", made_up_meteor_statistics)
        return score_captions(*rows, metrics=("bleu", "meteor", "rouge_l", "cider"))


def test_scores_are_those_of_each_metric_alone(rows, scores):
    captions = CaptionSet.from_text(*rows, "ptb")
    bleu = bleu_scores(captions)
    expected = {f"bleu_{order}": bleu.corpus[order - 1] for order in (1, 2, 3, 4)} | {
        "rouge_l": rouge_l_scores(captions).mean(),
        "cider": cider_scores(captions).mean(),
        "meteor": meteor_from_statistics(made_up_meteor_statistics(captions).sum(axis=0)),
    }
    assert scores.values == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(scores.per_image["bleu_4"], bleu.per_image[:, 3])
    np.testing.assert_allclose(scores.per_image["cider"], cider_scores(captions))


def test_human_scores_are_the_mean_of_the_leave_one_out_rounds(rows, scores):
    rounds = leave_one_out(CaptionSet.from_text(*rows, "ptb"))
    assert scores.human["cider"] == pytest.approx(np.mean([cider_scores(each).mean() for each in rounds]))
    assert scores.human["bleu_4"] == pytest.approx(np.mean([bleu_scores(each).corpus[3] for each in rounds]))
    meteors = [meteor_from_statistics(made_up_meteor_statistics(each).sum(axis=0)) for each in rounds]
    assert scores.human["meteor"] == pytest.approx(np.mean(meteors))


def test_every_score_lies_in_its_interval(scores):
    assert scores.intervals.keys() == scores.values.keys()
    assert all(low < scores.values[name] < high for name, (low, high) in scores.intervals.items())


def test_the_signature_tells_incomparable_scores_apart(rows, scores):
    assert scores.signature == f"tok:ptb|refs:5.0|images:60|reflen:closest|ratio:{scores.length_ratio:.2f}"
    old_way = score_captions(
        *rows,
        metrics=CHEAP,
        tokenizer="simple",
        reference_length="shortest",
        brevity_penalty=False,
        document_frequencies=DocumentFrequencies.from_text(rows[1], "simple"),
        human=False,
        bootstrap=0,
    )
    assert old_way.settings == "tok:simple|refs:5.0|images:60|reflen:shortest|brevity:off|df:60 images"
    assert old_way.intervals == old_way.human == {}


def test_diversity_has_intervals_where_images_can_be_summed_only(rows):
    scores = score_captions(*rows, metrics=["diversity"], tokenizer="simple", training_captions=rows[0][:30])
    assert scores.values["novel_share"] == 0.5
    assert scores.intervals.keys() == {"mean_length", "repeated_word_share", "novel_share"}
    assert scores.human.keys() == scores.values.keys()
    assert scores.signature == "tok:simple|refs:5.0|images:60"


def test_the_table_shows_scores_intervals_and_human_scores_times_100():
    references = [["a dog runs", "a dog runs"], ["the cat sleeps", "the cat sleeps"]]
    scores = score_captions(["a dog runs", "the cat sleeps"], references, metrics=["cider"], tokenizer="simple")
    tokens = "Tokens are words by simple rules, not those of published scores."
    assert scores.table().splitlines() == [
        "                                  score  95 % interval        human",
        "CIDEr                             750.0  750.0 to 750.0       750.0",
        f"Scores times 100. {tokens} tok:simple|refs:2.0|images:2",
    ]


@pytest.mark.parametrize(
    ("references", "metrics", "says"),
    [
        ([["ein hund läuft"], ["zwei kätzchen schlafen"]], ["meteor"], True),
        ([["ein hund läuft"], ["zwei kätzchen schlafen"]], ["cider"], False),
        ([["a dog runs"], ["two kittens sleep"]], ["meteor"], False),
    ],
)
def test_of_another_language_the_table_says_that_meteor_is_english(monkeypatch, references, metrics, says):
    monkeypatch.setattr("hf_gru_captioner.evaluation.meteor.meteor_statistics", lambda sets: np.ones((len(sets), 23)))
    scores = score_captions([each[0] for each in references], references, metrics=metrics, tokenizer="simple")
    assert ("METEOR's stems, synonyms and paraphrases are those of English" in scores.table()) == says


def test_single_references_have_no_human_scores():
    scores = score_captions(["a", "b"], [["a"], ["c"]], metrics=["rouge_l", "diversity"], tokenizer="simple")
    assert scores.human == {}
    assert "human" not in scores.table()
    assert "distinct words                        2\n" in scores.table()  # a number of words has no fractions


@pytest.mark.parametrize("metrics", [[], ["bleu", "spice"]])
def test_unknown_metrics_are_refused_with_the_choices(rows, metrics):
    with pytest.raises(ValueError, match="Choose one or more of cider, meteor"):
        score_captions(*rows, metrics=metrics)


def test_evaluates_own_bleu_is_a_score_of_its_own(rows, monkeypatch):
    class OwnBleu:
        def compute(self, predictions, references):
            return {"bleu": 0.5}

    monkeypatch.setattr(evaluate, "load", {"bleu": OwnBleu()}.__getitem__)
    scores = score_captions(*rows, metrics=["evaluate/bleu", "bleu"], tokenizer="simple")
    assert scores.values["evaluate/bleu"] == 0.5 != scores.values["bleu_4"]
    assert "evaluate/bleu (not comparable)     50.0" in scores.table()


def test_evaluates_own_bleu_offline_says_so(rows, monkeypatch):
    def load(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(evaluate, "load", load)
    with pytest.raises(ConnectionError, match="Go online once, or leave it out"):
        score_captions(*rows, metrics=["evaluate/bleu"], tokenizer="simple", human=False)


def test_a_better_system_wins_the_comparison(rows):
    predictions, references = rows
    worse = score_captions(predictions, references, metrics=CHEAP, tokenizer="simple", human=False)
    copied = [captions[0] for captions in references]
    better = score_captions(copied, references, metrics=["cider", "bleu"], tokenizer="simple", human=False)
    comparison = compare(worse, better)
    assert comparison.keys() == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    assert comparison["cider"].difference == pytest.approx(better.values["cider"] - worse.values["cider"])
    assert comparison["cider"].low > 0
    assert comparison["cider"].p_value < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference_length": "shortest", "metrics": CHEAP}, "cannot be paired"),
        ({"metrics": ["diversity"]}, "cannot be paired"),
    ],
)
def test_scores_made_otherwise_are_not_compared(rows, options, message):
    first = score_captions(*rows, metrics=CHEAP, tokenizer="simple", human=False)
    second = score_captions(*rows, tokenizer="simple", human=False, **options)
    with pytest.raises(ValueError, match=message):
        compare(first, second)


def test_scores_without_a_common_metric_are_not_compared(rows):
    first = score_captions(*rows, metrics=["cider"], tokenizer="simple", human=False)
    second = score_captions(*rows, metrics=["rouge_l"], tokenizer="simple", human=False)
    with pytest.raises(ValueError, match="no metric in common"):
        compare(first, second)


def test_the_metrics_combine_without_renaming_each_others_results(rows):
    predictions, references = rows
    combined = evaluate.combine([CaptionBleu(), RougeL(), Cider(), Diversity()])
    combined.add_batch(predictions=predictions[:30], references=references[:30])
    combined.add_batch(predictions=predictions[30:], references=references[30:])
    result = combined.compute(tokenizer="simple")
    alone = score_captions(predictions, references, metrics=CHEAP, tokenizer="simple", human=False, bootstrap=0)
    assert {name: result[name] for name in alone.values} == pytest.approx(alone.values)
    assert all("_signature" in name or isinstance(value, (int, float)) for name, value in result.items())
