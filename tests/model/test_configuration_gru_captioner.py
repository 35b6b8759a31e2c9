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


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"attention_type": "bahdanau"}, "one of .'none', 'additive', 'multihead'."),
        ({"hidden_size": 500, "num_attention_heads": 8}, "take 10 heads"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, found 0"),
        ({"dropout": 1.0}, r"probability in \[0, 1\), found 1.0"),
        ({"pad_token_id": 0, "bos_token_id": 1}, "pad_token_id must not be 0"),
        ({"eos_token_id": 3}, "must differ from each other"),
        ({"vocab_size": 3}, r"\[0, vocab_size=3\).*unk_token_id"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id must be a token of its own"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder must be True"),
        ({"vocab_size": "many"}, "expected int, got str"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(fields, advice):
    with pytest.raises(Exception, match=advice):
        GRUCaptionerConfig(**fields)
