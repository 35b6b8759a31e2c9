"""The demo as a Hugging Face Space: the page of `gru-captioner demo`, for the network."""

from pathlib import Path

from hf_gru_captioner.cli import main

CHECKPOINT = Path(__file__).parent / "checkpoint"  # beside it in a Space; in a clone, the package's own is taken

if __name__ == "__main__":
    main(["demo", *([str(CHECKPOINT)] if CHECKPOINT.is_dir() else []), "--host", "0.0.0.0"])
