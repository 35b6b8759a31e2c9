"""Two gloo processes on one machine train like one; started as by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, os, sys, zlib
import torch
from accelerate import Accelerator
from transformers import CLIPImageProcessor, TimmWrapperConfig
from datasets import load_from_disk
from hf_gru_captioner.data import CaptionCollator, CaptionedImages, EpochBatches
from hf_gru_captioner.model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from hf_gru_captioner.training import CaptionTrainer, OptimizationConfig, write_captions

torch.set_num_threads(1)
folder, output, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
accelerator = Accelerator(cpu=True)
dataset = load_from_disk(folder + "/set")
model = GRUCaptionerForConditionalGeneration.from_pretrained(folder + "/checkpoint")
processor = GRUCaptionerProcessor.from_pretrained(folder + "/checkpoint")
config = OptimizationConfig(epochs=2, images_per_step=4, learning_rate=1e-2, state_steps=1, micro_batches=2)
batches = EpochBatches(
    CaptionedImages(dataset, augment=False), CaptionCollator(processor), 4, micro_batches=2,
    process=accelerator.process_index, processes=accelerator.num_processes,
)
trainer = CaptionTrainer(model, processor, accelerator, config, output)
losses, train_step = [], trainer._train_step

def record(step, num_steps):
    if trainer.progress.step + 1 == kill_at:
        os._exit(9)
    loss, grad_norm = train_step(step, num_steps)
    losses.append((loss, grad_norm))
    return loss, grad_norm

def validate(averaged):
    def images(indices):
        return {"pixel_values": processor(images=[dataset[index]["image"] for index in indices]).pixel_values}

    written = write_captions(averaged, processor, images, len(dataset), accelerator, 3, max_new_tokens=5)
    assert len(written) == len(dataset)
    return {"cider": float(len(trainer.progress.history)), "captions": float(zlib.crc32(" | ".join(written).encode()))}

trainer._train_step = record
trainer._record = lambda: None
history = trainer.fit(batches, validate)
if accelerator.is_main_process:
    weights = sum(weight.double().abs().sum().item() for weight in trainer.average.model.decoder.parameters())
    result = {"losses": losses, "captions": [each["captions"] for each in history], "weights": weights}
    open(output + "/result.json", "w").write(json.dumps(result))
"""


@pytest.fixture
def run(make_model, processor, make_dataset, tmp_path):
    """Trains with a number of processes; returns the result, or None if killed at a step."""
    make_dataset(10).save_to_disk(tmp_path / "set")
    make_model(dropout=0.0).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "train_in_processes.py").write_text(SCRIPT)

    def run(processes, output, kill_at=0):
        output = tmp_path / output
        output.mkdir(exist_ok=True)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        arguments = [str(tmp_path / "train_in_processes.py"), str(tmp_path), str(output), str(kill_at)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        process = subprocess.run(
            [sys.executable, *(torchrun if processes > 1 else []), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if kill_at:
            assert process.returncode != 0
            return None
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads((output / "result.json").read_text())

    return run


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_resume_bit_for_bit(run):
    """Ten photos in steps of four, the last of two: shards of different sizes, captions of different lengths."""
    one, two = run(1, "one"), run(2, "two")
    assert len(one["losses"]) == 6
    for alone, together in zip(one["losses"], two["losses"], strict=True):
        assert together == pytest.approx(alone, rel=1e-4)
    assert two["captions"] == one["captions"]
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)

    run(2, "killed", kill_at=5)
    resumed = run(2, "killed")
    assert resumed["losses"] == two["losses"][4:]
    assert resumed["weights"] == two["weights"]
    assert resumed["captions"] == two["captions"]
