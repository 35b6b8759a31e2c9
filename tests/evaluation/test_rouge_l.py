import random

import evaluate
import pytest
from pycocoevalcap.rouge.rouge import Rouge

from hf_gru_captioner.evaluation import RougeL, rouge_l, rouge_l_scores
from hf_gru_captioner.evaluation.rouge_l import longest_common_subsequence


def test_rouge_l_is_that_of_pycocoevalcap(captions, assert_same, score_by_pycocoevalcap):
    corpus, per_image = score_by_pycocoevalcap(Rouge(), captions)
    assert_same(rouge_l_scores(captions), per_image)
    assert_same(rouge_l_scores(captions).mean(), corpus)


@pytest.mark.slow
def test_rouge_l_is_that_of_pycocoevalcap_on_a_whole_validation_set(many_captions, assert_same, score_by_pycocoevalcap):
    assert_same(rouge_l_scores(many_captions), score_by_pycocoevalcap(Rouge(), many_captions)[1])


def test_with_another_beta_the_check_fails(captions, assert_same, score_by_pycocoevalcap, monkeypatch):
    monkeypatch.setattr(rouge_l, "_BETA", 1.0)
    with pytest.raises(AssertionError):
        assert_same(rouge_l_scores(captions), score_by_pycocoevalcap(Rouge(), captions)[1])


def test_the_subsequence_is_as_long_as_the_table_says():
    def by_table(first, second):
        rows = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, ours in enumerate(first):
            for j, theirs in enumerate(second):
                rows[i + 1][j + 1] = rows[i][j] + 1 if ours == theirs else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]

    generator = random.Random(0)
    for _ in range(300):
        first, second = ([generator.choice("abcd") for _ in range(generator.randint(1, 70))] for _ in range(2))
        positions = {letter: sum(1 << i for i, each in enumerate(first) if each == letter) for letter in "abcd"}
        assert longest_common_subsequence(positions, len(first), second) == by_table(first, second)


def test_the_metric_loaded_by_its_path_is_the_function(captions):
    result = evaluate.load(rouge_l.__file__).compute(
        predictions=captions.hypotheses, references=captions.references, tokenizer="none"
    )
    assert result == {
        "rouge_l": rouge_l_scores(captions).mean(),
        "rouge_l_signature": "tok:none|refs:4.6|images:115",
    }
    assert RougeL().compute(predictions=["a"], references=[["a"]], tokenizer="simple")["rouge_l"] == 1.0
