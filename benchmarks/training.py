"""Training words per second and peak memory, compared with a common implementation of the soft-attention LSTM decoder.

    python benchmarks/training.py                 # about 5 minutes on one core

The baseline is Show, Attend and Tell (https://arxiv.org/abs/1502.03044) as in the well-known tutorial
(https://github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning): an LSTMCell in a Python loop over words, additive
attention, a gate on the context, one copy of the regions per caption, captions sorted by length so that the batch
shrinks. It runs twice: as in the tutorial, with the attention keys recomputed for every word, and with keys computed
once per caption, which is the stronger baseline. Same sizes, cached regions, captions and optimizer; runs are
interleaved, medians with range. Memory is the peak of each system's separate process minus that before its first step.

Also: the cost of an epoch with 1x, 2x and 4x the data, and how long training waits for data.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPImageProcessor, TimmWrapperConfig

from hf_gru_captioner.data import CaptionCollator, CaptionedRegions, EpochBatches, Regions
from hf_gru_captioner.data.features import IMAGES_PER_SHARD
from hf_gru_captioner.model import GRUCaptionerConfig, GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from hf_gru_captioner.tokenization import build_tokenizer, special_token_ids

REGIONS, FEATURES, CAPTIONS_AN_IMAGE = 49, 1280, 5
VOCABULARY = [f"word{number}" for number in range(2500)]
OURS = ("ours, multihead", "ours, additive")
TUTORIAL = "step by step LSTM"
PEER = "step by step LSTM, keys once"


class StepByStepDecoder(nn.Module):
    """Show, Attend and Tell's decoder, word by word.

    Args:
        keys_once: Compute the attention keys once per caption instead of for every word as in the tutorial.
    """

    def __init__(self, vocab_size: int, size: int, dropout: float, keys_once: bool):
        super().__init__()
        self.keys_once = keys_once
        self.embedding = nn.Embedding(vocab_size, size)
        self.region_keys, self.state_query, self.score = (
            nn.Linear(FEATURES, size),
            nn.Linear(size, size),
            nn.Linear(size, 1),
        )
        self.gate = nn.Linear(size, FEATURES)
        self.initial_h, self.initial_c = nn.Linear(FEATURES, size), nn.Linear(FEATURES, size)
        self.cell = nn.LSTMCell(size + FEATURES, size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(size, vocab_size)

    def forward(self, regions, input_ids, labels):  # (N, P, D), (N, T), (N, T)
        lengths, order = (labels >= 0).sum(dim=1).sort(descending=True)  # (N,)
        regions, input_ids, labels = regions[order], input_ids[order], labels[order]
        embeddings = self.embedding(input_ids)  # (N, T, H)
        keys = self.region_keys(regions) if self.keys_once else None  # (N, P, H)
        mean = regions.mean(dim=1)  # (N, D)
        h, c = self.initial_h(mean), self.initial_c(mean)  # (N, H)
        loss = regions.new_zeros(())
        for word in range(int(lengths[0])):
            active = int((lengths > word).sum())
            h, c = h[:active], c[:active]
            step_keys = self.region_keys(regions[:active]) if keys is None else keys[:active]  # (n, P, H)
            scores = self.score(torch.relu(step_keys + self.state_query(h)[:, None])).squeeze(-1)  # (n, P)
            context = (scores.softmax(dim=-1)[..., None] * regions[:active]).sum(dim=1)  # (n, D)
            context = torch.sigmoid(self.gate(h)) * context
            h, c = self.cell(torch.cat((embeddings[:active, word], context), dim=-1), (h, c))  # (n, H)
            logits = self.output(self.dropout(h))  # (n, V)
            loss = loss + nn.functional.cross_entropy(logits, labels[:active, word], reduction="sum")
        return loss / lengths.sum()


def make_captions(num_images: int, seed: int = 0) -> list[list[str]]:
    """Captions as long as Flickr8k's: 11 words on average, with a standard deviation of 4."""
    random = np.random.default_rng(seed)
    lengths = random.normal(11, 4, (num_images, CAPTIONS_AN_IMAGE)).round().clip(3, 30).astype(int)
    return [[" ".join(random.choice(VOCABULARY, length)) for length in image_lengths] for image_lengths in lengths]


class System:
    """A decoder with its optimizer."""

    def __init__(self, name: str, size: int, processor, bf16: bool):
        torch.manual_seed(0)
        self.name, self.bf16 = name, bf16
        if name in (TUTORIAL, PEER):
            self.model: nn.Module = StepByStepDecoder(len(processor.tokenizer), size, 0.4, keys_once=name == PEER)
        else:
            tokens: dict[str, Any] = special_token_ids(processor.tokenizer)
            config = GRUCaptionerConfig(
                encoder_config=TimmWrapperConfig(architecture="tf_efficientnet_lite0", do_pooling=False),
                embedding_size=size,
                hidden_size=size,
                attention_type=name.split()[-1],
                dropout=0.4,
                **tokens,
            )
            self.model = GRUCaptionerForConditionalGeneration(config)
        self.model.train()
        self.optimizer = torch.optim.AdamW([each for each in self.model.parameters() if each.requires_grad], lr=1e-3)

    def step(self, batch) -> int:
        """Trains on one batch; returns the number of words in it, including end tokens."""
        labels = batch["labels"]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if self.name in (TUTORIAL, PEER):
                regions = batch["encoder_outputs"].last_hidden_state[batch["image_index"]].float()  # (N, P, D)
                input_ids = labels.roll(1, dims=1).clamp(min=0)
                input_ids[:, 0] = 0
                loss = self.model(regions, input_ids, labels)
            else:
                loss = self.model(**batch, skip_logits=True).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return int((labels >= 0).sum())


def make_processor():
    tokenizer = build_tokenizer([" ".join(VOCABULARY)], min_count=1)
    return GRUCaptionerProcessor(CLIPImageProcessor(), tokenizer)


def make_batches(processor, num_images: int, images_per_step: int, folder: str) -> EpochBatches:
    """Batches of memory-mapped regions."""
    random = np.random.default_rng(0)
    paths = []
    for start in range(0, num_images, IMAGES_PER_SHARD):
        size = min(IMAGES_PER_SHARD, num_images - start)
        paths.append(Path(folder) / f"{num_images}-{start}.bin")
        random.standard_normal((size, REGIONS, FEATURES), dtype=np.float32).astype(np.float16).tofile(paths[-1])
    regions = Regions(paths, (num_images, REGIONS, FEATURES), torch.float16)
    rows = CaptionedRegions([regions], make_captions(num_images))
    return EpochBatches(rows, CaptionCollator(processor), images_per_step)


def resident(field: str) -> float:
    """Megabytes of this process: current VmRSS, or peak VmHWM. Linux only."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def forget_peak() -> float:
    """Resets the peak; returns current megabytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def words_a_second(systems, batches, repeats: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {system.name: [] for system in systems}
    steps = [batch for (batch,) in batches.epoch(0)]
    for system in systems:
        system.step(steps[0])  # warm-up
    for repeat in range(repeats):
        for system in systems:
            start = time.perf_counter()
            words = system.step(steps[repeat % len(steps)])
            rates[system.name].append(words / (time.perf_counter() - start))
    return rates


def peak_memory(name: str, size: int, images_per_step: int, bf16: bool, answer) -> None:
    """Runs in a separate process: peak megabytes minus those before the first step."""
    torch.set_num_threads(1)
    processor = make_processor()
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(processor, images_per_step, images_per_step, folder)
        ((batch,),) = batches.epoch(0)
        system = System(name, size, processor, bf16)
        before = forget_peak()
        for _ in range(3):
            system.step(batch)
        answer.put(resident("VmHWM") - before)


def run_apart(measure, *arguments):
    """The result of `measure` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure, args=(*arguments, answer))
    process.start()
    measured = answer.get(timeout=300)
    process.join()
    return measured


def epoch(num_images: int, size: int, images_per_step: int, answer) -> None:
    """Runs in a separate process: seconds, seconds of waiting, peak megabytes, and those of the region file."""
    torch.set_num_threads(1)
    processor = make_processor()
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(processor, num_images, images_per_step, folder)
        system = System(OURS[0], size, processor, False)
        mapped, before = resident("RssFile"), forget_peak()
        start, waited, asked = time.perf_counter(), 0.0, time.perf_counter()
        for (batch,) in batches.epoch(0):
            waited += time.perf_counter() - asked
            system.step(batch)
            asked = time.perf_counter()
        seconds = time.perf_counter() - start
        answer.put((seconds, waited, resident("VmHWM") - before, resident("RssFile") - mapped))


def epochs_of_growing_data(arguments) -> None:
    """Pages of the mapped region file count as resident while there is free memory, and are released otherwise."""
    print(
        "\n| photos | seconds an epoch | ms a photo | memory at the peak | without the region file | waiting for data |"
    )
    print("|---|---|---|---|---|---|")
    for factor in (1, 2, 4):
        num_images = factor * arguments.photos
        seconds, waited, peak, mapped = run_apart(epoch, num_images, arguments.size, arguments.images)
        print(
            f"| {num_images} | {seconds:.1f} | {1000 * seconds / num_images:.1f} | {peak:.0f} MB | "
            f"{peak - mapped:.0f} MB | {100 * waited / seconds:.1f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=384, help="hidden and embedding size (%(default)s)")
    parser.add_argument("--images", type=int, default=32, help="photos per step, five captions each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps for each system (%(default)s)")
    parser.add_argument("--photos", type=int, default=320, help="photos in the smallest epoch (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = make_processor()
    print(
        "| decoder | precision | words a second | times keys once | times the tutorial | peak memory | of keys once |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(processor, 4 * arguments.images, arguments.images, folder)
        for bf16 in (False, True):
            systems = [System(name, arguments.size, processor, bf16) for name in (TUTORIAL, PEER, *OURS)]
            rates = words_a_second(systems, batches, arguments.repeats)
            memory = {name: run_apart(peak_memory, name, arguments.size, arguments.images, bf16) for name in rates}
            for name, own_rates in rates.items():
                times_peer, times_tutorial = (
                    statistics.median(ours / peer for ours, peer in zip(own_rates, rates[peer_name], strict=True))
                    for peer_name in (PEER, TUTORIAL)
                )
                print(
                    f"| {name} | {'bf16' if bf16 else 'fp32'} | {statistics.median(own_rates):.0f} "
                    f"({min(own_rates):.0f} to {max(own_rates):.0f}) | {times_peer:.2f} | {times_tutorial:.2f} | "
                    f"{memory[name]:.0f} MB | {memory[name] / memory[PEER]:.2f} |"
                )
    epochs_of_growing_data(arguments)


if __name__ == "__main__":
    main()
