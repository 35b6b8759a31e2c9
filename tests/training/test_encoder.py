import pytest
import torch

from hf_gru_captioner import Captioner, TrainingConfig, train
from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT
from hf_gru_captioner.tokenization import special_token_ids
from hf_gru_captioner.training.encoder import PretrainedEncoder

SIZES = {"embedding_size": 8, "hidden_size": 8, "num_attention_heads": 1}


def test_of_a_captioner_the_encoder_is_taken_with_its_images_and_its_license(checkpoint, model, tokenizer, processor):
    model.config.license = "cc-by-nc-4.0"
    model.save_pretrained(checkpoint)
    encoder = PretrainedEncoder(str(checkpoint))
    new = encoder.model(**SIZES, **special_token_ids(tokenizer))
    torch.testing.assert_close(new.encoder.vision.state_dict(), model.encoder.vision.state_dict())
    assert new.config.hidden_size == 8
    assert new.config.license == "cc-by-nc-4.0"
    assert encoder.processor(tokenizer).image_processor.to_dict() == processor.image_processor.to_dict()
    assert encoder.processor(tokenizer, 128).image_size == (128, 128)
    assert encoder.processor(tokenizer).tokenizer is tokenizer


def test_of_an_encoder_its_name_is_kept_and_there_is_no_license(save_encoder, tokenizer, tmp_path):
    save_encoder(tmp_path / "mine")
    new = PretrainedEncoder(str(tmp_path / "mine")).model(**SIZES, **special_token_ids(tokenizer))
    assert new.config.encoder_config._name_or_path == "mine"
    assert getattr(new.config, "license", None) is None


def test_an_encoder_that_is_not_at_hand_is_answered_with_one_that_is():
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set") as raised:
        PretrainedEncoder("timm/not-in-the-cache")
    assert str(raised.value).endswith(
        f"model.encoder may also be a folder, such as that of the shipped checkpoint: {SHIPPED_CHECKPOINT}"
    )


def test_a_size_out_of_range_is_said(checkpoint, tokenizer):
    with pytest.raises(ValueError, match="hidden_size must be at least 1, found -1"):
        PretrainedEncoder(str(checkpoint)).model(hidden_size=-1, **special_token_ids(tokenizer))


def test_a_captioner_in_another_language_is_trained_behind_the_encoder_of_a_captioner(
    checkpoint, model, dataset_folder, tmp_path
):
    options = {
        "data": {"source": dataset_folder, "cache_folder": tmp_path / "cache"},
        "tokenizer": {"kind": "verbatim", "min_count": 1},
        "model": {"encoder": checkpoint, "embedding_size": 8, "hidden_size": 8, "num_attention_heads": 1},
        "optimization": {"epochs": 1, "images_per_step": 3, "mixed_precision": "no", "checkpoint_precision": "float32"},
        "output_dir": tmp_path / "run",
    }
    trained = Captioner.from_pretrained(train(TrainingConfig.from_options(options)).checkpoint, backend="torch").model
    torch.testing.assert_close(trained.encoder.vision.state_dict(), model.encoder.vision.state_dict())
