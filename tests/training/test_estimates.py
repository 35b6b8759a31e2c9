import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_gru_captioner.training.estimates import _duration, estimates


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "under a minute"),
        (59, "under a minute"),
        (61, "about 1 minute"),
        (150, "about 2 minutes"),
        (7100, "about 118 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_times_are_said_in_units_that_one_reads_at_a_glance(seconds, said):
    assert _duration(seconds) == said


class Timed:
    """An objective whose part of a step takes ten seconds; keeps the batches."""

    def __init__(self, monkeypatch):
        self.batches, self.seconds = [], 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.seconds)

    def prepare(self, model, batch, share_done):
        self.batches.append(batch)
        self.seconds += 10
        return batch

    def num_items(self, batch):
        return torch.tensor(1.0)

    def loss(self, model, batch, num_items):
        return torch.zeros((), requires_grad=True), None


@pytest.mark.parametrize(("micro_batches", "processes", "images"), [(1, 1, 6), (3, 1, 2), (3, 2, 1), (4, 2, 1)])
def test_a_step_takes_as_long_as_the_parts_of_one_process(
    make_assembly, dataset_folder, monkeypatch, micro_batches, processes, images
):
    assembly = make_assembly(dataset_folder, **{"data.cache": False, "optimization.micro_batches": micro_batches})
    _ = assembly.model, assembly.collator, assembly.training_sets
    assembly.objective = timed = Timed(monkeypatch)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    text = estimates(assembly)
    assert {len(batch["pixel_values"]) for batch in timed.batches} == {images}
    assert f", {10 * micro_batches:.2f} s per step" in text


def test_batches_are_timed_on_the_device_of_the_model(make_assembly, dataset_folder, monkeypatch):
    assembly = make_assembly(dataset_folder, **{"data.cache": False})
    assembly.objective = timed = Timed(monkeypatch)
    assembly.model.to("meta")  # a device that every machine has
    estimates(assembly)
    assert {value.device.type for batch in timed.batches for value in batch.values()} == {"meta"}


def test_estimates_leave_no_gradient_in_the_label_head(make_assembly, dataset_folder):
    path = dataset_folder / "data" / "train-00000-of-00001.parquet"
    Dataset.from_parquet(str(path)).add_column("labels", [["dog"]] * 6).to_parquet(path)
    assembly = make_assembly(
        dataset_folder,
        **{"data.cache": False, "optimization.label_loss": 0.5, "optimization.encoder_learning_rate": 1e-3},
    )
    estimates(assembly)
    assert assembly.objective is assembly.objective
    assert not any(parameter.grad is not None for parameter in assembly.objective.label_head.parameters())
