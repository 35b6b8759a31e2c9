"""Kills and full disks: every command that writes is killed at random moments, run again, and compared.

    python tests/support/faults.py [--kills 30] [--commands features train scst score export push caption]

A command runs once undisturbed. Then, each time in a new folder: it is killed (SIGKILL) at a random moment of its run;
no file that a reader would take is torn; the same command is run again to its end; the result is the undisturbed one.
So it is at moments that chance hardly finds: before each change of a file's name, over an older result where there is
one. Then with room for too small a file, on a full disk, and on one that can only be read (these two need root), with
a process that reads photos ahead killed, and with a Hub that fails, falls silent or cuts the line, up and down: one
line, exit code 2; with all in order again the undisturbed result.

One process imports everything, and forks one that runs the command each time, so that a run takes a second.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

TESTS = Path(__file__).parent
ROOM = 64_000  # kilobytes of a disk that are enough for any
SILENCE = 0.5  # seconds after which the Hub is given up here
WAYS = (500, "cut", "half", "late", "stall")  # in which the Hub breaks
UPLOADS = (
    "GET /api/models/",
    "POST /api/repos/create",
    "POST .*/preupload/",
    "POST .*/objects/batch",
    "PUT /_lfs/",
    "POST .*/commit/",
)
DOWNLOADS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
)
GRAPHS = {"encoder.onnx", "step.onnx", "tokenizer.json", "graphs.json"}
ALL = ("features", "train", "scst", "score", "export", "push", "caption")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


class Job:
    """A command that writes into a folder.

    Args:
        arguments: Folder -> its command line.
        result: Folder -> what it has written, to be compared.
        file_size, disk_size: Bytes of a file and kilobytes of a disk that are too few for it.
        older: Folder -> a command line whose result is there before, for the kills at every change of a name.
    """

    def __init__(
        self,
        arguments: Callable[[Path], list[Any]],
        result: Callable[[Path], Any],
        file_size: int = 6_000,
        disk_size: int = 48,
        older: Callable[[Path], list[Any]] | None = None,
    ):
        self.arguments, self.result = arguments, result
        self.file_size, self.disk_size, self.older = file_size, disk_size, older


def run(
    job: Job,
    folder: Path,
    kill_after: float | None = None,
    file_size: int | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> tuple[int, str, float]:
    """Runs a job in a separate process, which `prepare` may break; returns exit code, stderr and seconds."""
    said = folder.with_name(f"{folder.name}.stderr")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            prepare()
            from hf_gru_captioner.cli import main

            code = main([str(each) for each in job.arguments(folder)])
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    return os.waitstatus_to_exitcode(status), said.read_text(errors="replace") if said.exists() else "", seconds


def torn_files(folder: Path) -> list[str]:
    """Truncated files that a reader would open. Temporary files have names that are never read."""
    from safetensors import safe_open

    torn = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(".") or ".partial" in part or ".part-" in part for part in parts):
            continue
        try:
            if path.name == "graphs.json" and (lacking := GRAPHS - {each.name for each in path.parent.iterdir()}):
                raise FileNotFoundError(f"without {lacking}")
            if path.suffix == ".onnx" and not path.with_name("graphs.json").exists():
                raise FileNotFoundError("without graphs.json")
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
            elif path.suffix == ".safetensors":
                with safe_open(path, "np") as file:
                    list(file.keys())
        except Exception as error:
            torn.append(f"{path.relative_to(folder)}: {error}")
    return torn


def make_jobs(scratch: Path, hub: LoopbackHub) -> dict[str, Job]:
    from e2e import draw, make_encoder

    draw(scratch / "photos", {"train": 48, "validation": 6})
    encode = os.fork()  # no arithmetic in the parent: its threads would not live in the children
    if encode == 0:
        make_encoder(scratch / "encoder")
        os._exit(0)
    os.waitpid(encode, 0)

    def options(folder: Path, **more: Any) -> list[str]:
        values = {
            "data.source": scratch / "photos",
            "data.cache_folder": folder / "cache",
            "tokenizer.min_count": 1,
            "model.encoder": scratch / "encoder",
            "model.image_size": 64,
            "model.hidden_size": 16,
            "model.embedding_size": 12,
            "optimization.epochs": 3,
            "optimization.images_per_step": 12,
            "optimization.state_steps": 1,
            "optimization.checkpoint_precision": "float32",
            "validation.num_beams": 2,
            "validation.max_new_tokens": 6,
            "validation.shown": 1,
            "output_dir": folder / "run",
            **more,
        }
        return [f"--{name}={value}" for name, value in values.items()]

    def of_cache(folder: Path) -> dict[str, str]:
        return {str(path.relative_to(folder)): digest(path) for path in sorted((folder / "cache").rglob("*.bin"))}

    def of_training(folder: Path) -> Any:
        records = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
        kept = [{name: value for name, value in each.items() if "seconds" not in name} for each in records]
        return digest(folder / "run" / "checkpoint" / "model.safetensors"), kept

    train = Job(lambda folder: ["train", *options(folder)], of_training)
    first = scratch / "first"
    first.mkdir()
    code, said, _ = run(train, first)
    if code:
        sys.exit(f"training does not even run undisturbed:\n{said}")
    checkpoint = first / "run" / "checkpoint"
    scst = {"objective": "self_critical", "model.checkpoint": checkpoint, "optimization.epochs": 2}

    def of_scores(folder: Path) -> Any:
        metrics = json.loads((folder / "score" / "metrics.json").read_text())
        return metrics["systems"], digest(folder / "score" / "predictions.json")

    def of_graphs(folder: Path) -> Any:
        import onnx

        operators = {
            path.name: [node.op_type for node in onnx.load(path).graph.node]
            for path in sorted((folder / "graphs").glob("*.onnx"))
        }
        answer = Job(
            lambda _: [
                *captioning,
                "--backend",
                "onnxruntime",
                "--graphs",
                folder / "graphs",
                "--output",
                folder / "by",
            ],
            lambda _: (folder / "by").read_bytes(),
        )
        code, said, _ = run(answer, folder)
        written = answer.result(folder) if code == 0 else said
        (folder / "by").unlink(missing_ok=True)
        return operators, json.loads((folder / "graphs" / "graphs.json").read_text()), written

    def of_hub(folder: Path) -> Any:
        files = hub.repository(f"me/{folder.name}").files()
        return {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != "README.md"}

    of_trained = ["--checkpoint", checkpoint]
    splits = [scratch / "photos" / "train", scratch / "photos" / "validation"]
    captioning = ["caption", splits[1], *of_trained]

    def score_into(folder: Path) -> list[Any]:
        return ["score", "--data", scratch / "photos", *of_trained, *scoring, "--output", folder / "score"]

    def export_into(folder: Path) -> list[Any]:
        return ["export", checkpoint, "--output", folder / "graphs"]

    scoring = ["--tokenizer", "simple", "--metrics", "cider", "bleu", "--bootstrap", "20"]
    return {
        "features": Job(lambda folder: ["features", *options(folder)], of_cache),
        "train": train,
        "scst": Job(lambda folder: ["train", *options(folder, **scst)], of_training),
        "score": Job(score_into, of_scores, older=score_into),
        "export": Job(export_into, of_graphs, older=export_into),
        "push": Job(lambda folder: ["push", checkpoint, f"me/{folder.name}", "--license", "mit"], of_hub),
        "caption": Job(
            lambda folder: ["caption", *splits, *of_trained, "--batch-size", 2, "--output", folder / "captions.jsonl"],
            lambda folder: (folder / "captions.jsonl").read_bytes(),
            file_size=2_000,
            disk_size=4,
            older=lambda folder: ["caption", splits[0], *of_trained, "--output", folder / "captions.jsonl"],
        ),
    }


def is_one_line(said: str) -> bool:
    lines = [line for line in said.splitlines() if line.startswith("gru-captioner")]
    return len(lines) == 1 and "Traceback" not in said


def try_kills(name: str, job: Job, scratch: Path, expected: Any, seconds: float, kills: int) -> list[str]:
    chance, problems = random.Random(name), []
    for number in range(kills):
        folder = scratch / f"{name}-{number}"
        folder.mkdir()
        moment = chance.uniform(0, seconds)
        run(job, folder, kill_after=moment)
        problems += [f"{name} killed after {moment:.2f} s: torn {torn}" for torn in torn_files(folder)]
        code, said, _ = run(job, folder)
        if code or job.result(folder) != expected:
            problems.append(f"{name} killed after {moment:.2f} s: then exit code {code}, another result. {said[-600:]}")
        shutil.rmtree(folder)
    return problems


def killed_at(change: int, folder: Path, count: Path) -> Callable[[], None]:
    """Prepares a process to be killed before the n-th directory change in a folder, or to count them."""

    def prepare() -> None:
        seen = 0

        def look(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event not in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
                return
            if not str(arguments[0]).startswith(str(folder)) and arguments[-1] == -1:  # else: of a folder that is open
                return
            seen += 1
            if seen == change:
                os.kill(os.getpid(), signal.SIGKILL)
            if not change:
                os.write(handle, b".")

        handle = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(look)

    return prepare


def try_changes(name: str, job: Job, scratch: Path, expected: Any, most: int) -> tuple[list[str], int]:
    """Kills before every directory change, or a number of them, evenly spread."""
    count = scratch / f"{name}.count"

    def begin(folder: Path) -> Path:
        folder.mkdir()
        if job.older is not None:
            run(Job(job.older, job.result), folder)
        return folder

    folder = begin(scratch / f"{name}-counted")
    run(job, folder, prepare=killed_at(0, folder, count))
    changes, problems = count.stat().st_size, []
    chosen = spread(range(1, changes + 1), most)
    for change in chosen:
        folder = begin(scratch / f"{name}-change-{change}")
        code, _, _ = run(job, folder, prepare=killed_at(change, folder, count))
        what = f"{name} killed before change {change} of {changes}"
        if code != -signal.SIGKILL:
            problems.append(f"{what}: exit code {code}, it was not killed")
        problems += [f"{what}: torn {torn}" for torn in torn_files(folder)]
        code, said, _ = run(job, folder)
        if code or job.result(folder) != expected:
            problems.append(f"{what}: then exit code {code}, another result. {said[-600:]}")
        shutil.rmtree(folder)
    return problems, len(chosen)


@contextlib.contextmanager
def broken(hub: LoopbackHub, path: str, how: int | str):
    hub.fail(path, how, times=99)
    try:
        yield
    finally:
        hub.failures.clear()


def impatient(cache: Path) -> Callable[[], None]:
    """Prepares a process not to wait for the Hub, and to use a separate cache folder."""

    def prepare() -> None:
        from huggingface_hub import constants, file_download
        from huggingface_hub.utils import _http

        from hf_gru_captioner.hub import timeout

        timeout.READ_TIMEOUT = SILENCE
        constants.HF_HUB_CACHE = str(cache)
        file_download._ETAG_RETRY_TIMEOUT = 1  # of 60 seconds, six times a file
        _http.time.sleep = lambda seconds: None  # type: ignore[attr-defined]  # between its retries

    return prepare


def spread(cases: Sequence[Any], most: int | None) -> Sequence[Any]:
    """At most this number of items, evenly spread from the first on; by default all."""
    count = len(cases) if most is None else min(most, len(cases))
    return [cases[number * len(cases) // count] for number in range(count)]


def try_uploads(
    job: Job, scratch: Path, hub: LoopbackHub, expected: Any, most: int | None = None
) -> tuple[list[str], int]:
    problems, cases = [], spread([(path, how) for path in UPLOADS for how in WAYS], most)
    for number, (path, how) in enumerate(cases):
        folder = scratch / f"push-broken-{number}"
        folder.mkdir()
        hub.large_files.clear()
        prepare = impatient(folder / "home")
        with broken(hub, path, how):
            code, said, seconds = run(job, folder, prepare=prepare)
        if code != 2 or not is_one_line(said) or seconds > 60:
            problems.append(f"push, {how} at {path}: exit code {code} after {seconds:.0f} s. {said[-600:]}")
        repository = hub.repositories.get(("model", f"me/{folder.name}"))
        if repository is not None and repository.files() and job.result(folder) != expected:
            problems.append(f"push, {how} at {path}: a part of it is published")
        code, said, _ = run(job, folder, prepare=prepare)
        if code or job.result(folder) != expected:
            problems.append(f"push, after {how} at {path}: exit code {code}, another result. {said[-600:]}")
    return problems, len(cases)


def try_downloads(
    job: Job, scratch: Path, hub: LoopbackHub, expected: Any, most: int | None = None
) -> tuple[list[str], int]:
    problems, cases = [], spread([(file, how) for file in DOWNLOADS for how in WAYS], most)
    from_hub = Job(lambda folder: [*job.arguments(folder), "--checkpoint", "me/push-whole"], job.result)
    for number, (file, how) in enumerate(cases):
        folder = scratch / f"caption-broken-{number}"
        folder.mkdir()
        prepare = impatient(folder / "home")
        with broken(hub, f"/resolve/.*/{file}", how):
            code, said, _ = run(from_hub, folder, prepare=prepare)
        if code == 0:  # it did without
            if job.result(folder) != expected:
                problems.append(f"caption, {how} at {file}: exit code 0, other captions")
        elif code != 2 or not is_one_line(said):
            problems.append(f"caption, {how} at {file}: exit code {code}. {said[-600:]}")
        (folder / "captions.jsonl").unlink(missing_ok=True)
        code, said, _ = run(from_hub, folder, prepare=prepare)
        if code or job.result(folder) != expected:
            problems.append(f"caption, after {how} at {file}: exit code {code}, other captions. {said[-600:]}")
    return problems, len(cases)


def kill_first_worker() -> None:
    """Prepares a process to lose its first DataLoader worker."""

    def watch() -> None:
        import multiprocessing

        while not (workers := multiprocessing.active_children()):
            time.sleep(0.001)
        os.kill(workers[0].pid, signal.SIGKILL)  # type: ignore[arg-type]

    threading.Thread(target=watch, daemon=True).start()


def try_worker(job: Job, scratch: Path, expected: Any) -> list[str]:
    folder, problems = scratch / "train-worker", []
    folder.mkdir()
    reading = Job(lambda folder: [*job.arguments(folder), "--data.num_workers=1"], job.result)
    code, said, _ = run(reading, folder, prepare=kill_first_worker)
    if code != 2 or not is_one_line(said):
        problems.append(f"train, a dead worker: exit code {code}. {said[-900:]}")
    code, said, _ = run(reading, folder)
    if code or job.result(folder) != expected:
        problems.append(f"train, after a dead worker: exit code {code}, another result. {said[-600:]}")
    return problems


@contextlib.contextmanager
def disk(folder: Path, options: str):
    """A small disk mounted on a folder; None if not permitted."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def try_disks(name: str, job: Job, scratch: Path, expected: Any) -> tuple[list[str], list[str]]:
    problems, tried = [], []
    folder = scratch / f"{name}-small"
    folder.mkdir()
    code, said, _ = run(job, folder, file_size=job.file_size)
    tried.append("a file too large")
    if code != 2 or not is_one_line(said):
        problems.append(f"{name}, a file too large: exit code {code}. {said[-900:]}")
    problems += [f"{name}, a file too large: torn {torn}" for torn in torn_files(folder)]
    code, said, _ = run(job, folder)
    if code or job.result(folder) != expected:
        problems.append(f"{name}, after a file too large: exit code {code}, another result. {said[-600:]}")
    for what, options in (("a full disk", f"size={job.disk_size}k"), ("a disk that is only read", "ro")):
        folder = scratch / f"{name}-{options[:2]}"
        folder.mkdir()
        with disk(folder, options) as is_there:
            if not is_there:
                continue
            tried.append(what)
            code, said, _ = run(job, folder)
            problems += [f"{name}, {what}: torn {torn}" for torn in torn_files(folder)]
            if code != 2 or not is_one_line(said):
                problems.append(f"{name}, {what}: exit code {code}. {said[-900:]}")
            subprocess.run(["mount", "-o", f"remount,rw,size={ROOM}k", folder], check=True)
            code, said, _ = run(job, folder)
            if code or job.result(folder) != expected:
                problems.append(f"{name}, after {what}: exit code {code}, another result. {said[-600:]}")
    return problems, tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each command (%(default)s)")
    parser.add_argument("--breaks", type=int, help="ways of a broken Hub, at most; all when not given")
    parser.add_argument("--changes", type=int, default=40, help="kills at changes of names, at most (%(default)s)")
    parser.add_argument("--commands", nargs="+", choices=ALL, default=ALL)
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="gru-captioner-faults-"))
    with LoopbackHub() as hub:
        os.environ.update(hub.environment(), HF_HOME=str(scratch / "home"), OMP_NUM_THREADS="1")
        os.environ.update(HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1")
        import torch

        import hf_gru_captioner.evaluation
        import hf_gru_captioner.hub
        import hf_gru_captioner.inference.export
        import hf_gru_captioner.model.auto_classes
        import hf_gru_captioner.training  # noqa: F401

        torch.set_num_threads(1)
        jobs = make_jobs(scratch, hub)
        problems = []
        for name in arguments.commands:
            job = jobs[name]
            folder = scratch / f"{name}-whole"
            folder.mkdir()
            code, said, seconds = run(job, folder)
            if code:
                sys.exit(f"{name} does not even run undisturbed:\n{said}")
            expected = job.result(folder)
            found = try_kills(name, job, scratch, expected, seconds, arguments.kills)
            tried: list[str] = []
            if name == "push":  # it writes nothing here
                on_the_way, cases = try_uploads(job, scratch, hub, expected, arguments.breaks)
                tried.append(f"{cases} ways of a broken Hub")
                found += on_the_way
            else:
                at_changes, cases = try_changes(name, job, scratch, expected, arguments.changes)
                on_disks, disks = try_disks(name, job, scratch, expected)
                tried += [f"{cases} kills at changes of names", *disks]
                found += at_changes + on_disks
            if name == "train":
                tried.append("a dead worker")
                found += try_worker(job, scratch, expected)
            if name == "caption":
                whole = scratch / "push-whole"
                whole.mkdir(exist_ok=True)
                run(jobs["push"], whole)
                on_the_way, cases = try_downloads(job, scratch, hub, expected, arguments.breaks)
                tried.append(f"{cases} ways of a broken Hub")
                found += on_the_way
            print(f"{name}: {seconds:.1f} s, {arguments.kills} kills, {', '.join(tried)}: {len(found)} problems")
            for problem in found:
                print(f"  {problem}")
            sys.stdout.flush()
            problems += found
    shutil.rmtree(scratch, ignore_errors=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
