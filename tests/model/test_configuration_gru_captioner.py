from pathlib import Path

import pytest

from hf_gru_captioner.model import GRUCaptionerConfig


def test_a_configuration_survives_the_way_to_disk_and_back(tmp_path):
    config = GRUCaptionerConfig(encoder_config={"model_type": "vit", "hidden_size": 48}, vocab_size=77, dropout=0)
    config.save_pretrained(tmp_path)
    loaded = GRUCaptionerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.encoder_config.hidden_size == 48
    assert loaded.vocab_size == 77


def test_the_start_token_opens_decoding_unless_told_otherwise():
    assert GRUCaptionerConfig(bos_token_id=5).decoder_start_token_id == 5
    assert GRUCaptionerConfig(decoder_start_token_id=7).decoder_start_token_id == 7


def test_the_default_pad_token_is_not_zero():
    assert GRUCaptionerConfig().pad_token_id != 0


def test_several_tokens_may_end_a_caption(tmp_path):
    GRUCaptionerConfig(eos_token_id=[2, 5]).save_pretrained(tmp_path)
    assert GRUCaptionerConfig.from_pretrained(tmp_path).eos_token_ids == [2, 5]
    assert GRUCaptionerConfig().eos_token_ids == [2]


def test_what_was_set_to_nonsense_later_is_not_saved(tmp_path):
    config = GRUCaptionerConfig()
    config.hidden_size = 0
    with pytest.raises(ValueError, match="hidden_size must be at least 1"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_release_of_transformers_that_is_too_old_is_named(tmp_path, run_plainly):
    (tmp_path / "transformers.py").write_text("__version__ = '4.57.6'\n")
    code = """
import importlib.util, json
spec = importlib.util.spec_from_file_location("configuration", sys.argv[1])
try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
except ImportError as error:
    print(json.dumps(str(error)))
"""
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"
    path = Path(__file__).parents[2] / "hf_gru_captioner" / "model" / "configuration_gru_captioner.py"
    said = "this captioner needs transformers 5.0 or newer, found 4.57.6: pip install --upgrade transformers"
    assert run_plainly(code, path) == said


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"hidden_size": 500, "num_attention_heads": 8}, "take 10 heads"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, found 0"),
        ({"dropout": 1.0}, r"probability in \[0, 1\), found 1.0"),
        ({"pad_token_id": 0, "bos_token_id": 1}, "pad_token_id must not be 0"),
        ({"eos_token_id": 3}, "must differ from each other"),
        ({"vocab_size": 3}, r"\[0, vocab_size=3\).*unk_token_id"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id must be a token of its own"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder must be True"),
        ({"vocab_size": "many"}, "expected int, got str"),
        ({"freeze_encoder": 1}, "freeze_encoder: expected bool, got int"),
        ({"vocab_size": True}, "vocab_size: expected int, got bool"),
        ({"eos_token_id": [2, 0]}, "must differ from each other"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id: expected int, got str"),
        ({"decoder_start_token_id": 5, "eos_token_id": [2, 5]}, "decoder_start_token_id must be a token of its own"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(fields, advice):
    with pytest.raises(Exception, match=advice):
        GRUCaptionerConfig(**fields)
