import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from hf_gru_captioner import Captioner, TrainingConfig, train
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.training import CaptionTrainer, CrossEntropy, SourceConfig, TrainingResult
from hf_gru_captioner.training.run import _draw_attention

SCORES = {"cider", *(f"bleu_{order}" for order in range(1, 5))}


@pytest.fixture
def config(dataset_folder, save_encoder, tmp_path):
    """Options of one epoch on a few images with a tiny encoder."""
    save_encoder(tmp_path / "encoder")
    return TrainingConfig.from_options(
        {
            "data": {"source": dataset_folder, "cache_folder": tmp_path / "cache"},
            "tokenizer.min_count": 1,
            "model": {"encoder": tmp_path / "encoder", "hidden_size": 16, "embedding_size": 12},
            "optimization": {"epochs": 2, "images_per_step": 2, "mixed_precision": "no"},
            "validation.max_new_tokens": 9,
            "output_dir": tmp_path / "run",
        }
    )


def add_labels(folder: Path, labels) -> None:
    path = folder / "data" / "train-00000-of-00001.parquet"
    Dataset.from_parquet(str(path)).add_column("labels", labels).to_parquet(path)


def test_photos_of_the_same_name_are_drawn_each_and_captions_name_them(model, processor, make_photo, tmp_path):
    photos = [make_photo(seed) for seed in range(3)]
    rows = Dataset.from_dict({"image_id": ["a/2.jpg", "b/2.jpg", "b/3.jpg"], "image": photos}).cast_column(
        "image", ImageFeature()
    )
    _draw_attention(tmp_path / "drawn", model, processor, rows, 2)
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"2.png", "2.2.png", "captions.txt"}
    captions = Captioner(model, processor)(photos[:2])
    assert (tmp_path / "drawn" / "captions.txt").read_text() == "".join(
        f"{folder}/2.jpg: {caption.text}\n" for folder, caption in zip("ab", captions, strict=True)
    )


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize(
    ("objective", "micro_batches"), [("cross_entropy", 1), ("cross_entropy", 2), ("self_critical", 1)]
)
def test_labels_are_learned_and_a_killed_run_resumes_to_the_same_weights(
    config, tmp_path, monkeypatch, objective, micro_batches
):
    if objective == "self_critical":
        start = train(replace(config, output_dir=str(tmp_path / "start"))).checkpoint
        config = replace(config, objective=objective, model=replace(config.model, checkpoint=str(start)))
    add_labels(tmp_path / "set", [["dog"], None, ["dog", "dog", "child"], [], ["child"], ["rare"]])
    options = replace(
        config.optimization,
        label_loss=0.5,
        encoder_learning_rate=1e-3,
        micro_batches=micro_batches,
        state_steps=1,
        checkpoint_precision="float32",
    )
    config = replace(config, optimization=options, tokenizer=replace(config.tokenizer, min_count=2))
    whole = train(config)
    assert all(record["label_loss"] > 0 for record in whole.history)
    weights = load_file(whole.checkpoint / "model.safetensors")
    assert not any("label" in name for name in weights)  # the head is of training alone
    assert Captioner.from_pretrained(whole.checkpoint)

    killed = replace(config, output_dir=str(tmp_path / "killed"))
    steps = iter(range(4))

    def train_step(self, *arguments):
        if next(steps) == 3:
            raise PowerCutError
        return original(self, *arguments)

    original = CaptionTrainer._train_step
    with monkeypatch.context() as patch:
        patch.setattr(CaptionTrainer, "_train_step", train_step)
        with pytest.raises(PowerCutError):
            train(killed)
    resumed = train(killed)
    state, expected = (sorted((tmp_path / name / "state").iterdir())[-1] for name in ("killed", "run"))
    for name in ("model.safetensors", "model_1.safetensors", "averaged.safetensors"):
        assert (state / name).read_bytes() == (expected / name).read_bytes(), name
    head = load_file(state / "model_1.safetensors")
    assert head["linear.weight"].shape == (2, 96)  # child and dog
    assert head["linear.weight"].abs().sum() > 0
    assert [record["label_loss"] for record in resumed.history] == [record["label_loss"] for record in whole.history]


def test_labels_that_no_image_has_are_refused_before_anything_is_written(config, tmp_path):
    options = replace(config.optimization, label_loss=0.5, encoder_learning_rate=1e-3)
    with pytest.raises(UsageError, match="found 0 rows with labels"):
        train(replace(config, optimization=options))
    assert not (tmp_path / "run").exists()


def save_split(make_dataset, folder: Path, split: str, size: int) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = make_dataset(size).select_columns(["image", "captions"])
    rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_several_sources_are_learned_and_scored_apart(config, make_dataset, tmp_path, monkeypatch, streaming):
    for split, size in (("train", 3), ("validation", 2)):
        save_split(make_dataset, tmp_path / "second", split, size)
    for split in ("train", "test"):
        save_split(make_dataset, tmp_path / "third", split, 4)
    sources = [
        SourceConfig(str(tmp_path / "set")),
        SourceConfig(str(tmp_path / "second"), repeat=2, captions_per_epoch=1),
        SourceConfig(str(tmp_path / "third"), weight=0.5),
    ]
    data = replace(config.data, source=sources, streaming=streaming, steps_per_epoch=8)
    batches = []
    num_items = CrossEntropy.num_items
    monkeypatch.setattr(
        CrossEntropy, "num_items", lambda self, batch: (batches.append(batch), num_items(self, batch))[1]
    )
    result = train(replace(config, data=data))
    assert len(batches) == 16  # two epochs of 6 + 2 x 3 + 4 images, or of steps_per_epoch
    if not streaming:
        captions = Counter(int(count) for batch in batches for count in batch["image_index"].bincount())
        assert captions == {2: 2 * (6 + 4), 1: 2 * 6}
        weights = torch.cat([batch["caption_weights"] for batch in batches if "caption_weights" in batch])
        assert (weights == 0.5).sum() == 2 * 8
    for record in result.history:
        assert record["cider"] == pytest.approx((record["cider/set"] + record["cider/second"]) / 2)
        assert not any("third" in name for name in record)
    assert {path.name for path in (tmp_path / "run" / "attention" / "epoch-01").iterdir()} == {"set", "second"}
    recorded = json.loads((result.checkpoint / "training.json").read_text())["stages"][0]
    assert [source["path"] for source in recorded["options"]["data.source"]] == ["set", "second", "third"]
    assert recorded["images"] == (None if streaming else 13)
    assert train(replace(config, data=data)).history == result.history  # the same run, which has ended


def test_a_list_of_one_source_is_that_source(config):
    weights = []
    for name, source in (("text", config.data.source), ("list", [SourceConfig(config.data.source)])):
        result = train(
            replace(config, data=replace(config.data, source=source), output_dir=f"{config.output_dir}-{name}")
        )
        weights.append(load_file(result.checkpoint / "model.safetensors"))
        assert set(result.history[0]) == {"epoch", "loss", "train_seconds", "validation_seconds", *SCORES}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_training_from_python_returns_its_best_epoch_and_shows_no_bars_of_weights(config, capsys):
    transformers_logging.enable_progress_bar()  # which the commands of other tests have disabled
    torch.manual_seed(5)
    result = train(config)
    shown = capsys.readouterr()
    assert isinstance(result, TrainingResult)
    assert result.checkpoint == Path(config.output_dir) / "checkpoint"
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert result.best["cider"] == max(record["cider"] for record in result.history)
    assert "epoch 1/2" in shown.err
    assert "Loading weights" not in shown.err
    assert "Writing model shards" not in shown.err
    assert transformers_logging.is_progress_bar_enabled()  # as before
    assert Captioner.from_pretrained(result.checkpoint).model.config.hidden_size == 16
