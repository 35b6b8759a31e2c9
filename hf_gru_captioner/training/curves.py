"""Training curves as a PNG, and the epochs as a table for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_path

Record = dict[str, float]

SCORES = {"cider": "CIDEr-D", "bleu_4": "BLEU-4"}  # displayed times 100


def rank(record: Record, select_by: str = "cider") -> tuple[float, float]:
    """What epochs are compared by: the score, then BLEU-4 if there is one.

    CIDEr-D is 0 for any captions of a single validation image, because its words occur in all images.
    """
    return record[select_by], record.get("bleu_4", 0.0)


def best_of(history: Sequence[Record], select_by: str = "cider") -> Record:
    """The record of the best epoch; the last of equal ones, which has seen the most."""
    return max(reversed(history), key=lambda record: rank(record, select_by))


def last_improvement(history: Sequence[Record], select_by: str = "cider") -> int:
    """Number of the last epoch that is better than all before it, from 1; an equal one is not."""
    ranks = [rank(record, select_by) for record in history]
    return ranks.index(max(ranks)) + 1


def plot_curves(history: Sequence[Record], path: str | Path) -> None:
    """Plots the training loss, the reward if there is one, and the validation scores of each epoch.

    Runs on one process; writes the file atomically.
    """
    from matplotlib.figure import Figure  # not pyplot, which would look for a display
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    has_reward = "reward" in history[0]
    loss = "training loss, policy gradient" if has_reward else "training loss, nats per token"
    panels = {loss: {"loss": [record["loss"] for record in history]}}
    if has_reward:
        panels["training reward, CIDEr-D"] = {"reward": [record["reward"] for record in history]}
    panels["validation score x 100"] = {
        title: [100 * record[name] for record in history] for name, title in SCORES.items() if name in history[0]
    }
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, values in lines.items():
            axes.plot(epochs, values, marker="o", label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def describe(record: Record, num_epochs: int) -> str:
    """The log line of an epoch, with scores times 100."""
    seconds = record["train_seconds"] + record["validation_seconds"]
    cells = [f"epoch {record['epoch']:.0f} of {num_epochs}", f"loss {record['loss']:.3f}"]
    cells += [f"reward {record['reward']:.3f}"] if "reward" in record else []
    cells += [f"{title} {100 * record[name]:.1f}" for name, title in SCORES.items() if name in record]
    for name, value in record.items():
        metric, _, source = name.partition("/")
        if source and metric == "cider":
            cells.append(f"{source} {100 * value:.1f}")
    return "   ".join([*cells, f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"])


def summary(history: Sequence[Record], select_by: str = "cider") -> str:
    """A table of the epochs; an asterisk marks the best one."""
    best = best_of(history, select_by)
    scores = {name: title for name, title in SCORES.items() if name in history[0]}
    extra = ["reward"] if "reward" in history[0] else []
    lines = ["epoch      loss" + "".join(f"{name:>10}" for name in [*extra, *scores.values(), "minutes"])]
    for record in history:
        minutes = (record["train_seconds"] + record["validation_seconds"]) / 60
        cells = [record["loss"], *(record[name] for name in extra), *(100 * record[name] for name in scores), minutes]
        mark = " *" if record is best else ""
        formats = [".3f", *[".3f"] * len(extra), *[".1f"] * len(scores), ".1f"]
        row = "".join(f"{cell:>10{spec}}" for cell, spec in zip(cells, formats, strict=True))
        lines.append(f"{record['epoch']:>5.0f}{row}{mark}")
    return "\n".join(lines)
