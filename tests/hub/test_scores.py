import pytest
from huggingface_hub import ModelCard

from hf_gru_captioner.hub import eval_results, keep_scores, read_scores, write_model_index

CARD = "---\nlicense: apache-2.0\ntags: [image-captioning]\n---\n# A captioner\n\nIt captions.\n"
LOCATION = {"dataset": "jxie/flickr8k", "split": "validation", "signature": "tok:ptb|refs:5.0"}


def test_scores_become_a_valid_model_index_and_the_rest_of_the_card_stays(tmp_path):
    card = tmp_path / "card.md"
    card.write_text(CARD)
    values = {"cider": 0.5234, "bleu_4": 0.2111, "vocabulary": 400.0}
    for model_name in ("first", "second"):  # the second replaces the first
        write_model_index(card, model_name, eval_results(values, **LOCATION))
    read = ModelCard.load(card)
    assert read.data.license == "apache-2.0"
    assert read.text.strip() == "# A captioner\n\nIt captions."
    assert read.data.model_name == "second"
    results = {result.metric_name: result for result in read.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"CIDEr": 52.3, "BLEU-4": 21.1}
    assert results["CIDEr"].dataset_type == "jxie/flickr8k"
    assert results["CIDEr"].dataset_split == "validation"
    assert results["CIDEr"].metric_args == {"signature": "tok:ptb|refs:5.0"}
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_a_folder_is_named_without_its_path():
    (result,) = eval_results({"cider": 1.0}, **{**LOCATION, "dataset": "../shared/flickr8k"})
    assert (result.dataset_type, result.dataset_name) == ("flickr8k", "flickr8k")


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"card\.md"):
        write_model_index(tmp_path / "card.md", "m", [])


def test_scores_of_a_kind_replace_older_ones_and_those_of_other_weights_are_forgotten(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"first")
    assert read_scores(tmp_path) == []
    kind = {"data": "flickr8k", "split": "validation", "settings": "tok:ptb", "decoding": "num_beams:5"}
    keep_scores(tmp_path, {**kind, "values": {"cider": 0.5}})
    keep_scores(tmp_path, {**kind, "decoding": "num_beams:1", "values": {"cider": 0.4}})
    keep_scores(tmp_path, {**kind, "values": {"cider": 0.6}})
    found = {each["decoding"]: each["values"]["cider"] for each in read_scores(tmp_path)}
    assert found == {"num_beams:1": 0.4, "num_beams:5": 0.6}
    weights.write_bytes(b"second")
    assert read_scores(tmp_path) == []
    keep_scores(tmp_path, {**kind, "values": {"cider": 0.7}})
    assert len(read_scores(tmp_path)) == 1
