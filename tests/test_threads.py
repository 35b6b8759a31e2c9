"""One captioner in many threads and processes: the results are the same as with one."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_gru_captioner import Captioner


def test_sixteen_threads_get_what_one_gets(checkpoint, make_photo):
    captioner = Captioner.from_pretrained(checkpoint)
    photos = [make_photo(seed, width=40 + seed) for seed in range(8)]
    ways = [{"num_beams": 3}, {"num_beams": 1}, {"num_beams": 2, "repetition_penalty": 1.5}]  # the last by generate()
    wishes = [(photo, way) for photo in photos for way in ways] * 4
    expected = [captioner(photo, **way) for photo, way in wishes[:24]] * 4
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda wish: captioner(wish[0], **wish[1]), wishes))
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)


def test_checkpoints_are_loaded_by_several_threads_at_once(checkpoint, photo):
    """transformers' own loading is not thread-safe."""
    with ThreadPoolExecutor(3) as threads:
        captioners = list(threads.map(lambda _: Captioner.from_pretrained(checkpoint, backend="torch"), range(9)))
    assert len({captioner(photo).text for captioner in captioners}) == 1
    assert Captioner.from_pretrained(checkpoint, backend="torch")(photo).text == captioners[0](photo).text


PROGRAM = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import torch
from hf_gru_captioner import Captioner
torch.set_num_threads(1)
captioner = Captioner.from_pretrained(sys.argv[2])

def caption(path):
    return captioner(path).text

if __name__ == "__main__":
    here = caption(sys.argv[3])
    with ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1])) as processes:
        assert list(processes.map(caption, [sys.argv[3]] * 4, timeout=60)) == [here] * 4
    print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_get_what_one_gets(checkpoint, photo, tmp_path, method):
    photo.save(tmp_path / "photo.png")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), method, str(checkpoint), str(tmp_path / "photo.png")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.stdout.splitlines()[-1:] == ["same"], process.stderr[-2000:]
