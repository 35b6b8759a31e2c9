import json

import pytest

from hf_gru_captioner.training import TrainingRecord, read_stages

EPOCHS = [{"train_seconds": 100.0, "validation_seconds": 20.0}] * 3


@pytest.fixture
def make_record(tmp_path):
    def make(teachers=(), **model):
        options = {
            "data": {"source": str(tmp_path), "images": None, "cache_folder": "/secret/cache"},
            "model": {"encoder": "timm/some.encoder", "checkpoint": None, **model},
            "self_critical": {"synonyms": "/secret/words.yaml"},
            "output_dir": "/secret/run",
        }
        return TrainingRecord(options, images=6, captions=30, processes=2, teachers=teachers)

    return make


def test_a_checkpoint_says_how_it_was_trained_without_naming_folders(make_record, tmp_path):
    record = make_record()
    record.history = EPOCHS
    record.save_pretrained(str(tmp_path))
    assert "secret" not in (tmp_path / "training.json").read_text()
    (stage,) = read_stages(tmp_path)
    assert stage["options"]["data.source"] == tmp_path.name
    assert stage["options"]["self_critical.synonyms"] == "words.yaml"
    assert stage["options"]["model.encoder"] == "timm/some.encoder"
    assert (stage["images"], stage["captions"], stage["epoch"], stage["minutes"]) == (6, 30, 3, 6.0)
    assert "2 x 1 threads" in stage["machine"]
    assert stage["versions"]["torch"]


def test_the_teachers_of_a_student_are_recorded(make_record, tmp_path):
    make_record(teachers=[{"name": "/secret/big", "revision": ""}]).save_pretrained(str(tmp_path))
    assert read_stages(tmp_path)[0]["teachers"] == [{"name": "big", "revision": ""}]
    make_record(teachers=[{"name": "me/teacher", "revision": "abc"}]).save_pretrained(str(tmp_path))
    assert read_stages(tmp_path)[0]["teachers"] == [{"name": "me/teacher", "revision": "abc"}]
    make_record().save_pretrained(str(tmp_path))
    assert "teachers" not in read_stages(tmp_path)[0]


def test_energy_is_recorded_where_all_epochs_measured_it(make_record, tmp_path):
    record = make_record()
    record.history = [{**epoch, "energy_kwh": 0.25} for epoch in EPOCHS]
    record.save_pretrained(str(tmp_path))
    assert read_stages(tmp_path)[0]["energy_kwh"] == 0.75
    record.history[0].pop("energy_kwh")
    record.save_pretrained(str(tmp_path))
    assert "energy_kwh" not in read_stages(tmp_path)[0]


def test_a_run_takes_over_the_stages_of_the_checkpoint_that_it_goes_on_from(make_record, tmp_path):
    first = make_record()
    first.save_pretrained(str(tmp_path))
    second = make_record(checkpoint=str(tmp_path))
    second.history = EPOCHS[:1]
    (tmp_path / "next").mkdir()
    second.save_pretrained(str(tmp_path / "next"))
    assert [stage["epoch"] for stage in read_stages(tmp_path / "next")] == [0, 1]
    assert read_stages(tmp_path / "next")[1]["options"]["model.checkpoint"] == tmp_path.name


def test_a_checkpoint_of_other_means_has_no_stages(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert read_stages(tmp_path) == []
    assert read_stages(None) == []
