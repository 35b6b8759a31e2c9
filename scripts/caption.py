"""Captions images: `python scripts/caption.py photo.jpg`."""

import sys

from hf_gru_captioner.cli import main

sys.exit(main(["caption", *sys.argv[1:]]))
