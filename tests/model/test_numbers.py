"""Numbers at the edge: rows without words, very long captions, the smallest vocabulary, half precision."""

import math

import pytest
import torch

from hf_gru_captioner import Captioner, GRUCaptionerProcessor
from hf_gru_captioner.tokenization import build_tokenizer, special_token_ids


def loss_of(model, labels, num_images=1):
    pixel_values = torch.randn(num_images, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return model(pixel_values=pixel_values.to(model.dtype), labels=labels).loss


def test_a_row_without_words_changes_nothing(model):
    labels = torch.tensor([[5, 6, 2]])
    padded = torch.tensor([[5, 6, 2], [-100, -100, -100]])
    assert loss_of(model, padded).item() == pytest.approx(loss_of(model, labels).item(), rel=1e-6)


@pytest.mark.parametrize("caption", ["", "   ", "!!!", "\x00"])
def test_a_caption_without_words_is_its_end(model, processor, caption):
    labels = processor.encode_captions([caption])
    assert labels.tolist() == [[processor.tokenizer.eos_token_id]]
    assert math.isfinite(loss_of(model, labels).item())


def test_a_caption_of_ten_thousand_words_is_cut(model, processor):
    labels = processor.encode_captions(["a dog " * 5000, "a dog"])
    assert labels.shape == (2, processor.tokenizer.model_max_length)
    assert math.isfinite(loss_of(model, labels).item())


def test_a_vocabulary_of_one_word_captions(make_model, processor, photo):
    tokenizer = build_tokenizer(["dog"], min_count=1)
    model = make_model(**special_token_ids(tokenizer))
    captioner = Captioner(model, GRUCaptionerProcessor(processor.image_processor, tokenizer))
    suppressed = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    for num_beams in (1, 3):
        caption = captioner(photo, num_beams=num_beams, max_new_tokens=4, suppress_tokens=suppressed)
        assert set(caption.words) <= {"dog"}
        assert math.isfinite(caption.score)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(make_model, processor, photo, dtype):
    model = make_model().to(dtype)
    labels = processor.encode_captions(["A brown dog runs through the grass .", "Two children"])
    loss = loss_of(model, labels)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)
    caption = Captioner(model.eval(), processor)(photo, max_new_tokens=5)
    assert math.isfinite(caption.score)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_over_huge_regions_stays_finite_in_half_precision(make_model, dtype):
    model = make_model().to(dtype)
    regions = torch.full((1, 9, model.encoder.vision.region_size), 6e4).to(dtype)  # nearly all that fp16 holds
    keys, values, mean = model.encoder(regions=regions).projected_regions
    assert all(each.isfinite().all() for each in (keys, values, mean))
