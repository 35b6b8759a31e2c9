"""Trains a captioner: `accelerate launch scripts/train.py --config configs/flickr8k.yaml`."""

import sys

from hf_gru_captioner.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
