"""Milliseconds per photo of a training step through the vision encoder, with PyTorch's own gradients and with ours.

    python benchmarks/fine_tuning.py --threads 2          # about a minute

The encoder is EfficientNet-Lite0 with random weights, trainable from `blocks.3` on or entirely, in float32 and under
bfloat16 autocast. The two runs of a row are interleaved; medians with range.
"""

import argparse
import copy
import statistics
import time

import torch
from transformers import AutoModel, TimmWrapperConfig

from hf_gru_captioner.model import GRUCaptionerConfig, GRUCaptionerForConditionalGeneration
from hf_gru_captioner.training.depthwise import use_fast_depthwise_gradients


def make_encoder(first_layer: str | None):
    backbone = AutoModel.from_config(TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=0))
    config = GRUCaptionerConfig(encoder_config=backbone.config, vocab_size=10, hidden_size=8, embedding_size=8)
    vision = GRUCaptionerForConditionalGeneration(config).encoder.vision
    vision.set_frozen(False, first_layer)
    return vision.train()


def milliseconds(vision, pixel_values, bf16: bool) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        regions = vision(pixel_values)
    regions.float().square().mean().backward()
    return 1000 * (time.perf_counter() - start) / len(pixel_values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=32, help="photos per step (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps for each (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pixel_values = torch.randn(arguments.images, 3, 224, 224)
    print(f"{arguments.threads} threads, {arguments.images} photos a step\n")
    print("| learns | precision | PyTorch's, ms | ours, ms | times as quick |\n|---|---|---|---|---|")
    for first_layer in ("blocks.3", None):
        usual = make_encoder(first_layer)
        ours = copy.deepcopy(usual)
        use_fast_depthwise_gradients(ours.backbone)
        for bf16 in (False, True):
            times: dict[str, list[float]] = {"usual": [], "ours": []}
            for _ in range(1 + arguments.repeats):
                times["usual"].append(milliseconds(usual, pixel_values, bf16))
                times["ours"].append(milliseconds(ours, pixel_values, bf16))
            cells = []
            for each in times.values():
                each.pop(0)
                cells.append(f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})")
            ratio = statistics.median(times["usual"]) / statistics.median(times["ours"])
            row = [first_layer or "all", "bf16" if bf16 else "fp32", *cells, f"{ratio:.1f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
