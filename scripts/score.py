"""Scores captions: `accelerate launch scripts/score.py --data jxie/flickr8k`."""

import sys

from hf_gru_captioner.cli import main

sys.exit(main(["score", *sys.argv[1:]]))
