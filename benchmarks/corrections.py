"""Correct 50 captions on the page, train on them, caption the next 1,000: how much they improve.

    python benchmarks/corrections.py runs/corrections
    python benchmarks/corrections.py runs/corrections-mine --source my/captions.csv

The pictures are the drawn products of few_shot.py, which the shipped checkpoint does not know; the next ones show
products that are not among the corrected ones. Alternatively they come from a source, whose captions stand in for a
person's. The file of corrections is made by the function behind the page's "Train on my corrections", and the command
is the one that the page then shows, plus any further options of `gru-captioner train`.
"""

import argparse
import html
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from few_shot import caption_of, draw, products
from PIL import Image

from hf_gru_captioner import Captioner
from hf_gru_captioner.evaluation import score_captions
from hf_gru_captioner.web import batch

NEXT_PRODUCTS = 60  # of 216; the others are corrected
AT_ONCE = 32  # pictures in memory

Picture = tuple[Path, list[str]]  # and its captions


def drawn(folder: Path, kind: str, number: int) -> list[Picture]:
    """Draws products: `corrected` ones, or others, `next`."""
    chosen = products()[NEXT_PRODUCTS:] if kind == "corrected" else products()[:NEXT_PRODUCTS]
    pictures = []
    for index in range(number):
        product = chosen[index % len(chosen)]
        path = folder / f"{index:04d}.jpg"
        draw(product, seed=index + 100_000 * (kind == "next")).save(path, quality=90)
        pictures.append((path, [caption_of(product)]))
    return pictures


def taken(source: str, folder: Path, kind: str, number: int) -> list[Picture]:
    """Takes images from a source: from its training split to correct, from its validation split as the next."""
    from hf_gru_captioner.data import decode_images, load_captions

    rows = load_captions(source, "train" if kind == "corrected" else "validation").shuffle(seed=0)
    rows = rows.select(range(min(number, len(rows))))
    pictures = []
    for index in range(len(rows)):
        path = folder / f"{index:04d}.jpg"
        decode_images(rows, [index])[0].convert("RGB").save(path, quality=92)
        pictures.append((path, rows[index]["captions"]))
    return pictures


def shown_command(corrections: Path, photos: Path, output: Path) -> list[str]:
    """The command shown by the page, with these files."""
    page = (Path(batch.__file__).parent / "review.html").read_text()
    (shown,) = re.findall(r'data-part="command">(.*?)</pre>', page, re.DOTALL)
    shown = html.unescape(shown)
    in_place = {
        '<span data-part="weights"></span>': "",
        "corrections.jsonl": corrections,
        "PHOTOS": photos,
        "runs/corrected": output,
    }
    for word, text in in_place.items():
        if word not in shown:
            raise SystemExit(f"{word} is no longer in the command of review.html: {shown}")
        shown = shown.replace(word, shlex.quote(str(text)) if text else "")
    program, *arguments = shlex.split(shown)
    assert program == "gru-captioner", shown
    return [sys.executable, "-m", "hf_gru_captioner.cli", *arguments]


def score(checkpoint: Path | None, pictures: list[Picture]) -> str:
    """CIDEr with its 95 % interval, and the number of captions that match a reference word for word."""
    captioner = Captioner.from_pretrained(checkpoint)
    written = []
    for start in range(0, len(pictures), AT_ONCE):
        images = [Image.open(path) for path, _ in pictures[start : start + AT_ONCE]]
        written += [caption.text for caption in captioner(images)]
    captions = [captions for _, captions in pictures]
    scores = score_captions(written, captions, metrics=("cider",), tokenizer="simple", human=False)
    low, high = scores.intervals["cider"]
    right = sum(text in own for text, own in zip(written, captions, strict=True))
    return f"{100 * scores.values['cider']:.1f} ({100 * low:.1f} to {100 * high:.1f}) | {right} of {len(pictures)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="new folder for the pictures, the corrections and the run")
    parser.add_argument("--source", help="dataset (folder, file or Hub id) to use instead of the drawn products")
    parser.add_argument("--corrected", type=int, default=50, help="pictures to correct (%(default)s)")
    parser.add_argument("--next", type=int, default=1000, help="pictures to score on (%(default)s)")
    arguments, options = parser.parse_known_args()
    output = arguments.output.resolve()
    pictures = {}
    for kind, number in (("corrected", arguments.corrected), ("next", arguments.next)):
        folder = output / kind
        folder.mkdir(parents=True)
        pictures[kind] = (
            taken(arguments.source, folder, kind, number) if arguments.source else drawn(folder, kind, number)
        )
    print("| | CIDEr on the next (95 % interval) | word for word | minutes |\n|---|---|---|---|", flush=True)
    print(f"| as shipped | {score(None, pictures['next'])} | |", flush=True)
    rows = [batch.Reviewed(path.name, captions[0], True) for path, captions in pictures["corrected"]]
    name, content = batch.saved("corrections", rows)
    (output / name).write_bytes(content)
    command = shown_command(output / name, output / "corrected", output / "run")
    start = time.perf_counter()
    with (output / "train.log").open("w") as log:
        subprocess.run([*command, *options], check=True, stdout=log, stderr=subprocess.STDOUT)
    minutes = (time.perf_counter() - start) / 60
    after = score(output / "run" / "checkpoint", pictures["next"])
    print(f"| trained on {len(rows)} corrected ones | {after} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
