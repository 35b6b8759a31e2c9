"""Makes the table in docs/ablation.md from run folders: what each run changed, its scores and its duration.

    gru-captioner score --data ... --checkpoint runs/x/checkpoint --output runs/x/score    # for each run
    python benchmarks/ablation.py runs/a runs/b runs/c > table.md

Runs that differ only in the seed share a row, with the names of their folders; so do runs that continue from such runs,
if the latter's names end in the seed: b-1 and b-2. A row lists the options that differ from the first row; an encoder
or checkpoint is named after its run. Scores are on the validation split with the Penn Treebank tokenizer, times 100;
with several seeds the interval is for their mean, otherwise it is a single run's bootstrap interval over photos.
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import yaml

from hf_gru_captioner.training.config import UNCLAIMED, flatten_options

FIGURES = {"cider": "CIDEr", "bleu_4": "BLEU-4", "meteor": "METEOR"}
NOT_COMPARED = UNCLAIMED | {"data.shuffle_block", "data.source", "optimization.seed"}  # scores don't depend on them
MODEL_OPTIONS = (  # options of a new model, ignored by a run that starts from a checkpoint
    "model.attention_type",
    "model.embedding_size",
    "model.encoder",
    "model.hidden_size",
    "model.num_attention_heads",
)
STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # runs -> two-sided quantile of their mean


def read_run(folder: Path) -> dict[str, Any]:
    options = flatten_options(yaml.safe_load((folder / "config.yaml").read_text()))
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    system = next(iter(json.loads((folder / "score" / "metrics.json").read_text())["systems"].values()))
    if options["model.checkpoint"]:  # a-1/checkpoint and a-2/checkpoint are the same change with two seeds
        options["model.checkpoint"] = re.sub(r"-\d+(/checkpoint)?$", "", options["model.checkpoint"])
    return {
        "options": {name: value for name, value in options.items() if name not in NOT_COMPARED},
        "minutes": sum(each["train_seconds"] + each["validation_seconds"] for each in history) / 60,
        "best": max(history, key=lambda each: each["cider"])["epoch"],
        "epochs": len(history),
        "values": system["values"],
        "intervals": system["intervals"],
    }


def change(options: dict[str, Any], baseline: dict[str, Any]) -> str:
    """The options changed by a row; model options are ignored if it starts from another run's checkpoint."""
    if options["model.checkpoint"]:
        options = {name: value for name, value in options.items() if name not in MODEL_OPTIONS}
    changed = {name: value for name, value in options.items() if value != baseline.get(name)}
    for name in ("model.checkpoint", "model.encoder"):
        if changed.get(name):
            changed[name] = str(changed[name]).removesuffix("/checkpoint").rsplit("/", 1)[-1]
    return ", ".join(f"{name.split('.')[-1]} {value}" for name, value in changed.items())


def cell(runs: list[dict[str, Any]], score: str) -> str:
    scores = [100 * run["values"][score] for run in runs]
    if len(runs) == 1:
        low, high = (100 * bound for bound in runs[0]["intervals"][score])
        return f"{scores[0]:.1f} ({low:.1f} to {high:.1f})"
    half = STUDENT_95[len(runs)] * statistics.stdev(scores) / len(runs) ** 0.5
    return f"{statistics.mean(scores):.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--each", action="store_true", help="a row for each run, whatever its seed")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder in arguments.runs:
        run = read_run(folder)
        run["name"] = folder.name
        key = folder.name if arguments.each else json.dumps(run["options"], sort_keys=True)
        rows.setdefault(key, []).append(run)
    print(f"| run | change | seeds | {' | '.join(FIGURES.values())} | best epoch | minutes |")
    print("|---" * (5 + len(FIGURES)) + "|")
    first = next(iter(rows.values()))[0]["options"]
    for runs in rows.values():
        best = "/".join(f"{run['best']:.0f}" for run in runs)
        cells = [
            ", ".join(run["name"] for run in runs),
            change(runs[0]["options"], first),
            str(len(runs)),
            *(cell(runs, figure) for figure in FIGURES),
            f"{best} of {runs[0]['epochs']}",
            f"{statistics.mean(run['minutes'] for run in runs):.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
