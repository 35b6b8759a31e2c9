"""Tables and a chart of the results of `bench.py`."""

from pathlib import Path

FLOOR = "ViT-GPT2"


def table(result: dict) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# What a caption costs",
        "",
        f"`make bench` on {machine['date']}: {machine['cores']} cores of an {machine['processor']}; {versions}.",
        f"Milliseconds a photo from file to text of {result['words']} words: median (quartiles), runs taking turns.",
        "",
    ]
    for threads, figures in result["photo"].items():
        lines += _photo(threads, figures)
    lines += _shares(result["shares"])
    lines += _folder(result["folder"])
    lines += _start(result)
    lines += _installation(result["installation"])
    return "\n".join(lines) + "\n"


def _photo(threads, cases: dict) -> list[str]:
    names = list(dict.fromkeys(name for each in cases.values() for name in each))
    lines = [f"## {_threads(threads)}", ""]
    lines += ["| | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for name in names:
        cells = []
        for case in cases.values():
            each = case.get(name)
            if each is None:
                cells.append("")
                continue
            ratio = case[FLOOR]["median"] / each["median"] if FLOOR in case else None
            text = f"{each['median']:.1f} ({each['low']:.1f} to {each['high']:.1f})"
            cells.append(text + (f", {ratio:.{0 if ratio > 10 else 1}f}x" if ratio and name != FLOOR else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", f"The last number: how many times sooner than {FLOOR}.", ""]


def _shares(shares: dict) -> list[str]:
    lines = ["## Where the time goes, one photo", ""]
    for threads, systems in shares.items():
        stages = next(iter(systems.values()))
        lines += [f"{_threads(threads)}, milliseconds.", ""]
        lines += ["| | " + " | ".join(stages) + " | words (3 beams) of the encoder |", "|---" * (len(stages) + 2) + "|"]
        for name, each in systems.items():
            cells = [f"{each[stage]['median']:.2f}" if stage in each else "" for stage in stages]
            share = each["words, 3 beams"]["median"] / each["encode"]["median"]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {share:.0%} |")
        lines.append("")
    return lines


def _threads(threads) -> str:
    return f"{threads} thread{'s' if int(threads) > 1 else ''}"


def _folder(folder: dict) -> list[str]:
    columns = ("encoder alone", "overlapped", "of the encoder", "one stage after the other", "two processes", "memory")
    lines = ["## A folder of photos of several sizes", ""]
    lines += ["3 beams; both cores if not said otherwise. Photos a second, megabytes after 200 photos and more.", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, each in folder.items():
        memory = ", ".join(f"{count}: {size:.0f}" for count, size in each["megabytes after"].items())
        cells = [f"{each[column]:.1f}" if column in each else "" for column in columns[:-1]]
        cells[2] = f"{each['overlapped'] / each['encoder alone']:.0%}"
        lines.append(f"| {name} | " + " | ".join([*cells, memory]) + " |")
    return [*lines, ""]


def _start(result: dict) -> list[str]:
    lines = ["## Start and memory", "", "| | seconds to the first caption | most megabytes |", "|---|---|---|"]
    for name, size in result["memory"].items():
        start = result["start"].get(name)
        seconds = f"{start['median']:.2f} ({start['low']:.2f} to {start['high']:.2f})" if start else ""
        lines.append(f"| {name} | {seconds} | {size:.0f} |")
    lines += ["", "| command | seconds |", "|---|---|"]
    for name, each in result["commands"].items():
        lines.append(f"| {name} | {each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f}) |")
    return lines


def _installation(sets: dict) -> list[str]:
    lines = ["", "## Installation", "", "| | seconds | megabytes of packages | on disk |", "|---|---|---|---|"]
    for name, each in sets.items():
        cells = (each["seconds"], each["megabytes of packages"], each["megabytes on disk"])
        lines.append(f"| {name} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    return lines if sets else []


def chart(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = result["photo"].get(1) or result["photo"]["1"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    cases = [case for case in figures if case.startswith("1 ")]
    names = list(figures[cases[-1]])[::-1]
    height = 0.8 / len(cases)
    for number, case in enumerate(cases):
        each = figures[case]
        places = [place + number * height for place, name in enumerate(names) if name in each]
        left.barh(places, [each[name]["median"] for name in names if name in each], height, label=case)
    left.set_yticks([place + 0.8 / 2 - height / 2 for place in range(len(names))], names)
    left.set_xscale("log")
    left.set_xlabel("milliseconds a photo, one thread")
    left.legend()
    shares = result["shares"].get(1) or result["shares"]["1"]
    bottom = [0.0] * len(shares)
    for stage in ("decode JPEG and scale", "encode", "words, 3 beams"):
        values = [each[stage]["median"] for each in shares.values()]
        right.bar(list(shares), values, bottom=bottom, label=stage)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    right.set_ylabel("milliseconds a photo, one thread")
    right.tick_params(axis="x", rotation=20)
    right.legend()
    figure.savefig(path, dpi=90)
