"""Measures the cost of a caption on a plain CPU, compared with alternatives; results go to benchmarks/results/.

    make bench            # about 30 minutes of two cores; installs twice, which takes the network and 12 GB of disk
    python benchmarks/bench.py [--quick] [--no-installation]

Every part runs in a separate process, with its number of threads. Systems are interleaved, so that other load affects
all of them equally; figures are medians with quartiles. Every caption has exactly 12 words (the end token is
suppressed). Photos are those in demo/examples, 480 pixels wide, read from their files; for the folder also enlarged.
"""

import argparse
import cProfile
import io
import itertools
import json
import os
import platform
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PHOTOS = sorted(str(path) for path in (ROOT / "demo" / "examples").glob("*.jpg"))
NUM_WORDS = 12
BEAMS = {1: "greedy", 3: "3 beams", 5: "5 beams"}
BATCHES = {1: "1 photo", 8: "8 photos"}
SUPPRESSED = [0, 1, 2, 3]  # includes the end token, for exactly NUM_WORDS words
DEFAULT = "default: onnxruntime"  # with the graphs in the checkpoint
GRAPHS = {  # backend, and export options of whole graphs
    "openvino": ("openvino", ["--format", "openvino"]),
    "onnxruntime int8": ("onnxruntime", ["--format", "onnx", "--int8", "--images", str(ROOT / "demo" / "examples")]),
    "openvino int8": ("openvino", ["--format", "openvino", "--int8", "--images", str(ROOT / "demo" / "examples")]),
}
COMMANDS = {  # arguments, and the output that ends the measurement
    "caption WRONG-NAME, to its error": (["caption", "no-such-photo.jpg"], None),
    "train --help": (["train", "--help"], None),
    "demo, until the page is served": (["demo"], "Ctrl+C to stop"),
}
FOLDER_SIZES = ((480, 360, 70), (1600, 1200, 25), (4000, 3000, 5))  # width, height, share in percent


def take_turns(systems: dict, rounds: int, calls: int = 1) -> dict[str, dict[str, float]]:
    """Milliseconds of each system, median and quartiles over this number of rounds after a warm-up round.

    Each turn is an untimed call, since the other systems have evicted the caches, then `calls` timed ones; with one
    call, for peers that take seconds, it is timed directly.
    """
    times: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(-1, rounds):
        for name, run in systems.items():
            for call in range(calls if calls == 1 else calls + 1):
                start = time.perf_counter()
                run()
                if number >= 0 and (call or calls == 1):
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: summary(each) for name, each in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high, "runs": len(values)}


def megabytes() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load(name: str, graphs: str, threads: int):
    from hf_gru_captioner import Captioner

    if name == "torch":
        import torch

        torch.set_num_threads(threads)
        return Captioner.from_pretrained(backend="torch")
    if name == DEFAULT:
        return Captioner.from_pretrained(num_threads=threads)
    backend, _ = GRAPHS[name]
    return Captioner.from_pretrained(backend=backend, graphs=Path(graphs) / name.replace(" ", "-"), num_threads=threads)


def settings(num_beams: int) -> dict:
    return {"num_beams": num_beams, "max_new_tokens": NUM_WORDS, "suppress_tokens": SUPPRESSED}


# Parts: each prints one JSON object.


def part_photo(graphs: str, threads: int, rounds: int) -> dict:
    """Milliseconds from file to text for all systems, single and in batches."""
    import torch
    from peers import PEERS, tutorial_beam_search

    torch.set_num_threads(threads)
    ours = {name: load(name, graphs, threads) for name in (DEFAULT, "torch", *GRAPHS)}
    model, processor = ours["torch"].model, ours["torch"].processor
    peers = {name: make(NUM_WORDS) for name, make in PEERS.items()}
    turn = itertools.count()

    def photos(count: int) -> list[str]:
        first = next(turn)
        return [PHOTOS[(first + number) % len(PHOTOS)] for number in range(count)]

    def generate(num_beams: int, count: int) -> None:
        with torch.inference_mode():
            model.generate(processor(images=photos(count))["pixel_values"], **settings(num_beams))

    def by_tutorial(num_beams: int) -> None:
        tutorial_beam_search(model, processor(images=photos(1))["pixel_values"], num_beams, NUM_WORDS)

    def case(count: int, num_beams: int) -> dict[str, dict[str, float]]:
        """Milliseconds per photo for each system."""
        systems: dict[str, Callable[[], Any]] = {
            name: lambda c=captioner: c(photos(count), batch_size=count, **settings(num_beams))
            for name, captioner in ours.items()
        }
        systems["generate()"] = lambda: generate(num_beams, count)
        if num_beams > 1 and count == 1:
            systems["tutorial's beam search"] = lambda: by_tutorial(num_beams)
        figures = take_turns(systems, 2 * rounds, calls=3)
        if count == 1 or num_beams == 1:  # eight photos with beams take the peers minutes
            slow = {name: lambda p=caption: p(photos(count), num_beams) for name, caption in peers.items()}
            figures |= take_turns(slow, rounds if count == 1 else 2)
        return {
            name: {key: value if key == "runs" else value / count for key, value in each.items()}
            for name, each in figures.items()
        }

    return {
        f"{photos_name}, {beams_name}": case(count, num_beams)
        for count, photos_name in BATCHES.items()
        for num_beams, beams_name in BEAMS.items()
    }


def part_shares(graphs: str, threads: int, rounds: int) -> dict:
    """Milliseconds per stage for one photo on each of our backends, and for the encoder in plain eager PyTorch."""
    import numpy as np
    import torch
    from PIL import Image

    path, result = PHOTOS[3], {}
    for name in (DEFAULT, "torch", *GRAPHS):
        captioner = load(name, graphs, threads)
        image = captioner.load_image(path)
        encoded = captioner.encode([image])
        stages = {
            "decode JPEG": lambda: Image.open(path).convert("RGB"),
            "decode JPEG and scale": lambda c=captioner: c.load_image(path),
            "encode": lambda c=captioner, i=image: c.encode([i]),
        } | {
            f"words, {num_beams} beams": lambda c=captioner, e=encoded, n=num_beams: c.decode(e, **settings(n))
            for num_beams in BEAMS
        }
        if name == "torch":
            plain = torch.from_numpy(np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32))
            backbone = captioner.model.encoder.vision.backbone
            stages["encoder in plain eager PyTorch"] = lambda b=backbone, p=plain: torch.inference_mode()(b)(p)
        result[name] = take_turns(stages, 2 * rounds, calls=3)
    return result


def part_folder(graphs: str, threads: int, folder: str, name: str, num_beams: int, count: int) -> dict:
    """Photos per second on a folder: with prefetching, sequentially, the encoder alone; and memory."""
    from hf_gru_captioner.inference.prefetch import caption_all

    captioner = load(name, graphs, threads)
    paths = sorted(str(path) for path in Path(folder).iterdir())
    images = [captioner.load_image(path) for path in paths[:16]]
    captioner.encode(images)
    started = megabytes()
    start = time.perf_counter()
    for _ in range(10):
        captioner.encode(images)
    encoder = 160 / (time.perf_counter() - start)
    start = time.perf_counter()
    memory = {}
    for number, _ in enumerate(
        caption_all(captioner, itertools.islice(itertools.cycle(paths), count), **settings(num_beams)), 1
    ):
        if number in (200, 2000, 20000):
            memory[number] = megabytes()
    overlapped = count / (time.perf_counter() - start)
    some = paths[: min(count, 400)]
    start = time.perf_counter()
    captioner(some, batch_size=16, **settings(num_beams))
    one_by_one = len(some) / (time.perf_counter() - start)
    return {
        "encoder alone": encoder,
        "overlapped": overlapped,
        "one stage after the other": one_by_one,
        "megabytes before": started,
        "megabytes after": memory,
    }


def part_memory(graphs: str, threads: int, name: str) -> dict:
    """Peak memory of a process that captions one photo with 3 beams."""
    if name in (DEFAULT, "torch", *GRAPHS):
        load(name, graphs, threads)(PHOTOS[3], **settings(3))
    else:
        import torch
        from peers import PEERS

        torch.set_num_threads(threads)
        PEERS[name](NUM_WORDS)([PHOTOS[3]], 3)
    return {"megabytes": megabytes()}


def part_profile(graphs: str, threads: int) -> dict:
    """Profiles of a caption: with generate(), with our search, and with the fastest graphs."""
    import torch

    captioners = {name: load(name, graphs, threads) for name in ("torch", DEFAULT, "openvino int8")}
    model, processor = captioners["torch"].model, captioners["torch"].processor

    @torch.inference_mode()
    def generate() -> None:
        model.generate(processor(images=PHOTOS[3])["pixel_values"], **settings(3))

    runs = {"generate()": generate} | {
        name: lambda c=captioner: c(PHOTOS[3], **settings(3)) for name, captioner in captioners.items()
    }
    text = ""
    for name, run in runs.items():
        run()
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(20):
            run()
        profile.disable()
        stream = io.StringIO()
        pstats.Stats(profile, stream=stream).strip_dirs().sort_stats("tottime").print_stats(14)
        text += f"## {name}: 20 photos, 3 beams\n{stream.getvalue()}\n"
    return {"profile": text}


def options_of(name: str, graphs: Path) -> list[str]:
    """Command line options."""
    if name in GRAPHS:
        return ["--backend", GRAPHS[name][0], "--graphs", str(graphs / name.replace(" ", "-"))]
    return ["--backend", "torch"] if name == "torch" else []


def start_up(graphs: Path, name: str) -> float:
    """Seconds of the command line, from a cold start to the caption of one photo."""
    options = options_of(name, graphs)
    start = time.perf_counter()
    command = [sys.executable, "-m", "hf_gru_captioner.cli", "caption", PHOTOS[3], *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def command_seconds(arguments: list[str], until: str | None = None) -> float:
    """Seconds until a command ends, or prints a text and is then terminated."""
    start = time.perf_counter()
    command = [sys.executable, "-u", "-m", "hf_gru_captioner.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            if until is not None and until in line:
                seconds = time.perf_counter() - start
                process.terminate()
                return seconds
    return time.perf_counter() - start


def two_processes(graphs: Path, folder: Path, name: str) -> float:
    """Photos per second of two processes with one thread each, from a cold start to the output file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "scripts" / "caption.py"), str(folder), *options_of(name, graphs), "--num-beams", "3"]
    command += ["--output", str(graphs / f"{name}.jsonl")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return len(list(folder.iterdir())) / (time.perf_counter() - start)


def installations() -> dict[str, dict[str, float]]:
    import installation

    print(f"{time.strftime('%H:%M:%S')} installation", flush=True)
    return {name: installation.measure(target) for name, target in installation.SETS.items()}


# The driver.


def run_part(part: str, threads: int, *arguments: object, cores: int = 0) -> dict:
    """Runs a part in a separate process, on this number of cores or on all."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "THP_MEM_ALLOC_ENABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--part", json.dumps([part, *map(str, arguments)])]
    command += ["--threads", str(threads), "--cores", str(cores)]
    print(f"{time.strftime('%H:%M:%S')} {part} {threads} threads {' '.join(map(str, arguments[1:]))}", flush=True)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def make_folder(folder: Path, count: int) -> None:
    """Writes photos of several sizes, typical of cameras and the web."""
    from PIL import Image

    folder.mkdir()
    number = 0
    for width, height, percent in FOLDER_SIZES:
        files = []
        for path in PHOTOS:
            image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=88)
            files.append(stream.getvalue())
        for index in range(count * percent // 100):
            (folder / f"{(number * 7919) % count:05d}.jpg").write_bytes(files[index % len(files)])
            number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a smaller folder")
    parser.add_argument("--no-installation", action="store_true", help="skip the part that needs the network")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        if arguments.cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
        part, graphs, *rest = json.loads(arguments.part)
        numbers = [int(each) if each.isdigit() else each for each in rest]
        print(json.dumps(globals()[f"part_{part}"](graphs, arguments.threads, *numbers)))
        return
    rounds, folder_size, many = (2, 200, 400) if arguments.quick else (4, 2000, 20000)
    names = (DEFAULT, "torch", *GRAPHS)
    result: dict = {
        "machine": machine(),
        "words": NUM_WORDS,
        "installation": {} if arguments.no_installation else installations(),
        "photo": {},
        "shares": {},
        "folder": {},
        "memory": {},
        "start": {},
        "commands": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        graphs = Path(scratch)
        for name, (_, options) in GRAPHS.items():
            command = [sys.executable, "-m", "hf_gru_captioner.cli", "export", *options]
            subprocess.run([*command, "--output", str(graphs / name.replace(" ", "-"))], check=True)
        for threads in (1, 2):
            result["photo"][threads] = run_part("photo", threads, graphs, rounds)
            result["shares"][threads] = run_part("shares", threads, graphs, rounds)
        make_folder(graphs / "photos", folder_size)
        for name in (DEFAULT, "openvino int8"):
            figures = run_part("folder", 1, graphs, graphs / "photos", name, 3, folder_size, cores=1)
            result["folder"][f"{name}, one core"] = figures
        for threads in (1, 2):
            for name in (DEFAULT, "torch", "openvino int8"):
                figures = run_part("folder", threads, graphs, graphs / "photos", name, 3, folder_size)
                if threads == 1:
                    figures["two processes"] = two_processes(graphs, graphs / "photos", name)
                result["folder"][f"{name}, {threads} threads"] = figures
        figures = run_part("folder", 2, graphs, graphs / "photos", "openvino int8", 3, many)
        result["folder"][f"openvino int8, 2 threads, {many} photos"] = figures
        for name in (*names, "ViT-GPT2", "BLIP-base", "GIT-base"):
            result["memory"][name] = run_part("memory", 1, graphs, name)["megabytes"]
        result["profile"] = run_part("profile", 1, graphs)["profile"]
        starts: dict[str, list[float]] = {name: [] for name in names}
        for number in range(-1, rounds):
            for name in names:
                seconds = start_up(graphs, name)
                if number >= 0:
                    starts[name].append(seconds)
        result["start"] = {name: summary(each) for name, each in starts.items()}
        commands: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for number in range(-1, rounds):
            for name, (arguments_of, until) in COMMANDS.items():
                seconds = command_seconds(arguments_of, until)
                if number >= 0:
                    commands[name].append(seconds)
        result["commands"] = {name: summary(each) for name, each in commands.items()}
    write(result)


def machine() -> dict:
    from importlib.metadata import version

    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    libraries = ("torch", "transformers", "onnxruntime", "openvino", "pillow")
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in libraries},
    }


def write(result: dict) -> None:
    from bench_report import chart, table

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "profile.txt").write_text(result.pop("profile"))
    (RESULTS / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "bench.md").write_text(table(result))
    chart(result, RESULTS / "bench.png")
    print(table(result))


if __name__ == "__main__":
    main()
