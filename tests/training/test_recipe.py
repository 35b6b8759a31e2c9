import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT
from hf_gru_captioner.cli.train import _chosen
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.training import TrainingConfig, recipe
from hf_gru_captioner.training.config import RECOMMENDED, flatten_options
from hf_gru_captioner.training.recipe import recommend
from hf_gru_captioner.training.run_folder import OPTIONS


@pytest.fixture
def recommended(monkeypatch):
    """The options for a number of images whose captions are given; keywords are options that were given."""

    def of(number: int, captions=("a dog runs",), **given) -> TrainingConfig:
        rows = Dataset.from_dict({"captions": [list(captions)] * number})
        monkeypatch.setattr(recipe, "load_captions", lambda *arguments, **options: rows)
        config = TrainingConfig.from_options({"data.source": "mine.csv", "output_dir": "run", **given})
        return recommend(config, given)

    return of


def steps_of(config: TrainingConfig, number: int) -> int:
    (source,) = config.data.sources
    return config.optimization.epochs * math.ceil(number * source.repeat / config.optimization.images_per_step)


@pytest.mark.parametrize("number", [2, 5, 50, 180, 300, 999, 1000, 5000, 20_000])
def test_few_images_get_enough_steps_and_many_not_too_many(recommended, number):
    config = recommended(number)
    assert 440 <= steps_of(config, number) <= max(900, 18 * number / config.optimization.images_per_step)
    assert config.optimization.epochs == 12
    assert config.optimization.patience == (4 if number > 50 else None)


def test_training_starts_from_the_shipped_checkpoint_with_the_new_words(recommended):
    model = recommended(180).model
    assert (model.checkpoint, model.extend_vocabulary) == (str(SHIPPED_CHECKPOINT), True)
    assert recommended(180).tokenizer.min_count == 1
    assert recommended(20_000).tokenizer.min_count == 5


@pytest.mark.parametrize("caption", ["Ein Hund läuft über die Wiese.", "一只狗在草地上奔跑。", "개가 풀밭을 달린다."])
def test_another_language_gets_a_new_decoder_behind_the_encoder_of_the_shipped_checkpoint(recommended, caption):
    config = recommended(180, captions=[caption])
    assert (config.model.checkpoint, config.model.encoder) == (None, str(SHIPPED_CHECKPOINT))
    assert config.validation.max_new_tokens is None
    assert recommended(180, captions=[caption], **{"model.encoder": "mine"}).model.encoder == "mine"
    assert recommended(180, captions=[caption], **{"model.checkpoint": "mine"}).model.checkpoint == "mine"


def test_what_is_given_stays(recommended):
    config = recommended(180, **{"optimization.epochs": 3, "validation.num_beams": 1, "model.hidden_size": 64})
    assert (config.optimization.epochs, config.validation.num_beams, config.model.hidden_size) == (3, 1, 64)
    assert config.model.checkpoint is None  # these are the sizes of a new model
    assert steps_of(config, 180) >= 440
    assert recommended(180, **{"model.checkpoint": "mine"}).model.checkpoint == "mine"
    anew = recommended(180, **{"model.checkpoint": None}).model
    assert (anew.checkpoint, anew.extend_vocabulary) == (None, False)


@pytest.mark.parametrize("epochs", [1, 2, 12, 24])
def test_two_images_can_be_trained_on_and_more_epochs_are_more_steps(recommended, epochs):
    assert steps_of(recommended(2, **{"optimization.epochs": epochs}), 2) >= 120
    longer, usual = recommended(180, **{"optimization.epochs": 2 * epochs}), recommended(180)
    expected = max(1, epochs / 6) * steps_of(usual, 180)
    assert steps_of(longer, 180) == pytest.approx(expected, rel=0.25)


def test_long_captions_can_be_written_to_their_end(recommended):
    assert recommended(180).validation.max_new_tokens == 24
    assert recommended(180, captions=["word " * 50]).validation.max_new_tokens == 54


@pytest.mark.parametrize(
    "caption",
    [
        *(
            "a dog on the left",
            "The RIGHT shoe.",
            "ein Hund links im Bild",
            "un chien à droite",
            "左边有一只狗",
            "右に犬がいる",
        ),
        *(
            "왼쪽에 개가 있다",
            "कुत्ता दाईं ओर है",
            "كلب على اليمين",
            "สุนัขอยู่ทางซ้าย",
            "собака слева, левая сторона",
            "un perro a la izquierda",
        ),
    ],
)
def test_images_are_not_mirrored_where_captions_say_left_or_right(recommended, caption):
    assert recommended(20, captions=[caption]).data.mirror is False
    assert recommended(20, captions=[caption], **{"data.mirror": True}).data.mirror is True


def test_images_are_mirrored_where_few_captions_say_left_or_right(recommended):
    assert recommended(20, captions=["a bright dog", "an upright copyright", "recht"]).data.mirror is True
    assert recommended(20, captions=["a dog on the left", *["a dog"] * 30]).data.mirror is True


def test_python_is_recommended_what_the_command_line_is(dataset_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    from_python = TrainingConfig.recommended(
        {"data": {"source": dataset_folder}, "output_dir": "runs/set", "optimization.epochs": 3}
    )
    assert from_python == _chosen(str(dataset_folder), ["--epochs", "3"])
    assert (from_python.model.checkpoint, from_python.optimization.epochs) == (str(SHIPPED_CHECKPOINT), 3)
    assert steps_of(from_python, 6) >= 440


def save(config: TrainingConfig) -> None:
    Path(config.output_dir).mkdir(exist_ok=True)
    (Path(config.output_dir) / OPTIONS).write_text(yaml.safe_dump(asdict(config)))


def test_a_run_is_continued_with_its_own_options(recommended, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {"data.images": "photos", "data.caption_column": "text"}
    first = recommended(180, **given, **{"validation.num_beams": 2})
    save(first)
    assert recommended(900, **given) == first  # whatever would be chosen now
    longer = recommended(180, **given, **{"optimization.epochs": 24})
    assert longer == replace(first, optimization=replace(first.optimization, epochs=24))
    (source,) = recommended(180, **{"data.images": "others"}).data.sources
    assert (source.images, source.caption_column) == ("others", "text")
    whole = recommended(180, **{"data.source": [{"path": "mine.csv", "repeat": 5.0, "weight": 2.0}]})
    assert [(each.repeat, each.weight, each.images) for each in whole.data.sources] == [(5.0, 2.0, None)]


def test_a_run_of_the_defaults_is_continued_too(recommended, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first = TrainingConfig.from_options({"data.source": "mine.csv", "data.images": "photos", "output_dir": "run"})
    save(first)
    assert recommended(180) == recommended(180, **{"data.images": "photos"}) == first
    assert recommended(180, **{"data.images": "others"}).data.images == "others"


def test_a_run_on_another_source_is_not_continued(recommended, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sources = [{"path": "a.csv"}, {"path": "b.csv"}]
    save(TrainingConfig.from_options({"data.source": sources, "output_dir": "run"}))
    with pytest.raises(UsageError, match=r"run contains a run on a.csv, b.csv: name another output_dir"):
        recommended(180)
    with pytest.raises(UsageError, match=r"a single data.source: for several, set the options yourself"):
        TrainingConfig.recommended({"data.source": sources, "output_dir": "other"})


def test_what_a_file_of_options_says_stays(dataset_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("optimization:\n  epochs: 5\n")
    assert _chosen(str(dataset_folder), ["--config", "mine.yaml"]).optimization.epochs == 5


@pytest.mark.parametrize("spelled", ["photos/", "./photos", "photos/../photos", "{}/photos", "link"])
def test_a_source_is_the_same_however_its_path_is_spelled(recommended, monkeypatch, tmp_path, spelled):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("link").symlink_to("photos")
    first = recommended(180, **{"data.source": "photos"})
    save(first)
    assert recommended(180, **{"data.source": spelled.format(tmp_path)}) == first
    Path("others").mkdir()
    with pytest.raises(UsageError, match="contains a run on photos"):
        recommended(180, **{"data.source": "others"})


def test_a_source_of_the_hub_is_not_looked_for_on_the_disk(recommended, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save(recommended(180, **{"data.source": "user/photos"}))
    with pytest.raises(UsageError, match="contains a run on user/photos"):
        recommended(180, **{"data.source": "./user/photos"})


@pytest.mark.parametrize(("spelled", "name"), [("set/", "set"), ("./set", "set"), (".", "home"), ("set/..", "home")])
def test_the_folder_of_a_run_has_the_name_of_its_source(dataset_folder, monkeypatch, tmp_path, spelled, name):
    home = tmp_path / "home"
    home.mkdir()
    dataset_folder.rename(home / "set")
    monkeypatch.chdir(home)
    monkeypatch.setattr("hf_gru_captioner.cli.train.check_sources", lambda config: None)
    monkeypatch.setattr(recipe, "recommend", lambda config, given: config)
    assert Path(_chosen(spelled, []).output_dir) == Path("runs") / name


def test_the_options_that_are_said_to_be_chosen_are_chosen(recommended):
    defaults = flatten_options(asdict(TrainingConfig.from_options({"data.source": "mine.csv", "output_dir": "run"})))
    chosen = set()
    for config in (recommended(180), recommended(5000, captions=["ein Hund läuft links"])):
        options = flatten_options(asdict(config))
        chosen |= {name for name, value in options.items() if value != defaults[name]} - {"data.source"}
    assert chosen == RECOMMENDED
