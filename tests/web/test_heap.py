import platform
import subprocess
import sys

import pytest

from hf_gru_captioner.web import heap

# Each of 16 threads that live at the same time frees all but little of its 10 MB.
WASTE = """
import ctypes, os, sys, tempfile, threading, time
from pathlib import Path
from hf_gru_captioner.untrusted_images import Limits
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import ServicePool, build_page, launch
from hf_gru_captioner.web.uploads import Uploads, _sweep_forever

def memory():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

def num_arenas():
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        file.seek(0)
        return file.read().count(b"<heap nr=")

def waste():
    photos = []
    for _ in range(100):
        photos.append(b"1" * 100_000)
        kept.append(b"1" * 1000)  # behind it; what is free at an end would be returned anyway
    together.wait()
    del photos[:]
    together.wait()

launch(build_page(ServicePool(["none"], lambda name: None), load_image), server_name="127.0.0.1")
kept, together = [], threading.Barrier(16)
before = memory()
threads = [threading.Thread(target=waste) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
wasted, arenas = memory() - before, num_arenas()
sweep = (Uploads(Path(tempfile.mkdtemp()), Limits(kept_seconds=0.1)),)
threading.Thread(target=_sweep_forever, args=sweep, daemon=True).start()
end = time.monotonic() + 30
while memory() - before > wasted / 4 and time.monotonic() < end:
    time.sleep(0.05)
print(arenas, wasted, memory() - before)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no arenas")
@pytest.mark.slow  # it imports all that the page needs
def test_what_many_threads_free_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", WASTE], capture_output=True, text=True, timeout=120)
    arenas, wasted, left = map(float, done.stdout.split())
    assert arenas <= heap.MAX_ARENAS + 2  # a thread of a library may have had one before
    assert wasted > 20
    assert left < wasted / 4


def test_where_the_c_library_has_no_such_call_nothing_is_done():
    assert heap._libc_function("no_such_call")(1, 2) == 0
