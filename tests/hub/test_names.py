import json

from hf_gru_captioner.hub.names import source_names, with_public_names


def test_sources_of_a_run_have_public_names(tmp_path):
    (tmp_path / "mine").mkdir()
    sources = [
        {"path": "jxie/flickr8k", "images": None, "repeat": 1.0},
        {"path": str(tmp_path / "mine"), "images": "/home/somebody/photos", "repeat": 2.0},
    ]
    record = {"stages": [{"options": {"data.source": sources, "objective": "cross_entropy"}}]}
    renamed = json.loads(with_public_names(json.dumps(record).encode()))["stages"][0]["options"]
    assert renamed["data.source"] == [
        {"path": "jxie/flickr8k", "images": None, "repeat": 1.0},
        {"path": "mine", "images": "photos", "repeat": 2.0},
    ]
    assert source_names(sources) == ["jxie/flickr8k", "mine"]
    assert source_names("jxie/flickr8k") == ["jxie/flickr8k"]
