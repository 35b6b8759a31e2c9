"""The whole life of a captioner in one script, each step a process of its own as a person would start it.

    make e2e

Photos are drawn, captions say what was drawn; so a captioner that learned nothing is noticed. Features, training that
is killed and goes on, self-critical training, scores, graphs, a push to a Hub on loopback, loading from there in a
clean process, a folder of photos captioned through a kill, the demo, a browser. Nothing leaves the machine.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loopback_hub import LoopbackHub

COLORS = {"red": (200, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
SHAPES = ("ball", "box")
PHOTOS = {"train": 160, "validation": 40}
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def draw(folder: Path, photos: dict[str, int] = PHOTOS) -> None:
    """Draws colored balls and boxes with two captions each, as an imagefolder."""
    from PIL import Image, ImageDraw

    chance = random.Random(0)
    for split, count in photos.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for number in range(count):
            color, shape = chance.choice(list(COLORS)), chance.choice(SHAPES)
            image = Image.new("RGB", (128, 96), tuple(chance.randrange(200, 256) for _ in range(3)))
            left, top, size = chance.randrange(10, 60), chance.randrange(5, 40), chance.randrange(30, 50)
            place = (left, top, left + size, top + size)
            pen = ImageDraw.Draw(image)
            (pen.ellipse if shape == "ball" else pen.rectangle)(place, fill=COLORS[color])
            image.save(folder / split / f"{number:03d}.jpg", quality=90)
            captions = [f"A {color} {shape} .", f"There is a {color} {shape} ."]
            lines.append(json.dumps({"file_name": f"{number:03d}.jpg", "captions": captions}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def make_encoder(folder: Path) -> None:
    import torch
    from transformers import AutoModel, TimmWrapperConfig

    torch.manual_seed(0)
    settings = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = TimmWrapperConfig(architecture="test_resnet", do_pooling=False, pretrained_cfg=settings)
    encoder = AutoModel.from_config(config)
    for module in encoder.modules():  # random weights need the statistics of their own outputs
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        encoder.train()(torch.randn(8, 3, 64, 64))
    encoder.eval().save_pretrained(folder)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hf_gru_captioner.cli", *map(str, arguments)]


def run(*arguments: object, code: int = 0, **environment: str) -> str:
    """Runs one of our commands and returns its output; an unexpected exit code ends the script."""
    say("gru-captioner " + " ".join(map(str, arguments))[:110])
    process = subprocess.run(
        command(*arguments), capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    if process.returncode != code or "Traceback" in process.stderr:
        sys.exit(f"exit code {process.returncode}, expected {code}:\n{process.stdout}\n{process.stderr}")
    return process.stdout


def kill_when(arguments: Sequence[object], is_time, **environment: str) -> None:
    """Starts a command and kills it with SIGKILL once it has reached a given point."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    deadline = time.monotonic() + 200
    while not is_time():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"it was over (exit code {process.poll()}) before it could be killed")
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    say("killed")


@contextmanager
def demo(checkpoint: Path) -> Iterator[str]:
    """Address of a running page."""
    port = 7000 + random.randrange(900)
    address = f"http://127.0.0.1:{port}/"
    process = subprocess.Popen(
        command("demo", checkpoint, "--port", port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(address, timeout=5):
                    break
            except OSError:
                if process.poll() is not None:
                    sys.exit("the demo did not start")
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def visit(address: str, photo: Path) -> str:
    """Uploads a photo in a browser; returns the displayed caption."""
    from playwright.sync_api import sync_playwright

    of_system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=of_system, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        page.set_input_files("#photo input[type=file]", photo)
        page.wait_for_selector("#viewer [data-word]")
        caption = " ".join(page.locator("#viewer [data-word]").all_inner_texts())
        browser.close()
    if errors:
        sys.exit(f"the page has errors: {errors}")
    return caption


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="gru-captioner-e2e-"))
    photos, runs = folder / "photos", folder / "runs"
    draw(photos)
    make_encoder(folder / "encoder")
    options = {
        "data.source": photos,
        "data.cache_folder": folder / "cache",
        "tokenizer.min_count": 1,
        "model.encoder": folder / "encoder",
        "model.image_size": 64,
        "model.hidden_size": 64,
        "model.embedding_size": 32,
        "optimization.epochs": 12,
        "optimization.images_per_step": 16,
        "optimization.learning_rate": 1e-2,
        "optimization.state_steps": 5,
        "validation.num_beams": 2,
        "validation.max_new_tokens": 9,
        "output_dir": runs / "one",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    run("features", *arguments)
    states = runs / "one" / "state"
    kill_when(["train", *arguments], lambda: states.is_dir() and len(list(states.glob("step-*"))) > 1)
    run("train", *arguments)
    scst = {
        **options,
        "objective": "self_critical",
        "model.checkpoint": runs / "one" / "checkpoint",
        "optimization.epochs": 1,
        "optimization.learning_rate": 1e-4,
        "output_dir": runs / "two",
    }
    run("train", *[f"--{name}={value}" for name, value in scst.items()])
    checkpoint = runs / "two" / "checkpoint"
    scored = run("score", "--data", photos, "--checkpoint", checkpoint, "--keep", "--output", folder / "score")
    cider = json.loads((folder / "score" / "metrics.json").read_text())["systems"]["checkpoint"]["values"]["cider"]
    say(f"CIDEr {100 * cider:.1f}")
    if not cider > 1:  # of 10; a captioner that looks at nothing has about 0.3
        sys.exit(f"it has learned nothing:\n{scored}")
    run("export", checkpoint)

    with LoopbackHub() as hub:
        online = {**hub.environment(), "HF_HOME": str(folder / "home")}
        run("push", checkpoint, "me/captioner", "--license", "mit", **online)
        plain = (
            "import sys, json; from transformers import pipeline\n"
            "captioner = pipeline(model='me/captioner', trust_remote_code=True)\n"
            "assert not [name for name in sys.modules if name.split('.')[0] == 'hf_gru_captioner']\n"
            "print(json.dumps(captioner(sys.argv[1])[0]['generated_text']))"
        )
        photo = photos / "validation" / "000.jpg"
        say("pipeline(model='me/captioner', trust_remote_code=True) in a clean process")
        process = subprocess.run(
            [sys.executable, "-c", plain, str(photo)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, **online},
        )
        if process.returncode:
            sys.exit(process.stderr)
        of_pipeline = json.loads(process.stdout.splitlines()[-1])

    captioning = ["caption", photos / "validation", photos / "train", "--checkpoint", checkpoint, "--batch-size", 4]
    whole, torn = folder / "whole.jsonl", folder / "torn.jsonl"
    run(*captioning, "--output", whole)
    part = torn.with_name(torn.name + ".part-0")
    graphs = ["--backend", "onnxruntime"]
    kill_when([*captioning, *graphs, "--output", torn], lambda: part.exists() and part.stat().st_size > 2000)
    run(*captioning, *graphs, "--output", torn)
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole, torn)]
    captions = [{line["path"]: line["caption"] for line in each} for each in lines]
    if captions[0] != captions[1] or len(lines[1]) != sum(PHOTOS.values()):
        sys.exit("the graphs, through a kill, wrote other captions than the model")
    if captions[0][str(photo)] != of_pipeline:
        sys.exit(f"the pipeline says {of_pipeline!r}, the command line {captions[0][str(photo)]!r}")
    with demo(checkpoint) as address:
        say(f"a browser visits {address}")
        seen = visit(address, photo)
    if seen != of_pipeline:
        sys.exit(f"the page says {seen!r}, the command line {of_pipeline!r}")
    shutil.rmtree(folder)
    say(f"all is well: {seen!r}")


if __name__ == "__main__":
    main()
