import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from hf_gru_captioner import Caption, Captioner, GRUCaptionerProcessor
from hf_gru_captioner import captioner as captioner_module
from hf_gru_captioner.captioner import SHIPPED_CHECKPOINT
from hf_gru_captioner.cli import main
from hf_gru_captioner.tokenization import build_tokenizer


@pytest.fixture
def captioner(checkpoint):
    return Captioner.from_pretrained(checkpoint)


def test_one_image_gives_a_caption_and_a_list_gives_a_list(captioner, make_photo):
    photos = [make_photo(seed) for seed in range(3)]
    one = captioner(photos[1])
    many = captioner(photos, batch_size=2)
    assert isinstance(one, Caption)
    assert [type(each) for each in many] == [Caption] * 3
    assert many[1].text == one.text
    assert many[1].score == pytest.approx(one.score, abs=1e-5)
    assert captioner([]) == []


def test_a_printed_caption_fits_on_a_line_or_two(captioner, photo):
    caption = captioner(photo, num_alternatives=3)
    assert caption.text in repr(caption)
    assert "attention" not in repr(caption)
    assert "alternatives" not in repr(caption)


def test_the_score_is_what_beam_search_ranked_by(captioner, photo):
    pixel_values = captioner.processor(images=photo).pixel_values
    for length_penalty in (0.0, 0.8, 2.0):
        settings = {"num_beams": 4, "length_penalty": length_penalty}
        captions = captioner(photo, num_captions=4, **settings)
        found = captioner.model.generate(
            pixel_values, num_return_sequences=4, return_dict_in_generate=True, output_scores=True, **settings
        )
        assert [each.score for each in captions] == pytest.approx(found.sequences_scores.tolist(), abs=1e-5)
        assert [each.text for each in captions] == captioner.processor.batch_decode(found.sequences)


def test_words_probabilities_and_attention_belong_together(captioner, photo):
    captioner.model.lm_head.bias.data[4] = 3.0
    caption = captioner(photo, num_beams=1, min_new_tokens=4, max_new_tokens=5)
    assert 4 <= len(caption.words) <= 5
    assert len(caption.log_probabilities) == len(caption.words)
    assert caption.attention.shape == (len(caption.words), 3, 3)
    np.testing.assert_allclose(caption.attention.sum((1, 2)), 1, rtol=1e-5)
    assert "".join(caption.words).replace(" ", "") == caption.text.replace(" ", "")
    assert all(value < 0 for value in caption.log_probabilities)


def test_the_end_token_counts_in_the_score_but_is_no_word(captioner, photo):
    captioner.model.lm_head.bias.data[2] = 50.0  # ends at once
    caption = captioner(photo, num_beams=1)
    assert (caption.text, caption.words, caption.log_probabilities) == ("", (), ())
    assert caption.score == pytest.approx(0, abs=1e-3)
    assert caption.attention.shape == (0, 3, 3)


def test_a_model_without_attention_gives_no_maps(make_model, processor, photo):
    caption = Captioner(make_model(attention_type="none"), processor)(photo, max_new_tokens=3)
    assert caption.attention is None
    assert len(caption.words) > 0


@pytest.mark.parametrize(
    ("size", "grid"), [((64, 96), (2, 3)), ((32, 128), (1, 4)), ((96, 96), (3, 3)), ((100, 70), (4, 3))]
)
def test_maps_have_the_rows_and_columns_of_the_images(make_model, processor, photo, tmp_path, size, grid):
    sides = dict(zip(("height", "width"), size, strict=True))
    model = make_model()  # of 32 pixels a region
    shaped = GRUCaptionerProcessor(CLIPImageProcessor(size=sides, do_center_crop=False), processor.tokenizer)
    captioner = Captioner(model, shaped)
    caption = captioner(photo, max_new_tokens=3, num_beams=1)
    assert caption.attention.shape[1:] == grid
    model.save_pretrained(tmp_path)
    shaped.save_pretrained(tmp_path)
    assert Captioner.from_pretrained(tmp_path)(photo, max_new_tokens=3, num_beams=1).attention.shape[1:] == grid
    cropped = CLIPImageProcessor(size={"shortest_edge": 128}, crop_size=sides)
    cropping = Captioner(model, GRUCaptionerProcessor(cropped, processor.tokenizer))
    assert cropping(photo, max_new_tokens=3, num_beams=1).attention.shape[1:] == grid


def test_regions_that_are_no_grid_of_the_image_give_no_maps(make_model, processor, photo, tmp_path, monkeypatch):
    assert [captioner_module._grid(num, (64, 64)) for num in (1, 2, 5, 16, 17)] == [(1, 1), None, None, (4, 4), None]
    assert captioner_module._grid(16, None) is None
    assert captioner_module._grid(64, (32, 128)) == (4, 16)
    assert captioner_module._grid(136, (299, 598)) == (8, 17)  # of Inception, which doesn't pad
    model = make_model()
    captioner = Captioner(model, processor)
    model.encoder.vision.register_forward_hook(lambda module, inputs, regions: regions[:, 1:])
    assert captioner(photo, max_new_tokens=3).attention is None
    captioner._try_out("it")
    assert not captioner.has_attention


def test_special_token_ids_that_the_generation_settings_lack_are_those_of_the_model(checkpoint, photo):
    expected = Captioner.from_pretrained(checkpoint)(photo)
    path = checkpoint / "generation_config.json"
    settings = json.loads(path.read_text())
    ids = {name: settings.pop(name) for name in list(settings) if name.endswith("_token_id")}
    for kept in ({}, {"bos_token_id": ids["bos_token_id"]}):
        path.write_text(json.dumps(settings | kept))
        captioner = Captioner.from_pretrained(checkpoint)
        assert captioner(photo) == expected
        assert captioner.defaults().items() >= ids.items()
        torch.manual_seed(0)
        captioner(photo, do_sample=True, begin="a")  # by generate()
    path.unlink()
    caption = Captioner.from_pretrained(checkpoint)(photo, max_new_tokens=6, num_beams=2)
    assert caption == expected


def test_captioning_leaves_dropout_off(make_model, processor, photo):
    model = make_model(dropout=0.9).train()
    captioner = Captioner(model, processor)
    scores = {captioner(photo, max_new_tokens=6).score for _ in range(3)}
    assert len(scores) == 1
    assert not model.training


def test_a_vocabulary_that_does_not_fit_is_refused(model, processor):
    words = " ".join(f"word{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(40))
    large = GRUCaptionerProcessor(processor.image_processor, build_tokenizer([words], min_count=1))
    with pytest.raises(ValueError, match=r"the tokenizer has 44 tokens, the model 29"):
        Captioner(model, large)


def test_what_is_no_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model"):
        Captioner.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        Captioner.from_pretrained(tmp_path / "empty")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "gru_c')
    with pytest.raises(ValueError, match=r"its config\.json can't be read"):
        Captioner.from_pretrained(tmp_path / "torn")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="not a GRU captioner but a model of type 'bert'"):
        Captioner.from_pretrained(tmp_path / "bert")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is damaged or its files"):
        Captioner.from_pretrained(checkpoint)


def damage_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def damage_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


DAMAGES = {
    "truncated weights": damage_weights,
    "a pointer of Git LFS": lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs..."),
    "a larger vocabulary in the configuration": lambda folder: damage_config(folder, vocab_size=99),
    "other sizes in the configuration": lambda folder: damage_config(folder, hidden_size=32),
    "a field of another type": lambda folder: damage_config(folder, hidden_size="wide"),
    "an encoder that timm does not know": lambda folder: damage_config(
        folder, encoder_config={"model_type": "timm_wrapper", "architecture": "nonsense"}
    ),
    "an empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(checkpoint, damage):
    DAMAGES[damage](checkpoint)
    with pytest.raises(ValueError, match=f"the checkpoint {checkpoint} is damaged or its files"):
        Captioner.from_pretrained(checkpoint)


def test_missing_weights_are_not_made_up(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["decoder.language_gru.bias_hh_l0"]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: 1, such as decoder\.language_gru\.bias_hh_l0"):
        Captioner.from_pretrained(checkpoint)


def test_sampled_captions_come_best_first(captioner, photo):
    torch.manual_seed(0)
    captions = captioner(photo, num_captions=8, do_sample=True, num_beams=1)
    scores = [caption.score for caption in captions]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 4


def test_what_is_no_setting_is_refused(captioner, photo):
    with pytest.raises(TypeError, match="accept decoder_input_ids"):
        captioner(photo, decoder_input_ids=torch.zeros(1, 1).long())
    with pytest.raises(ValueError, match="at least 1, found 16 and 0"):
        captioner(photo, num_captions=0)


def test_captions_can_be_compared_and_put_into_sets(captioner, photo):
    assert len({captioner(photo), captioner(photo)}) == 1


def test_pickled_weights_are_never_loaded(checkpoint, model):
    (checkpoint / "model.safetensors").unlink()
    torch.save(model.state_dict(), checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is damaged or its files"):
        Captioner.from_pretrained(checkpoint)


def test_the_shipped_checkpoint_is_small_whole_and_safe():
    files = {path.name for path in SHIPPED_CHECKPOINT.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= files
    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert sum(path.stat().st_size for path in SHIPPED_CHECKPOINT.iterdir()) <= 25e6
    for name in ("configuration", "image_loading", "modeling", "pipeline", "processing"):
        code = f"{name}_gru_captioner.py"
        assert (SHIPPED_CHECKPOINT / code).read_bytes() == (SHIPPED_CHECKPOINT.parent / "model" / code).read_bytes()


def test_the_shipped_checkpoint_sees_the_dogs():
    captioner = Captioner.from_pretrained()
    examples = SHIPPED_CHECKPOINT.parents[1] / "demo" / "examples"
    for photo in ("dogs_lawn.jpg", "dog_floor.jpg"):
        caption = captioner(examples / photo)
        assert "dog" in caption.text
        assert 4 <= len(caption.words) <= 20
        assert caption.attention.shape == (len(caption.words), 8, 8)


def test_all_backends_go_on_from_given_words_alike():
    photo = SHIPPED_CHECKPOINT.parents[1] / "demo" / "examples" / "dogs_lawn.jpg"
    by_torch, by_graphs = (Captioner.from_pretrained(backend=backend) for backend in ("torch", "onnxruntime"))
    assert by_torch.fingerprint == by_graphs.fingerprint
    for begin in ("a photo of", "two"):
        caption, other = by_torch(photo, begin=begin), by_graphs(photo, begin=begin)
        assert caption.text.startswith(begin)
        assert caption.words == other.words
        assert caption.score == pytest.approx(other.score, abs=1e-3)
    with pytest.raises(ValueError, match="the checkpoint doesn't know the word"):
        by_graphs(photo, begin="a xyzzy")


def test_the_likeliest_rivals_of_each_word_come_with_their_probabilities(captioner, photo):
    encoded = captioner.encode([photo])
    ((caption,),) = captioner.decode(encoded, num_alternatives=3, num_beams=1, min_new_tokens=3)
    assert len(caption.alternatives) == len(caption.words) >= 3
    for word, log_probability, alternatives in zip(
        caption.words, caption.log_probabilities, caption.alternatives, strict=True
    ):
        probabilities = [probability for _, probability in alternatives]
        assert len(alternatives) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert dict(alternatives).get(word, 0.0) == pytest.approx(
            np.exp(log_probability) if word in dict(alternatives) else 0.0
        )
    assert any(
        word in dict(alternatives) for word, alternatives in zip(caption.words, caption.alternatives, strict=True)
    )
    assert captioner(photo, num_beams=1, min_new_tokens=3) == caption


@pytest.mark.parametrize("given", ["no checkpoint", "another one"])
def test_graphs_of_other_weights_are_refused_with_advice_that_helps(checkpoint, tmp_path, capsys, photo, given):
    photo.save(tmp_path / "photo.png")
    graphs, other = tmp_path / "graphs", tmp_path / "other"
    assert main(["export", str(checkpoint), "--output", str(graphs)]) == 0
    shutil.copytree(SHIPPED_CHECKPOINT, other)
    words = ["caption", str(tmp_path / "photo.png"), "--backend", "onnxruntime", "--graphs", str(graphs)]
    capsys.readouterr()
    assert main(words + ["--checkpoint", str(other)] * (given == "another one")) == 2
    said = capsys.readouterr().err
    if given == "another one":
        assert f"gru-captioner export {other} --output {graphs}" in said
        return
    assert "(--checkpoint FOLDER)" in said
    assert f"(--checkpoint {graphs})" in said
    expected = Captioner.from_pretrained(checkpoint)(photo).text
    assert main([*words, "--checkpoint", str(checkpoint)]) == 0
    assert main([*words[:-2], "--checkpoint", str(graphs)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path / 'photo.png'}: {expected}"] * 2


def test_captions_that_are_equal_stay_in_the_order_of_the_search(captioner, photo, monkeypatch):
    first, second = captioner(photo, num_captions=2)
    assert first.score > second.score
    found = captioner_module.beam_search

    def equal(*arguments, **settings):
        ((best, other),) = found(*arguments, **settings)
        average = np.full(len(other.tokens), best.log_probabilities.mean() + 1e-6, np.float32)
        return [[best, dataclasses.replace(other, log_probabilities=average)]]

    monkeypatch.setattr(captioner_module, "beam_search", equal)
    again = captioner(photo, num_captions=2, length_penalty=1.0)
    assert [caption.text for caption in again] == [first.text, second.text]
    assert again[0].score < again[1].score < again[0].score + 1e-5


def test_given_captions_have_the_mean_log_probability_of_their_tokens(captioner, make_photo):
    images = [make_photo(1), make_photo(2), make_photo(3)]
    captions = [["A brown dog runs", "Two children play on the beach"], [], ["A girl jumps ."]]
    scores = captioner.mean_log_probabilities(images, captions)
    assert [len(of_image) for of_image in scores] == [2, 0, 1]
    for image, texts, found in zip(images, captions, scores, strict=True):
        for text, score in zip(texts, found, strict=True):
            inputs = captioner.processor(images=image, text=text)
            loss = captioner.model(pixel_values=inputs["pixel_values"], labels=inputs["labels"]).loss
            assert score == pytest.approx(-loss.item(), abs=1e-5)
    assert captioner.mean_log_probabilities([], []) == []


def test_a_caption_with_an_unknown_word_is_the_least_likely_one(captioner, photo):
    known, unknown = captioner.mean_log_probabilities([photo], [["A brown dog", "A brown zebra"]])[0]
    assert known > unknown == -np.inf


def test_each_image_needs_its_list_of_captions(captioner, photo):
    with pytest.raises(ValueError, match="found 1 images but captions of 2"):
        captioner.mean_log_probabilities([photo], [["A dog"], ["A dog"]])


def test_suppressed_tokens_outside_the_vocabulary_are_ignored_as_by_generate(captioner, photo):
    expected = captioner(photo)
    for tokens in ([99_999], [-1]):
        assert captioner(photo, suppress_tokens=tokens) == expected
        assert captioner(photo, suppress_tokens=tokens, repetition_penalty=1.0).text == expected.text  # by generate()


def test_rows_that_pad_a_vocabulary_are_never_written(model, processor, photo):
    model.generation_config.update(max_new_tokens=6, num_beams=2)
    expected = Captioner(model, processor)(photo)
    model.resize_token_embeddings(len(processor.tokenizer), pad_to_multiple_of=64)
    assert model.config.vocab_size == 64
    model.lm_head.bias.data[len(processor.tokenizer) :] = 9.0
    captioner = Captioner(model, processor)
    for settings in ({}, {"repetition_penalty": 1.0}, {"suppress_tokens": [1]}):
        assert captioner(photo, **settings).words == expected.words
