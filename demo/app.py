"""The demo as a Hugging Face Space: the page of `gru-captioner demo`, for the network."""

from pathlib import Path

from hf_gru_captioner.cli import main

HERE = Path(__file__).parent
checkpoint = [str(HERE / "checkpoint")] if (HERE / "checkpoint").is_dir() else []
photos = sorted(str(path) for path in (HERE / "examples").glob("*.jpg"))

if __name__ == "__main__":
    main(["demo", *checkpoint, "--host", "0.0.0.0", *(["--photos", *photos] if photos else [])])
