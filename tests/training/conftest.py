import pytest
import torch
from accelerate import Accelerator

from hf_gru_captioner.data import CaptionCollator, CaptionedImages, EpochBatches
from hf_gru_captioner.training import CaptionTrainer, OptimizationConfig, TrainingConfig
from hf_gru_captioner.training.assembly import Assembly


@pytest.fixture
def make_trainer(make_model, processor, tmp_path):
    """Makes a trainer for a tiny model; keywords are optimization options."""

    def make(objective=None, run="", folder="run", model=None, **options):
        config = OptimizationConfig(**{"epochs": 3, "learning_rate": 1e-2, "ema_decay": 0.5, **options})
        model = model or make_model(dropout=0.1)
        if config.encoder_learning_rate is not None:
            model.set_encoder_trainable()
        accelerator = Accelerator(cpu=True)
        torch.manual_seed(config.seed)
        return CaptionTrainer(model, processor, accelerator, config, tmp_path / folder, objective=objective, run=run)

    return make


@pytest.fixture
def batch(processor, make_dataset):
    """Three images with all of their captions."""
    return CaptionCollator(processor)(list(make_dataset(3)))


@pytest.fixture
def make_batches(processor, make_dataset):
    def make(size=4, images_per_step=2, **options):
        rows = CaptionedImages(make_dataset(size), augment=False)
        return EpochBatches(rows, CaptionCollator(processor), images_per_step, **options)

    return make


def no_scores(model):
    return {"cider": 0.0}


@pytest.fixture
def fit(make_trainer, make_batches):
    """Trains a tiny model on four photos; returns model and history."""

    def fit(scores=no_scores, micro_batches=1, **options):
        trainer = make_trainer(micro_batches=micro_batches, **options)
        return trainer.model, trainer.fit(make_batches(micro_batches=micro_batches), scores)

    return fit


@pytest.fixture
def make_assembly(save_encoder, tmp_path):
    """An assembly of a small captioner on a source."""

    def make(source, **options):
        if not (tmp_path / "encoder").exists():
            save_encoder(tmp_path / "encoder")
        given = {
            "data": {"source": source, "cache_folder": tmp_path / "cache"},
            "tokenizer.min_count": 1,
            "model": {"encoder": tmp_path / "encoder", "hidden_size": 16, "embedding_size": 12},
            "optimization": {"epochs": 1, "images_per_step": 6, "mixed_precision": "no"},
            "output_dir": tmp_path / "run",
        }
        return Assembly(TrainingConfig.from_options(given | options), Accelerator(cpu=True))

    return make
