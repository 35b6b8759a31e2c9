from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from hf_gru_captioner import Captioner, TrainingConfig, train
from hf_gru_captioner.training import TrainingResult


@pytest.fixture
def config(make_dataset, save_encoder, tmp_path):
    """Options of one epoch on a few images with a tiny encoder."""
    for split, size in (("train", 6), ("validation", 3)):
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        rows = make_dataset(size).select_columns(["image", "captions"])
        rows.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    save_encoder(tmp_path / "encoder")
    return TrainingConfig.from_options(
        {
            "data": {"source": tmp_path / "set", "cache_folder": tmp_path / "cache"},
            "tokenizer.min_count": 1,
            "model": {"encoder": tmp_path / "encoder", "hidden_size": 16, "embedding_size": 12},
            "optimization": {"epochs": 2, "images_per_step": 2, "mixed_precision": "no"},
            "validation.max_new_tokens": 9,
            "output_dir": tmp_path / "run",
        }
    )


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
