from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import ViTConfig

from hf_gru_captioner import Captioner, TrainingConfig, train
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from hf_gru_captioner.tokenization import build_tokenizer, special_token_ids
from hf_gru_captioner.training.encoder import PretrainedEncoder
from hf_gru_captioner.training.warm_start import extend_vocabulary, reset_encoder, resize_images

NEW = ["A zebra and a zebra .", "A lamp near the zebra , a lamp ."]


def test_new_words_get_rows_near_the_mean_and_known_words_keep_theirs(make_model, processor):
    model, processor = make_model(), GRUCaptionerProcessor(processor.image_processor, processor.tokenizer)
    known, known_bias = model.get_input_embeddings().weight.clone(), model.lm_head.bias.clone()
    ids = processor.tokenizer.get_vocab()

    assert extend_vocabulary(model, processor, NEW, min_count=2) == ["zebra", "lamp"]

    weight, bias = model.get_input_embeddings().weight, model.lm_head.bias
    assert weight.shape[0] == bias.shape[0] == model.config.vocab_size == len(processor.tokenizer) == len(known) + 2
    assert torch.equal(weight[: len(known)], known)
    assert torch.equal(bias[: len(known)], known_bias)
    assert model.lm_head.weight is weight
    assert {word: processor.tokenizer.get_vocab()[word] for word in ids} == ids
    distance = (weight[len(known) :] - known[4:].mean(dim=0)) / known[4:].std(dim=0)
    assert 0.1 < distance.std() < 0.6
    assert bias[len(known) :].tolist() == [known_bias[4:].quantile(0.02).item()] * 2
    assert processor.tokenizer.decode(processor.tokenizer("A lamp")["input_ids"], skip_special_tokens=True) == "a lamp"


def test_an_extended_captioner_is_saved_and_loaded(make_model, processor, tmp_path):
    model, processor = make_model(), GRUCaptionerProcessor(processor.image_processor, processor.tokenizer)
    extend_vocabulary(model, processor, NEW, min_count=2)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = Captioner.from_pretrained(tmp_path)
    assert loaded.model.config.vocab_size == len(loaded.processor.tokenizer) == model.config.vocab_size
    assert torch.equal(loaded.model.lm_head.bias, model.lm_head.bias)


def test_nothing_changes_without_new_words_and_for_pieces(make_model, processor):
    model, processor = make_model(), GRUCaptionerProcessor(processor.image_processor, processor.tokenizer)
    tokenizer, size = processor.tokenizer, model.config.vocab_size
    assert extend_vocabulary(model, processor, ["A dog", "a dog", "a dog runs , zebra"], min_count=2) == []
    pieces = build_tokenizer(NEW, kind="bpe", min_count=1)
    model = make_model(**special_token_ids(pieces))
    assert extend_vocabulary(model, GRUCaptionerProcessor(processor.image_processor, pieces), NEW, min_count=1) == []
    assert processor.tokenizer is tokenizer
    assert size == make_model().config.vocab_size


def test_an_encoder_is_reset_by_a_share(make_model, save_encoder, tmp_path):
    save_encoder(tmp_path / "encoder")
    pretrained = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(
        tmp_path / "encoder", vocab_size=5, embedding_size=8, hidden_size=8, num_attention_heads=1
    ).encoder.vision
    model = make_model(seed=3)
    own = {name: value.clone() for name, value in model.encoder.vision.state_dict().items()}
    encoder = PretrainedEncoder(str(tmp_path / "encoder"))
    reset_encoder(model, encoder, 0.25)
    weights = pretrained.state_dict()
    for name, value in model.encoder.vision.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * own[name] + 0.25 * weights[name])
    reset_encoder(model, encoder, 1.0)
    torch.testing.assert_close(dict(model.encoder.vision.named_parameters()), dict(pretrained.named_parameters()))


def test_a_run_starts_from_a_checkpoint_with_new_words_and_a_reset_encoder(
    make_model, processor, save_encoder, make_dataset, tmp_path
):
    make_model().save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    save_encoder(tmp_path / "encoder")
    for split in ("train", "validation"):
        rows = make_dataset(4).map(lambda row: {"captions": [*row["captions"], "A zebra ."]})
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    config = TrainingConfig.from_options(
        {
            "data": {"source": tmp_path / "set", "cache_folder": tmp_path / "cache"},
            "tokenizer.min_count": 1,
            "model": {
                "checkpoint": tmp_path / "start",
                "encoder": tmp_path / "encoder",
                "extend_vocabulary": True,
                "encoder_reset": 1.0,
                "image_size": 96,
            },
            "optimization": {"epochs": 1, "images_per_step": 2, "mixed_precision": "no"},
            "output_dir": tmp_path / "run",
        }
    )
    captioner = Captioner.from_pretrained(train(config).checkpoint)
    assert "zebra" in captioner.processor.tokenizer.get_vocab()
    assert captioner.model.config.vocab_size == len(processor.tokenizer) + 1
    assert captioner.processor.image_size == (96, 96)

    with pytest.raises(ValueError, match=r"set model\.checkpoint"):
        replace(config, model=replace(config.model, checkpoint=None))


def test_another_encoder_is_refused(make_model, tmp_path):
    from transformers import AutoModel, TimmWrapperConfig

    encoder = AutoModel.from_config(TimmWrapperConfig(architecture="test_vit", do_pooling=False))
    encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UsageError, match="own encoder"):
        reset_encoder(make_model(), PretrainedEncoder(str(tmp_path / "encoder")), 0.5)


def test_a_size_that_an_encoder_or_processor_does_not_take_is_refused(make_model, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    processor = GRUCaptionerProcessor.from_pretrained(tmp_path)  # of this test alone
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=64)
    model = make_model(encoder_config=vit)
    resize_images(model, processor, 64)
    assert processor(images=Image.new("RGB", (9, 9)))["pixel_values"].shape == (1, 3, 64, 64)
    with pytest.raises(UsageError, match=r"model\.image_size = 96 doesn't suit .*64\*64"):
        resize_images(model, processor, 96)
    with pytest.raises(UsageError, match="is not 1 to"):
        resize_images(make_model(), processor, 1_000_000)
    processor.image_processor.do_center_crop = True
    with pytest.raises(UsageError, match="crops images"):
        resize_images(model, processor, 64)
