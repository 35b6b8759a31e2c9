"""Finds the generation settings that score best on validation photos, for the shipped generation_config.json.

python benchmarks/decoding_settings.py --data ../shared/flickr8k [--checkpoint FOLDER]
"""

import argparse
import itertools
import time

from hf_gru_captioner import Captioner, load_captions
from hf_gru_captioner.evaluation import score_captions

BATCH_SIZE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--checkpoint")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2, 3, 4, 5, 7])
    parser.add_argument("--length-penalties", type=float, nargs="+", default=[0.6, 0.8, 1.0, 1.2])
    parser.add_argument("--no-repeat-ngram-sizes", type=int, nargs="+", default=[0, 2, 3])
    arguments = parser.parse_args()
    captioner = Captioner.from_pretrained(arguments.checkpoint, num_threads=1)
    rows = load_captions(arguments.data, "validation")
    references = list(rows["captions"])
    encoded = [captioner.encode(rows[start : start + BATCH_SIZE]["image"]) for start in range(0, len(rows), BATCH_SIZE)]
    print("beams  length penalty  no repeat   CIDEr  BLEU-4  length ratio  ms a photo")
    for settings in itertools.product(arguments.beams, arguments.length_penalties, arguments.no_repeat_ngram_sizes):
        num_beams, length_penalty, no_repeat = settings
        if num_beams == 1 and length_penalty != arguments.length_penalties[0]:
            continue  # greedy search doesn't use it
        start = time.perf_counter()
        decoding = {"num_beams": num_beams, "no_repeat_ngram_size": no_repeat, "length_penalty": length_penalty}
        predictions = [caption.text for batch in encoded for (caption,) in captioner.decode(batch, **decoding)]
        milliseconds = (time.perf_counter() - start) / len(rows) * 1000
        scores = score_captions(
            predictions, references, metrics=("bleu", "cider"), tokenizer="simple", human=False, bootstrap=0
        )
        print(
            f"{num_beams:>5}  {length_penalty:>14.1f}  {no_repeat:>9}  {100 * scores.values['cider']:>6.1f}"
            f"  {100 * scores.values['bleu_4']:>6.1f}  {scores.length_ratio:>12.3f}  {milliseconds:>10.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
