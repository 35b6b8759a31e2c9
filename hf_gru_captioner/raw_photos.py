"""Raw files of strangers' cameras: their preview is found by a process of its own.

LibRaw reads some hundred formats, most of them found out by trial. What a file may do to it, it does to a process that
ends with it: one photo is refused, and the page goes on. That process is this module, run with the path of a file; it
loads it as any other caller of `load_image`, and writes the photo to its standard output, as JPEG.
"""

import io
import subprocess
import sys
from pathlib import Path

SECONDS = 20  # that a file may take
MAX_MEMORY = 2 << 30  # bytes of addresses; half the size of a sensor of 100 million pixels takes less
MAX_SIDE = 4096  # pixels of the photo that comes back


class UnreadableError(ValueError):
    """There is no photo in a raw file, or it can't be found in time and memory."""


def preview_of(path: Path) -> bytes:
    """The largest preview in a raw file, upright, as JPEG; where there is none, its sensor's pixels.

    Raises:
        UnreadableError: There is none.
    """
    try:
        found = subprocess.run(
            [sys.executable, "-m", __name__, str(path)], capture_output=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UnreadableError(f"{path.name} can't be read, it may be damaged.") from error
    return found.stdout


def _main(path: str) -> None:
    from .model import load_image  # here: whoever asks for a preview has loaded it long since

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
