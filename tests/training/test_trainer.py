import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.data import CaptionCollator
from hf_gru_captioner.training import CaptionTrainer, OptimizationConfig, write_captions
from hf_gru_captioner.training.trainer import _decay_matrices_only, _moving_average


@pytest.fixture
def fit(make_model, processor, make_dataset, tmp_path):
    """Trains a tiny model on four photos -> model, history."""

    def fit(scores=lambda model: {"cider": 0.0}, **knobs):
        model = make_model(dropout=0.1)
        rows = list(make_dataset(4))
        batches = DataLoader(rows, batch_size=2, shuffle=True, collate_fn=CaptionCollator(processor))
        config = OptimizationConfig(**{"epochs": 3, "learning_rate": 1e-2, "ema_decay": 0.5, **knobs})
        trainer = CaptionTrainer(model, processor, Accelerator(cpu=True), config, tmp_path / "run")
        return model, trainer.fit(batches, scores)

    return fit


def test_the_loss_falls_and_the_run_is_recorded(fit, tmp_path):
    _, history = fit(epochs=30, label_smoothing=0.0)
    losses = [record["loss"] for record in history]
    assert losses[-1] < 0.6 * losses[0]
    recorded = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in recorded] == list(range(1, 31))
    assert recorded[-1]["loss"] == pytest.approx(losses[-1], abs=1e-4)


def test_the_best_epoch_is_kept_not_the_last(fit, tmp_path):
    seen = []

    def scores(model):
        seen.append({name: weight.clone() for name, weight in model.state_dict().items()})
        return {"cider": [1.0, 3.0, 2.0][len(seen) - 1]}

    fit(scores, checkpoint_precision="float32")
    kept = Captioner.from_pretrained(tmp_path / "run" / "checkpoint").model.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in seen[1].items())
    assert not all(torch.equal(kept[name], weight) for name, weight in seen[2].items())


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_a_checkpoint_is_written_in_the_precision_asked_for(fit, tmp_path, precision):
    model, _ = fit(checkpoint_precision=precision, epochs=1)
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {getattr(torch, precision)}
    assert model.dtype == torch.float32


def test_the_frozen_encoder_does_not_move(fit, make_model):
    model, _ = fit()
    before = make_model().encoder.vision.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in model.encoder.vision.state_dict().items())
    assert not torch.equal(model.decoder.embed_tokens.weight, make_model().decoder.embed_tokens.weight)


def test_the_average_soon_forgets_the_initial_weights():
    update = _moving_average(0.999)
    averaged, current = [torch.zeros(1)], [torch.ones(1)]
    for steps in range(1, 100):
        update(averaged, current, torch.tensor(steps))
    assert averaged[0] > 0.999  # at a fixed decay: 0.09
    averaged = [torch.zeros(1)]
    update(averaged, current, torch.tensor(10**6))
    torch.testing.assert_close(averaged[0], torch.tensor([0.001]))


def test_only_matrices_decay(model):
    matrices, vectors = _decay_matrices_only(model, 0.01)
    assert matrices["weight_decay"] == 0.01
    assert vectors["weight_decay"] == 0
    assert {parameter.ndim for parameter in vectors["params"]} == {1}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(matrices["params"]) + len(vectors["params"]) == len(trainable)


def test_captions_of_known_regions_are_the_captions_of_their_images(model, processor, make_photo):
    pixel_values = processor(images=[make_photo(seed) for seed in range(3)]).pixel_values
    settings = {"max_new_tokens": 5, "num_beams": 2}
    regions = model.encoder.vision(pixel_values)
    expected = processor.batch_decode(model.generate(pixel_values, **settings))
    assert write_captions(model, processor, regions.split(2), **settings) == expected


@pytest.mark.slow
def test_the_command_trains_a_checkpoint_that_captions(make_dataset, tmp_path, monkeypatch):
    """From a folder of photos to captions, through every room; a second run finds the regions cached."""
    from transformers import AutoModel, TimmWrapperConfig

    for split, size in (("train", 6), ("validation", 3)):
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        make_dataset(size).to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    settings = {"input_size": [3, 96, 96], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = TimmWrapperConfig(architecture="test_resnet", do_pooling=False, pretrained_cfg=settings)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    knobs = {
        "data.source": tmp_path / "set",
        "data.cache_folder": tmp_path / "cache",
        "tokenizer.min_count": 1,
        "model.encoder": tmp_path / "encoder",
        "model.hidden_size": 16,
        "model.embedding_size": 12,
        "optimization.epochs": 2,
        "optimization.images_per_step": 4,
        "validation.num_beams": 2,
        "validation.max_new_tokens": 9,
        "output_dir": tmp_path / "run",
    }
    arguments = [f"--{name}={value}" for name, value in knobs.items()]
    assert main(["train", *arguments]) == 0
    assert main(["train", *arguments]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 3  # training photos, mirrored ones, validation photos
    captioner = Captioner.from_pretrained(tmp_path / "run" / "checkpoint")
    assert captioner.model.generation_config.num_beams == 2
    caption = captioner(make_dataset(1)[0]["image"], min_new_tokens=3)
    assert len(caption.words) >= 3
    assert not set(caption.words) & {"<unk>", "<pad>", "<s>"}
