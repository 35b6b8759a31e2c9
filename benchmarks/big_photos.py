"""Decoding big JPEGs at reduced size: the time it saves, and whether captions change.

    python benchmarks/big_photos.py ../shared/flickr8k [--photos 200]

Validation photos are enlarged to 12 megapixels, as from a phone, and captioned three times: decoded at full size and
then resized; as by `load_image(..., size=...)`; and, for comparison, decoded at full size after saving at JPEG quality
95 instead of 90, a negligible difference.
"""

import argparse
import io
import time

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image

from hf_gru_captioner import Captioner

SIZE = (4000, 3000)  # pixels


def saved(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    captioner = Captioner.from_pretrained()
    size = captioner.processor.image_size
    assert size is not None, "the shipped captioner resizes to a fixed size"

    def whole(content: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return image.resize(size, Image.Resampling.BICUBIC)

    ways = {
        "whole": (90, whole),
        "a fraction": (90, captioner.load_image),
        "whole, saved with quality 95": (95, whole),
    }
    seconds, differences, same = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    rows = load_dataset(arguments.data, split=f"validation[:{arguments.photos}]")
    for row in rows:
        image = row["image"].convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        loaded = {}
        for way, (quality, load) in ways.items():
            content = saved(image, quality)
            start = time.perf_counter()
            loaded[way] = load(content)
            seconds[way] += time.perf_counter() - start
        texts = [caption.text for caption in captioner(list(loaded.values()))]
        for way, text in zip(ways, texts, strict=True):
            gap = np.asarray(loaded[way], np.int16) - np.asarray(loaded["whole"], np.int16)
            differences[way] += np.abs(gap).mean()
            same[way] += text == texts[0]
    print(f"{len(rows)} photos of {SIZE[0]} x {SIZE[1]} pixels")
    for way in ways:
        print(
            f"{way:<30}{1000 * seconds[way] / len(rows):6.0f} ms, {differences[way] / len(rows):.2f} of 255 off, "
            f"{same[way]} captions the same"
        )


if __name__ == "__main__":
    main()
