"""Training a captioner on few images: plain `gru-captioner train` on subsets of three domains.

    python benchmarks/few_shot.py runs/few-shot --sources jxie/flickr8k --sizes 50 100 300

`products` are drawn here, each with a name, a color, a size and a background, and one caption per image. Test images
show combinations that no training image shows; a caption is right if all four attributes are. The other domains are
subsets of datasets with up to five captions per image, scored by CIDEr. Each run is one command in a separate process,
as typed by a user.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

COLORS = {
    "red": (200, 40, 40),
    "blue": (40, 70, 200),
    "green": (40, 150, 60),
    "yellow": (230, 200, 40),
    "black": (30, 30, 30),
    "purple": (130, 50, 160),
}
BACKGROUNDS = {"white": (240, 240, 240), "grey": (140, 140, 140), "wooden": (150, 105, 60)}
SIZES = {"small": 0.28, "large": 0.72}  # height, as a share of the image
NAMES = ("bottle", "lamp", "cup", "box", "ball", "chair")
SIDE = 320  # pixels


def products() -> list[tuple[str, str, str, str]]:
    """All combinations of size, color, name and background, shuffled."""
    all_of_them = [
        (size, color, name, background)
        for size in SIZES
        for color in COLORS
        for name in NAMES
        for background in BACKGROUNDS
    ]
    random.Random(0).shuffle(all_of_them)
    return all_of_them


def caption_of(product: tuple[str, str, str, str]) -> str:
    size, color, name, background = product
    return f"a {size} {color} {name} on a {background} background"


def draw(product: tuple[str, str, str, str], seed: int) -> Image.Image:
    """A picture of a product, with random position, tilt, brightness and grain for each seed."""
    size, color, name, background = product
    chance = random.Random(seed)
    ground = BACKGROUNDS[background]
    image = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(image)
    if background == "wooden":
        for y in range(0, SIDE, 20):
            shade = chance.randint(-18, 18)
            pen.rectangle((0, y, SIDE, y + 20), fill=tuple(channel + shade for channel in ground))
    height = int(SIDE * SIZES[size] * chance.uniform(0.9, 1.1))
    sprite = Image.new("RGBA", (SIDE, SIDE))
    _shape(ImageDraw.Draw(sprite), name, height, COLORS[color])
    sprite = sprite.rotate(chance.uniform(-8, 8), resample=Image.Resampling.BICUBIC)
    slack = (SIDE - height) // 3
    image.paste(sprite, (chance.randint(-slack, slack), chance.randint(-slack, slack)), sprite)
    grain = Image.effect_noise((SIDE, SIDE), 40).convert("RGB")
    image = Image.blend(image, grain, 0.08).filter(ImageFilter.GaussianBlur(chance.uniform(0, 1)))
    light = chance.uniform(0.8, 1.1)
    return image.point([min(255, int(value * light)) for value in range(256)] * 3)


def _shape(pen: ImageDraw.ImageDraw, name: str, height: int, color: tuple[int, int, int]) -> None:
    """Draws a shape of 10 by 10 units in the center."""
    corner, unit = SIDE / 2 - height / 2, height / 10

    def at(*units: float) -> list[float]:
        return [corner + unit * each for each in units]

    if name == "bottle":
        pen.rectangle(at(3, 3.5, 7, 10), color)
        pen.rectangle(at(4.3, 0, 5.7, 4), color)
    elif name == "lamp":
        pen.polygon(at(3, 0, 7, 0, 9, 4, 1, 4), color)
        pen.rectangle(at(4.7, 4, 5.3, 9), color)
        pen.rectangle(at(3, 9, 7, 10), color)
    elif name == "cup":
        pen.rectangle(at(1.5, 2, 7, 9), color)
        pen.arc(at(5.5, 3, 9.5, 7.5), -90, 90, color, int(unit) + 1)
    elif name == "box":
        pen.rectangle(at(0.5, 2.5, 9.5, 8.5), color)
        pen.line(at(0.5, 4, 9.5, 4), tuple(channel // 2 for channel in color), 3)
    elif name == "ball":
        pen.ellipse(at(0, 0, 10, 10), color)
    elif name == "chair":
        pen.rectangle(at(2, 0, 3, 10), color)
        pen.rectangle(at(2, 5, 8, 6), color)
        pen.rectangle(at(7, 5, 8, 10), color)


def write_products(folder: Path, number: int, num_test: int = 60) -> tuple[Path, Path]:
    """Writes `number` training images, and test images of other products; returns their CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    all_of_them = products()
    tables = []
    for split, chosen in (("test", all_of_them[:num_test]), ("train", all_of_them[num_test:])):
        rows = ["image,caption"]
        wanted = num_test if split == "test" else number
        for index in range(wanted):
            product = chosen[index % len(chosen)]
            draw(product, seed=index + 1000 * (split == "test")).save(folder / f"{split}-{index:04d}.jpg", quality=90)
            rows.append(f"{split}-{index:04d}.jpg,{caption_of(product)}")
        table = folder / f"{split}.csv"
        table.write_text("\n".join(rows) + "\n")
        tables.append(table)
    return tables[1], tables[0]


def write_subset(source: str, folder: Path, number: int) -> Path:
    """Writes random images from a dataset's training split to a folder with metadata; returns the folder."""
    from hf_gru_captioner.data import decode_images, load_captions

    folder.mkdir(parents=True, exist_ok=True)
    rows = load_captions(source, "train").shuffle(seed=0).select(range(number))
    lines = []
    for index in range(number):
        decode_images(rows, [index])[0].convert("RGB").save(folder / f"{index:04d}.jpg", quality=92)
        lines.append(json.dumps({"file_name": f"{index:04d}.jpg", "captions": rows[index]["captions"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def train(source: Path, output: Path, options: list[str]) -> float:
    """Runs the plain command; returns minutes."""
    command = [
        sys.executable,
        "-m",
        "hf_gru_captioner.cli",
        "train",
        str(source),
        "--output-dir",
        str(output),
        *options,
    ]
    start = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=(output.parent / f"{output.name}.log").open("w"), stderr=subprocess.STDOUT
    )
    return (time.perf_counter() - start) / 60


def share_right(checkpoint: Path, table: Path) -> tuple[int, int]:
    """The number of correct captions of test products, and the number of all."""
    from hf_gru_captioner import Captioner

    names, captions = zip(*(line.split(",") for line in table.read_text().splitlines()[1:]), strict=True)
    written = Captioner.from_pretrained(checkpoint)([str(table.parent / name) for name in names])
    return sum(each.text == caption for each, caption in zip(written, captions, strict=True)), len(names)


def cider(checkpoint: Path, source: str, num_images: int) -> str:
    """CIDEr on a dataset's validation split, with its 95 % interval."""
    from hf_gru_captioner import Captioner
    from hf_gru_captioner.data import decode_images, load_captions
    from hf_gru_captioner.evaluation import score_captions

    rows = load_captions(source, "validation")
    rows = rows.select(range(min(num_images, len(rows))))
    captioner = Captioner.from_pretrained(checkpoint)
    written = [
        caption.text
        for start in range(0, len(rows), 32)
        for caption in captioner(decode_images(rows, range(start, min(start + 32, len(rows)))))
    ]
    scores = score_captions(written, list(rows["captions"]), metrics=("cider",), tokenizer="simple", human=False)
    low, high = scores.intervals["cider"]
    return f"{100 * scores.values['cider']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the images and runs")
    parser.add_argument("--products", type=int, nargs="*", default=[50, 100, 180], help="numbers of training images")
    parser.add_argument("--sizes", type=int, nargs="*", default=[50, 100, 300, 1000], help="for the other domains")
    parser.add_argument("--sources", nargs="*", default=[], help="datasets: Hub ids or folders")
    parser.add_argument("--validation-images", type=int, default=200, help="for each of these")
    parser.add_argument("options", nargs="*", help="options of gru-captioner train, after --")
    arguments = parser.parse_args()
    print("| domain | images | minutes | result on unseen images |\n|---|---|---|---|", flush=True)
    for number in arguments.products:
        table, test = write_products(arguments.output / f"products-{number}-images", number)
        run = arguments.output / f"products-{number}"
        minutes = train(table, run, arguments.options)
        right, of = share_right(run / "checkpoint", test)
        print(f"| products, drawn | {number} | {minutes:.1f} | {right} of {of} wholly right |", flush=True)
    for source in arguments.sources:
        name = Path(source).name
        for number in arguments.sizes:
            folder = write_subset(source, arguments.output / f"{name}-{number}-images", number)
            run = arguments.output / f"{name}-{number}"
            minutes = train(folder, run, arguments.options)
            result = cider(run / "checkpoint", source, arguments.validation_images)
            print(f"| {name} | {number} | {minutes:.1f} | CIDEr {result} |", flush=True)


if __name__ == "__main__":
    main()
