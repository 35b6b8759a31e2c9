import pytest
from huggingface_hub import ModelCard

from hf_gru_captioner.hub import write_model_index

CARD = "---\nlicense: apache-2.0\ntags: [image-captioning]\n---\n# A captioner\n\nIt captions.\n"


def test_scores_become_a_valid_model_index_and_the_rest_of_the_card_stays(tmp_path):
    card = tmp_path / "card.md"
    card.write_text(CARD)
    figures = {"cider": 0.5234, "bleu_4": 0.2111, "vocabulary": 400.0}
    location = {"dataset": "jxie/flickr8k", "split": "validation", "signature": "tok:ptb|refs:5.0"}
    for model_name in ("first", "second"):  # the second replaces the first
        write_model_index(card, figures, model_name=model_name, **location)
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


def test_a_folder_is_named_without_its_way(tmp_path):
    card = tmp_path / "card.md"
    card.write_text(CARD)
    write_model_index(card, {"cider": 1.0}, model_name="m", dataset="../shared/flickr8k", split="test", signature="s")
    (result,) = ModelCard.load(card).data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("flickr8k", "flickr8k")


def test_a_card_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"card\.md"):
        write_model_index(tmp_path / "card.md", {}, model_name="m", dataset="d", split="s", signature="s")
