"""What the page says of a checkpoint."""

import json

import pytest

from hf_gru_captioner.hub import about_checkpoint


@pytest.fixture
def about(tmp_path):
    """Sources of each training stage -> what is said of the checkpoint."""

    def about(*stages, images=1234, terms="cc-by-4.0"):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 1004, "license": terms}))
        record = {"stages": [{"options": {"data.source": source}, "images": images} for source in stages]}
        (tmp_path / "training.json").write_text(json.dumps(record))
        return about_checkpoint(tmp_path, "mine")

    return about


LIMITS = (
    "It is meant for photos like these, can be wrong, and does not identify people. License of its weights: cc-by-4.0."
)


@pytest.mark.parametrize(
    ("stages", "learned"),
    [
        ([], ""),
        (["flickr8k"], ", learned from 1,234 photos of Flickr8k"),
        (["a/b", [{"path": "a/b"}, {"path": "c/d"}]], ", learned from 1,234 photos of a/b, c/d"),
        (["flickr8k", [{"path": "borrowed"}]], ", learned from 1,234 photos, including those of Flickr8k"),
        (["captioned", "borrowed-more"], ", learned from 1,234 photos"),
    ],
)
def test_only_sources_that_readers_can_know_are_named(about, stages, learned):
    assert about(*stages) == f"The model *mine* knows 1,000 words{learned}. {LIMITS}"


def test_of_a_stream_no_number_is_known_and_terms_are_explained(about):
    said = about("a/b", images=None, terms="cc-by-nc-4.0")
    assert ", learned from photos of a/b. " in said
    assert said.endswith("License of its weights: cc-by-nc-4.0 (not for commercial use).")


def test_damaged_records_are_said(about, tmp_path):
    about("a/b")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        about_checkpoint(tmp_path, "mine")
