"""Decodes untrusted camera raw files in a separate process.

LibRaw reads some hundred formats, most of them reverse-engineered. If a file crashes it, only that process dies: one
photo is rejected, and the page keeps running. The process is this module, run with the path of a file; it loads it with
`load_image` as usual, and writes the photo to its standard output as JPEG.
"""

import io
import subprocess
import sys
from pathlib import Path

SECONDS = 20  # timeout per file
MAX_MEMORY = 2 << 30  # bytes of address space; 100 megapixels at half size need less
MAX_SIDE = 4096  # pixels of the returned photo


class UnreadableError(ValueError):
    """A raw file contains no photo, or it can't be decoded within the limits of time and memory."""


def preview_of(path: Path) -> bytes:
    """The largest preview in a raw file, upright, as JPEG; without a preview, the developed sensor data.

    Raises:
        UnreadableError: There is none.
    """
    try:
        finished = subprocess.run(
            [sys.executable, "-m", __name__, str(path)], capture_output=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnreadableError(f"{path.name} can't be read, it may be damaged.") from error
    return finished.stdout


def _main(path: str) -> None:
    from .model import load_image  # deferred: only needed in the subprocess

    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        for limit, most in (
            (resource.RLIMIT_AS, MAX_MEMORY),
            (resource.RLIMIT_CPU, SECONDS),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    image = load_image(Path(path))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95)
    sys.stdout.buffer.write(encoded.getvalue())


if __name__ == "__main__":
    _main(sys.argv[1])
