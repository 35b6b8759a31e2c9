"""Milliseconds per photo and peak memory of a self-critical step, compared with the usual way to compute it.

    python benchmarks/self_critical.py --threads 2          # about three minutes

Usually, the trained encoder runs twice, for the samples and for the loss, and the loss takes the log-softmax of the
padded logits (https://github.com/ruotianluo/self-critical.pytorch). Ours runs it once and computes the loss of packed
words. Otherwise the steps are the same: EfficientNet-Lite0 with random weights, trained from `blocks.3` on, images of
256 pixels, five samples per photo and five reference captions, float32. Runs are interleaved, medians with range;
memory is the peak of each system's separate process minus that before its first step.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from training import forget_peak, make_captions, make_processor, resident, run_apart
from transformers import AutoModel, TimmWrapperConfig

from hf_gru_captioner.model import GRUCaptionerConfig, GRUCaptionerForConditionalGeneration
from hf_gru_captioner.tokenization import special_token_ids
from hf_gru_captioner.training import SelfCritical, count_ngrams
from hf_gru_captioner.training.depthwise import use_fast_depthwise_gradients

SHARE = 0.2  # of the references' cross-entropy in the loss
USUAL, OURS = "usual", "ours"


class UsualSelfCritical(SelfCritical):
    """The same objective, computed from padded logits."""

    def loss(self, model, batch, num_items):
        batch = dict(batch)
        advantage, labels = batch.pop("advantage"), batch["labels"]
        is_sample = ~advantage.isnan()
        temperature = torch.where(is_sample, self.temperature, 1.0)[:, None, None]  # (N, 1, 1)
        output = model(**batch)
        logits = output.logits / temperature  # (N, T, V)
        log_probabilities = logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)  # (N, T)
        log_probability = log_probabilities.masked_fill(labels < 0, 0).sum(dim=1)  # (N,)
        weights = torch.where(is_sample, (1 - SHARE) * advantage.nan_to_num() / num_items[0], SHARE / num_items[1])
        return -(weights * log_probability).sum(), output.encoder_last_hidden_state


class System:
    """A captioner, its objective and a batch."""

    def __init__(self, name: str, num_images: int):
        torch.manual_seed(0)
        processor = make_processor()
        backbone = AutoModel.from_config(TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=0))
        tokens: dict[str, Any] = special_token_ids(processor.tokenizer)
        config = GRUCaptionerConfig(
            encoder_config=backbone.config, embedding_size=384, hidden_size=384, dropout=0.2, **tokens
        )
        self.model = GRUCaptionerForConditionalGeneration(config).train()
        self.model.set_encoder_trainable(True, "blocks.3")
        self.model.generation_config.update(max_new_tokens=24)
        use_fast_depthwise_gradients(self.model.encoder.vision.backbone)
        captions = make_captions(num_images)
        frequencies = count_ngrams(processor.tokenizer(each)["input_ids"] for each in captions)
        kind = UsualSelfCritical if name == USUAL else SelfCritical
        self.objective = kind(frequencies, cross_entropy_weight=SHARE, temperature=0.5, encode_once=name == OURS)
        self.batch = {
            "pixel_values": torch.randn(num_images, 3, 256, 256),
            "labels": processor.encode_captions([caption for each in captions for caption in each]),
            "image_index": torch.arange(num_images).repeat_interleave(len(captions[0])),
        }

    def step(self) -> float:
        """Computes the gradients of one batch; returns the loss."""
        self.model.zero_grad()
        prepared = self.objective.prepare(self.model, self.batch, 0.0)
        loss, _ = self.objective.loss(self.model, prepared, self.objective.num_items(prepared))
        loss.backward()
        return loss.item()


def peak_memory(name: str, num_images: int, answer) -> None:
    """Runs in a separate process: peak megabytes minus those before the first step."""
    torch.set_num_threads(1)
    system = System(name, num_images)
    before = forget_peak()
    for _ in range(2):
        system.step()
    answer.put(resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=32, help="photos per step (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps for each (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    systems = {name: System(name, arguments.images) for name in (USUAL, OURS)}
    times: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(1 + arguments.repeats):
        losses = []
        for name, system in systems.items():
            torch.manual_seed(repeat)  # the same samples and dropout
            start = time.perf_counter()
            losses.append(system.step())
            times[name].append(1000 * (time.perf_counter() - start) / arguments.images)
        if abs(losses[0] - losses[1]) > 1e-3 * max(1.0, abs(losses[0])):
            raise SystemExit(f"the two compute different losses: {losses}")
    print("| step | ms a photo | of the usual time | peak memory |\n|---|---|---|---|")
    for name, own in times.items():
        ratios = [each / usual for each, usual in zip(own[1:], times[USUAL][1:], strict=True)]  # without the warm-up
        print(
            f"| {name} | {statistics.median(own[1:]):.0f} ({min(own[1:]):.0f} to {max(own[1:]):.0f}) | "
            f"{statistics.median(ratios):.2f} | {run_apart(peak_memory, name, arguments.images):.0f} MB |"
        )


if __name__ == "__main__":
    main()
