"""Checkpoints load through transformers' auto classes in a process without this package."""

import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.captioner import SHIPPED_CHECKPOINT

MODEL_ROOM = SHIPPED_CHECKPOINT.parent / "model"

EVERY_DOOR = """
import json
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import pipeline
folder, photo, resaved = sys.argv[1:]
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "gru_captioner"
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
captions = []
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    model = auto_class.from_pretrained(folder, trust_remote_code=True, dtype="float32")
    captions += processor.batch_decode(model.generate(**processor(images=photo)))
model.save_pretrained(resaved)
processor.save_pretrained(resaved)
again = AutoModel.from_pretrained(resaved, trust_remote_code=True)
captions += processor.batch_decode(again.generate(**processor(images=photo)))
for task in ((), ("image-to-text",)):
    captioner = pipeline(*task, model=resaved, trust_remote_code=True, dtype="float32")
    (one,), *both = captioner(photo), *captioner([photo, photo], batch_size=2)
    captions += [one["generated_text"], *(each["generated_text"] for (each,) in both)]
begun = captioner(photo, text="a", num_beams=3, num_return_sequences=2)
assert len({each["generated_text"] for each in begun}) == 2, begun
assert all(each["generated_text"].startswith("a") for each in begun), begun
captioner.save_pretrained(resaved + "-again")
captioner = pipeline("image-text-to-text", model=resaved + "-again", trust_remote_code=True, dtype="float32")
length = model.generation_config.max_new_tokens  # before 5.20 this pipeline has a length of its own
captions += [captioner(photo, text="", max_new_tokens=length)[0]["generated_text"]]
print(json.dumps(captions))
"""


@pytest.mark.parametrize("which", ["saved", "shipped"])
def test_a_process_without_our_package_writes_the_same_captions(which, checkpoint, photo, tmp_path, run_plainly):
    folder = checkpoint if which == "saved" else SHIPPED_CHECKPOINT
    photo.save(tmp_path / "photo.png")
    captions = run_plainly(EVERY_DOOR, folder, tmp_path / "photo.png", tmp_path / "resaved")
    assert captions == [Captioner.from_pretrained(folder)(tmp_path / "photo.png").text] * 11


def test_the_code_that_a_checkpoint_carries_is_the_packages_own(checkpoint):
    for folder in (checkpoint, SHIPPED_CHECKPOINT):
        carried = {path.name: path.read_bytes() for path in folder.glob("*.py")}
        own = {path.name: path.read_bytes() for path in MODEL_ROOM.glob("*_gru_captioner.py")}
        assert carried == own
