"""Which preprocessing suits photos that are not square: squashing, or center cropping?

    python benchmarks/photo_shape.py --data ../shared/flickr8k [--checkpoint FOLDER] [--photos 1000]

Flickr8k is available as 224x224 pictures, squashed from photos of mostly 4:3. They are stretched back to 4:3 (every
third one to 3:4, about the share of portrait photos), which restores their proportions, and then preprocessed either
way.
"""

import argparse

import torch
from PIL import Image

from hf_gru_captioner import Captioner, load_captions
from hf_gru_captioner.evaluation import score_captions


def unsquash(image: Image.Image, upright: bool) -> Image.Image:
    side = image.height
    longer = round(side * 4 / 3)
    return image.resize((side, longer) if upright else (longer, side), Image.Resampling.BICUBIC)


def center_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--photos", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    rows = load_captions(arguments.data, "validation")
    rows = rows.select(range(min(arguments.photos, len(rows))))
    references = list(rows["captions"])
    stretched = [unsquash(image, upright=index % 3 == 0) for index, image in enumerate(rows["image"])]
    preparations = {
        "as it is, 224x224": list(rows["image"]),
        "stretched, then squashed whole": stretched,
        "stretched, then its center square": [center_square(image) for image in stretched],
    }
    for name, images in preparations.items():
        predictions = [caption.text for caption in captioner(images, num_beams=3)]
        scores = score_captions(
            predictions, references, metrics=("cider", "bleu"), tokenizer="simple", human=False, bootstrap=1000
        )
        low, high = scores.intervals["cider"]
        values = scores.values
        print(
            f"{name:<36} CIDEr {100 * values['cider']:.1f} ({100 * low:.1f} to {100 * high:.1f}), "
            f"BLEU-4 {100 * values['bleu_4']:.1f}"
        )


if __name__ == "__main__":
    main()
