"""The COCO annotation parser, through both of its users: training data and references."""

import json

import pytest

from hf_gru_captioner.coco import Annotations, parse_annotations
from hf_gru_captioner.data.caption_files import read_caption_file
from hf_gru_captioner.evaluation.coco import read_coco_annotations

DOG, CAT = {"id": 42, "file_name": "a.jpg"}, {"id": "7", "file_name": "b.jpg"}


def row(image_id, caption="a dog"):
    return {"image_id": image_id, "caption": caption}


def test_captions_are_joined_to_images_whose_ids_are_text_or_numbers():
    content = {"images": [DOG, CAT], "annotations": [row(7, "a cat"), row(42), row("42", None), row(9, " Hi ")]}
    assert parse_annotations("x", content) == Annotations(
        {"42": DOG, "7": CAT}, {"42": ["a dog"], "7": ["a cat"], "9": [" Hi "]}
    )


FAULTS = {
    "a caption of another type": ({"annotations": [row(42, 5)]}, 'row 1 needs an "image_id" (number or text) and a'),
    "a row without an id": ({"annotations": [row(42), {"caption": "x"}]}, 'row 2 needs an "image_id" (number'),
    "an image without an id": ({"images": [DOG, {"file_name": "b.jpg"}]}, 'image 2 needs an "id", found {"file_name"'),
    "images that are not a list": ({"images": {"a": 1}}, '"images" is not a list, found {"a": 1}.'),
    "no captions": ({"annotations": []}, "has no captions."),
    "objects": ({"annotations": [{"image_id": 42, "bbox": []}]}, "captions are in captions_*.json, not in instances_*"),
    "a long caption": ({"annotations": [row(42, "x" * 10_001)]}, "row 1 has a caption of 10,001 characters, more than"),
    "half of a character": ({"annotations": [row(42, "\ud83d")]}, "'\\ud83d' contains half of a surrogate pair."),
}


@pytest.mark.parametrize("read", [read_caption_file, read_coco_annotations])
@pytest.mark.parametrize("fault", FAULTS)
def test_training_and_scoring_refuse_a_broken_file_with_the_same_words(tmp_path, read, fault):
    changes, message = FAULTS[fault]
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"images": [DOG, CAT], "annotations": [row(42)], **changes}))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        read(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
