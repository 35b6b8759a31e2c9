import os
from pathlib import Path

import pytest
import torch

from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.labelling.cleaning import Cleaner
from hf_gru_captioner.labelling.run import label_photos
from hf_gru_captioner.labelling.teacher import Draft
from hf_gru_captioner.library.caption_file import photo_version


class Reciter:
    """A teacher that writes photos' names and sizes, and runs out of memory beyond a batch size."""

    name, revision, prompt, side = "reciter", "1", None, 20

    def __init__(self, memory: int = 100):
        self.memory, self.batches = memory, []

    def write(self, images, names, num_captions):
        if len(images) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(images))
        return [
            [Draft(f"there is {Path(name).stem} {image.size} {number}.", number > 0) for number in range(num_captions)]
            for image, name in zip(images, names, strict=True)
        ]


@pytest.fixture
def photos(make_photo, tmp_path):
    for number, name in enumerate("abcde"):
        make_photo(number, 40, 30).save(tmp_path / f"{name}.png")
    return [str(tmp_path / f"{name}.png") for name in "abcde"]


def test_photos_come_in_order_small_enough_for_the_teacher_and_cleaned(photos):
    cleaner = Cleaner()
    labelled = list(label_photos(Reciter(), photos, cleaner, num_captions=2, batch_size=2))
    assert [each.photo for each in labelled] == photos
    assert [each.captions for each in labelled] == [(f"{name} (20, 15) 0", f"{name} (20, 15) 1") for name in "abcde"]
    assert [each.version for each in labelled] == [photo_version(photo) for photo in photos]
    assert {each.num_cut for each in labelled} == {1}
    assert cleaner.counts["there is"] == 10


def test_a_photo_that_cannot_be_read_is_told_and_the_others_go_on(photos, tmp_path):
    (tmp_path / "c.png").write_bytes(b"damaged")
    (tmp_path / "d.png").unlink()
    named_badly = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    os.rename(photos[4], named_badly)
    teacher = Reciter()
    labelled = list(label_photos(teacher, [*photos[:4], named_badly], Cleaner(), batch_size=5))
    assert [bool(each.captions) for each in labelled] == [True, True, False, False, False]
    assert teacher.batches == [2]
    for each, problem in zip(labelled[2:], ("not an image", "no such file", "is not valid UTF-8"), strict=True):
        assert problem in each.problem
    assert "\udcff" not in labelled[4].problem


def test_a_caption_of_which_nothing_is_left_is_told(photos):
    class Silent(Reciter):
        def write(self, images, names, num_captions):
            return [[Draft("...")] for _ in images]

    (labelled,) = label_photos(Silent(), photos[:1], Cleaner())
    assert labelled.captions == ()
    assert "wrote no usable caption ('...')" in labelled.problem


def test_a_batch_that_memory_does_not_suffice_for_is_halved(photos):
    teacher = Reciter(memory=2)
    assert len(list(label_photos(teacher, photos, Cleaner(), batch_size=5))) == 5
    assert teacher.batches == [2, 1, 2]
    with pytest.raises(UsageError, match="memory doesn't suffice for one photo"):
        list(label_photos(Reciter(memory=0), photos, Cleaner()))
