"""Publishes a checkpoint: `python scripts/push_to_hub.py runs/flickr8k/checkpoint user/name`."""

import sys

from hf_gru_captioner.cli import main

sys.exit(main(["push", *sys.argv[1:]]))
