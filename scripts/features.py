"""Encodes images ahead of training: `accelerate launch scripts/features.py --config configs/flickr8k.yaml`."""

import sys

from hf_gru_captioner.cli import main

sys.exit(main(["features", *sys.argv[1:]]))
