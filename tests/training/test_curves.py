import pytest
from PIL import Image

from hf_gru_captioner.training import TrainingResult
from hf_gru_captioner.training.curves import plot_curves, summary

HISTORY = [
    {"epoch": 1, "loss": 4.0, "cider": 0.25, "bleu_4": 0.1, "train_seconds": 90.0, "validation_seconds": 30.0},
    {"epoch": 2, "loss": 3.5, "cider": 0.40, "bleu_4": 0.2, "train_seconds": 60.0, "validation_seconds": 30.0},
    {"epoch": 3, "loss": 3.2, "cider": 0.35, "bleu_4": 0.2, "train_seconds": 60.0, "validation_seconds": 30.0},
]


def test_the_table_has_a_line_an_epoch_and_stars_the_best():
    assert summary(HISTORY).splitlines() == [
        "epoch      loss   CIDEr-D    BLEU-4   minutes",
        "    1     4.000      25.0      10.0       2.0",
        "    2     3.500      40.0      20.0       1.5 *",
        "    3     3.200      35.0      20.0       1.5",
    ]


def test_the_reward_of_self_critical_training_has_a_column():
    rewarded = [{**record, "reward": 0.5 + record["epoch"]} for record in HISTORY]
    assert summary(rewarded).splitlines()[1].split() == ["1", "4.000", "1.500", "25.0", "10.0", "2.0"]


@pytest.mark.parametrize(("extra", "panels"), [({}, 2), ({"reward": 1.0}, 3)])
def test_the_curves_are_drawn_a_panel_a_kind(tmp_path, extra, panels):
    plot_curves([{**record, **extra} for record in HISTORY], tmp_path / "curves.png")
    picture = Image.open(tmp_path / "curves.png")
    assert picture.size == (panels * 5 * 120, 432)
    assert len(picture.convert("RGB").getcolors(10**6)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def result(folder, *scores, bleu=None):
    history = [{"epoch": number, "cider": score} for number, score in enumerate(scores, 1)]
    if bleu:
        history = [{**record, "bleu_4": score} for record, score in zip(history, bleu, strict=True)]
    return TrainingResult(folder, history, "cider")


def test_of_equal_epochs_the_last_is_best_but_only_a_better_one_is_improving(tmp_path):
    assert result(tmp_path, 0.2, 0.3, 0.3, 0.1).best["epoch"] == 3
    scores = [(0.2,), (0.2, 0.3), (0.3, 0.3), (0.3, 0.2)]
    assert [result(tmp_path, *each).is_improving for each in scores] == [True, True, False, False]


def test_bleu_decides_between_epochs_of_equal_cider(tmp_path):
    single_image = result(tmp_path, 0.0, 0.0, 0.0, 0.0, bleu=[0.0, 0.2, 0.4, 0.3])
    assert single_image.best["epoch"] == 3
    assert not single_image.is_improving
    assert result(tmp_path, 0.0, 0.0, bleu=[0.1, 0.2]).is_improving
    assert result(tmp_path, 0.2, 0.1, bleu=[0.1, 0.9]).best["epoch"] == 1
