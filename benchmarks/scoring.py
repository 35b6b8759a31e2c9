"""Time and memory of BLEU + CIDEr + ROUGE-L compared with pycocoevalcap, and CIDEr-D rewards per second.

    python benchmarks/scoring.py                              # made-up captions
    python benchmarks/scoring.py --dataset ../shared/flickr8k  # the validation split's: first caption against the
    others

Both get the same tokens, so tokenization is excluded. Each measurement runs in a separate process; the time is the best
of several runs, the memory the peak resident size minus that before the first run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from hf_gru_captioner.evaluation import (
    CaptionSet,
    CiderDReward,
    bleu_scores,
    cider_scores,
    rouge_l_scores,
    simple_tokenize,
)

Rows = list[list[str]]  # the captions of each image, the first one used as the hypothesis

SIZES = {1_000: 5, 40_000: 1}  # images -> runs
SAMPLES = 5  # captions per image in self-critical training
IMAGES_PER_STEP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="folder or Hub id with a validation split and a column of captions")
    parser.add_argument("--measure", nargs=2, metavar=("WHO", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        who, images = arguments.measure
        print(json.dumps(measure(who, int(images), load_captions(arguments.dataset))))
        return
    print(f"{'images':>8}{'':>14}{'seconds':>10}{'MB':>8}")
    for images in SIZES:
        figures = {who: measure_apart(who, images, arguments.dataset) for who in ("ours", "pycocoevalcap")}
        for who, (seconds, megabytes) in figures.items():
            print(f"{images:>8}{who:>14}{seconds:>10.3f}{megabytes:>8.0f}")
        (ours, our_memory), (theirs, their_memory) = figures.values()
        print(f"{images:>8}{'ratio':>14}{theirs / ours:>10.1f}{their_memory / our_memory:>8.1f}")
    rate = rewards_a_second(load_captions(arguments.dataset))
    print(f"\nCIDEr-D rewards: {rate:,.0f} captions a second, {IMAGES_PER_STEP} images of {SAMPLES} samples a step")


def load_captions(dataset: str | None) -> Rows:
    if dataset is None:
        return made_up_captions(1000, 5)
    from datasets import load_dataset

    rows = load_dataset(dataset, split="validation").select_columns("captions")["captions"]
    return [[simple_tokenize(caption) for caption in captions] for captions in rows]


def made_up_captions(images: int, captions: int) -> Rows:
    """Captions of 11 words on average, from 3,000 words by Zipf's law; captions of an image share three phrases."""
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, 3001)
    vocabulary = [f"word{i}" for i in range(3000)]

    def words(count: int) -> list[str]:
        return [vocabulary[i] for i in random.choice(3000, size=count, p=weights / weights.sum())]

    rows = []
    for _ in range(images):
        pieces = [words(3) for _ in range(3)]
        chosen = [random.permutation(3)[:2] for _ in range(captions)]
        rows.append([" ".join([*pieces[a], *words(int(random.integers(2, 9))), *pieces[b]]) for a, b in chosen])
    return rows


def measure_apart(who: str, images: int, dataset: str | None) -> tuple[float, float]:
    """Measure in a fresh process; return seconds and megabytes."""
    command = [sys.executable, __file__, "--measure", who, str(images), *(["--dataset", dataset] if dataset else [])]
    seconds, megabytes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, megabytes


def measure(who: str, images: int, rows: Rows) -> tuple[float, float]:
    repeated = [rows[i % len(rows)] for i in range(images)]
    score = score_by_ours if who == "ours" else pycocoevalcap_scorer()
    before = resident_megabytes()
    seconds = best_time(lambda: score(repeated), SIZES[images])
    return seconds, resident_megabytes() - before


def score_by_ours(rows: Rows) -> None:
    captions = CaptionSet([row[0] for row in rows], [row[1:] for row in rows], "none")
    bleu_scores(captions)
    cider_scores(captions)
    rouge_l_scores(captions)


def pycocoevalcap_scorer() -> Callable[[Rows], None]:
    """Imports first, so that the import is not measured."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    def score(rows: Rows) -> None:
        references = {image: row[1:] for image, row in enumerate(rows)}
        hypotheses = {image: row[:1] for image, row in enumerate(rows)}
        Bleu(4).compute_score(references, hypotheses, verbose=0)
        Cider().compute_score(references, hypotheses)
        Rouge().compute_score(references, hypotheses)

    return score


def rewards_a_second(rows: Rows) -> float:
    reward = CiderDReward(rows)
    images = [image for image in range(IMAGES_PER_STEP) for _ in range(SAMPLES)]
    # Captions of other images stand in for samples: equally long, with as few matches as early in training.
    sampled = [rows[-1 - i % len(rows)][0] for i in range(len(images))]
    return len(images) / best_time(lambda: reward(sampled, images), runs=20)


def best_time(run: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def resident_megabytes() -> float:
    """Peak resident size so far in megabytes; Linux reports kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
