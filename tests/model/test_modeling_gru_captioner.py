import copy
import itertools
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DynamicCache,
    EfficientNetConfig,
    GenerationConfig,
    MobileViTConfig,
    PvtConfig,
    ResNetConfig,
    Siglip2VisionConfig,
    SwinConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTMAEConfig,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import find_labels

from hf_gru_captioner.model import GRUCache, GRUCaptionerForConditionalGeneration
from hf_gru_captioner.model.configuration_gru_captioner import TOKEN_IDS
from hf_gru_captioner.model.modeling_gru_captioner import ATTENTION, IGNORE_INDEX

every_attention = pytest.mark.parametrize("attention_type", ATTENTION)


def random_regions(model, num_images=2, num_regions=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, num_regions, model.encoder.vision.region_size, generator=generator)


def random_labels(model, lengths=(5, 2, 7, 3), seed=2):
    """Labels of words, then the end token, then -100."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((len(lengths), max(lengths)), IGNORE_INDEX)
    for row, length in enumerate(lengths):
        labels[row, :length] = torch.randint(4, model.config.vocab_size, (length,), generator=generator)
        labels[row, length - 1] = model.config.eos_token_id
    return labels


def words_of(sequence):
    """A generated sequence without its start token and everything after its end token."""
    words = sequence[1:].tolist()
    return tuple(words[: words.index(2) + 1] if 2 in words else words)


def encode(model, **kwargs):
    return model.get_encoder()(regions=random_regions(model, **kwargs))


# ------------------------------------------------------------------------------------------------------- the decoder


def gru_step(gru, x, h):
    """Cho et al. 2014 in the form of torch's nn.GRU, written out."""
    w_r, w_z, w_n = gru.weight_ih_l0.chunk(3)
    u_r, u_z, u_n = gru.weight_hh_l0.chunk(3)
    b_r, b_z, b_n = gru.bias_ih_l0.chunk(3)
    c_r, c_z, c_n = gru.bias_hh_l0.chunk(3)
    r = torch.sigmoid(w_r @ x + b_r + u_r @ h + c_r)
    z = torch.sigmoid(w_z @ x + b_z + u_z @ h + c_z)
    n = torch.tanh(w_n @ x + b_n + r * (u_n @ h + c_n))
    return (1 - z) * n + z * h


def attend_by_hand(attention, attention_type, query, keys, values):
    if attention_type == "none":
        return values.mean(0)
    if attention_type == "additive":
        scores = torch.stack([attention.score.weight[0] @ torch.tanh(k + attention.query.weight @ query) for k in keys])
        return sum(weight * value for weight, value in zip(scores.softmax(0), values, strict=True))
    query = attention.query.weight @ query + attention.query.bias
    size = len(query) // attention.num_heads
    context = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.stack([k[part] @ query[part] / size**0.5 for k in keys]).softmax(0)
        context.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
    return torch.cat(context)


def decode_by_hand(model, regions, token_ids):
    """The equations in the model's module docstring, word by word for one caption -> logits `(T, V)`."""
    decoder, hidden_size = model.decoder, model.config.hidden_size
    normalized = torch.stack([(r - r.mean()) / (r.var(unbiased=False) + 1e-5).sqrt() for r in regions])
    keys_and_values = model.encoder.projection.keys_and_values
    projected = normalized @ keys_and_values.weight.T + keys_and_values.bias
    keys, values = projected[:, :hidden_size], projected[:, hidden_size:]
    start = torch.tanh(decoder.initial_states.weight @ values.mean(0) + decoder.initial_states.bias)
    h1, h2 = start[:hidden_size], start[hidden_size:]
    logits = []
    for token in token_ids:
        h1 = gru_step(decoder.language_gru, decoder.embed_tokens.weight[token], h1)
        context = attend_by_hand(decoder.attention, model.config.attention_type, h1, keys, values)
        h2 = gru_step(decoder.fusion_gru, torch.cat((h1, context)), h2)
        projection = decoder.output_projection
        output = torch.tanh(projection.weight @ torch.cat((h2, context)) + projection.bias)
        logits.append(decoder.embed_tokens.weight @ output + model.lm_head.bias)
    return torch.stack(logits)


def test_an_unknown_attention_is_refused_with_those_that_there_are(make_model):
    with pytest.raises(ValueError, match="one of none, additive, multihead, found 'bahdanau'"):
        make_model(attention_type="bahdanau")


@torch.no_grad()
@every_attention
def test_the_decoder_follows_the_equations_written_out_by_hand(make_model, attention_type):
    model = make_model(attention_type=attention_type)
    for parameter in model.decoder.parameters():  # biases start at zero, which would hide a missing one
        parameter.add_(0.1 * torch.randn_like(parameter))
    token_ids = [0, 4, 9, 5]
    regions = random_regions(model, num_images=1)
    logits = model(encoder_outputs=(regions,), decoder_input_ids=torch.tensor([token_ids])).logits
    by_hand = decode_by_hand(model, regions[0], token_ids)
    torch.testing.assert_close(logits[0], by_hand, atol=1e-5, rtol=1e-5)

    broken = copy.deepcopy(model)
    broken.decoder.language_gru.weight_hh_l0.copy_(broken.decoder.language_gru.weight_hh_l0.roll(1, 0))
    twin = broken(encoder_outputs=(regions,), decoder_input_ids=torch.tensor([token_ids])).logits
    assert (twin[0] - by_hand).abs().max() > 1e-3


@torch.no_grad()
@every_attention
def test_packed_padded_chunked_and_stepwise_decoding_agree(make_model, attention_type):
    model = make_model(attention_type=attention_type)
    encoder_outputs, labels = encode(model), random_labels(model)
    input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    is_word = labels != IGNORE_INDEX

    packed = model(encoder_outputs=encoder_outputs, labels=labels, output_attentions=True, output_hidden_states=True)
    padded = model(
        encoder_outputs=encoder_outputs, decoder_input_ids=input_ids, output_attentions=True, output_hidden_states=True
    )
    torch.testing.assert_close(packed.logits[is_word], padded.logits[is_word])
    assert (packed.logits[~is_word] == 0).all()
    for of_packed, of_padded in zip(packed.decoder_hidden_states, padded.decoder_hidden_states, strict=True):
        torch.testing.assert_close(of_packed[is_word], of_padded[is_word])
    if attention_type == "none":
        assert packed.cross_attentions is None
        assert padded.cross_attentions is None
    else:
        of_packed, of_padded = (each.cross_attentions[0].transpose(1, 2)[is_word] for each in (packed, padded))
        torch.testing.assert_close(of_packed, of_padded)
        torch.testing.assert_close(of_padded.sum(-1), torch.ones_like(of_padded.sum(-1)))

    for chunk in (1, 3):
        cache, logits = None, []
        for ids in input_ids.split(chunk, dim=1):
            output = model(encoder_outputs=encoder_outputs, decoder_input_ids=ids, cache=cache)
            cache = output.cache
            logits.append(output.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), padded.logits)
        assert cache.get_seq_length() == input_ids.shape[1]


@torch.no_grad()
@every_attention
def test_captions_that_share_an_image_see_what_they_would_see_alone(make_model, attention_type):
    model = make_model(attention_type=attention_type)
    regions, labels = random_regions(model), random_labels(model)
    together = model(encoder_outputs=(regions,), labels=labels)
    for row in range(4):
        image = row // 2
        alone = model(encoder_outputs=(regions[image : image + 1],), labels=labels[row : row + 1])
        length = int((labels[row] != IGNORE_INDEX).sum())
        torch.testing.assert_close(together.logits[row, :length], alone.logits[0, :length])


@torch.no_grad()
@every_attention
def test_captions_come_in_any_order_and_number_when_image_index_names_their_images(make_model, attention_type):
    model = make_model(attention_type=attention_type)
    regions = random_regions(model, num_images=3)
    labels = random_labels(model, lengths=(5, 2, 7, 3, 4))
    image_index = torch.tensor([2, 0, 2, 2, 0])  # none of image 1
    output = model(encoder_outputs=(regions,), labels=labels, image_index=image_index)
    alone = model(encoder_outputs=(regions[image_index],), labels=labels)
    torch.testing.assert_close(output.logits, alone.logits)
    padded = model(
        encoder_outputs=(regions,),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
        image_index=image_index,
    )
    torch.testing.assert_close(padded.logits[labels != IGNORE_INDEX], output.logits[labels != IGNORE_INDEX])


def test_the_loss_is_the_mean_over_words_and_packing_leaves_its_gradients_alone(model):
    model.train()  # the tiny model's dropout is drawn per element, so it is switched off for the comparison
    model.decoder.dropout.p = 0.0
    regions, labels = random_regions(model), random_labels(model)
    packed = model(encoder_outputs=(regions,), labels=labels, smoothing=0.1)
    packed.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(encoder_outputs=(regions,), decoder_input_ids=input_ids).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(packed.loss, loss)
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_num_items_in_batch_replaces_the_mean(model):
    regions, labels = random_regions(model), random_labels(model)
    mean = model(encoder_outputs=(regions,), labels=labels).loss
    num_words = (labels != IGNORE_INDEX).sum()
    divided = model(encoder_outputs=(regions,), labels=labels, num_items_in_batch=2 * num_words).loss
    torch.testing.assert_close(divided, mean / 2)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25])


def weighted_mean_by_hand(logits, labels, smoothing):
    """Over the labels of all captions, with the weight of the caption; the smoothed loss is written out."""
    total, weights = 0.0, 0.0
    for caption, weight in enumerate(WEIGHTS):
        for position, label in enumerate(labels[caption]):
            if label != IGNORE_INDEX:
                log_probabilities = logits[caption, position].log_softmax(dim=-1)
                loss = (1 - smoothing) * log_probabilities[label] + smoothing * log_probabilities.mean()
                total, weights = total - weight * loss, weights + weight
    return total / weights, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("image_index", [None, torch.tensor([1, 0, 1, 1])])
def test_the_weights_of_captions_make_a_weighted_mean(model, smoothing, image_index):
    labels = random_labels(model)
    labels[2, 3] = IGNORE_INDEX  # inside a caption, too
    batch = {"encoder_outputs": (random_regions(model),), "image_index": image_index}
    input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(**batch, decoder_input_ids=input_ids).logits  # padded, not packed
    expected, total = weighted_mean_by_hand(logits, labels, smoothing)
    batch |= {"labels": labels, "smoothing": smoothing}
    weighted = model(**batch, caption_weights=WEIGHTS).loss
    torch.testing.assert_close(weighted, expected)
    torch.testing.assert_close(model(**batch, caption_weights=WEIGHTS, num_items_in_batch=2 * total).loss, expected / 2)
    torch.testing.assert_close(model(**batch, caption_weights=torch.ones(4)).loss, model(**batch).loss)
    assert abs(weighted - model(**batch).loss) > 1e-3


def test_without_labels_the_weights_of_captions_are_those_of_gradients(model):
    """Needed by transformers' Trainer for label smoothing: it removes the labels and computes the loss itself."""
    labels = random_labels(model)
    batch = {
        "encoder_outputs": (random_regions(model),),
        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
    }
    weighted_mean_by_hand(model(**batch).logits, labels, 0.1)[0].backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    logits = model(**batch, caption_weights=WEIGHTS).logits
    assert torch.equal(logits, model(**batch).logits)
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=0.1
    )
    (losses / ((labels != IGNORE_INDEX) * WEIGHTS[:, None]).sum()).backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, atol=1e-5, rtol=1e-4)


def test_there_is_a_weight_for_each_caption(model):
    labels = random_labels(model)
    with pytest.raises(ValueError, match=r"weight of each of the 4 captions, found shape \(3,\)"):
        model(encoder_outputs=(random_regions(model),), labels=labels, caption_weights=torch.ones(3))


@torch.no_grad()
def test_labels_inside_a_caption_can_be_ignored(model):
    regions, labels = random_regions(model), random_labels(model)
    input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    masked = labels.clone()
    masked[2, 3] = IGNORE_INDEX
    logits = model(encoder_outputs=(regions,), decoder_input_ids=input_ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), masked.flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(
        model(encoder_outputs=(regions,), decoder_input_ids=input_ids, labels=masked).loss, expected
    )


def test_labels_become_decoder_inputs_behind_the_start_token(model):
    labels = torch.tensor([[7, 8, 2], [9, 2, IGNORE_INDEX]])
    input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    assert input_ids.tolist() == [[0, 7, 8], [0, 9, 2]]
    assert labels.tolist() == [[7, 8, 2], [9, 2, IGNORE_INDEX]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "pixel_values or encoder_outputs"),
        ({"encoder_outputs": (torch.zeros(2, 9, 96),)}, "labels or decoder_input_ids"),
        ({"encoder_outputs": (torch.zeros(2, 9, 96),), "labels": torch.zeros(3, 4).long()}, "pass image_index"),
        (
            {
                "encoder_outputs": (torch.zeros(2, 9, 96),),
                "labels": torch.zeros(3, 4).long(),
                "image_index": torch.zeros(2).long(),
            },
            "image of each of the 3 captions",
        ),
        (
            {
                "encoder_outputs": (torch.zeros(2, 9, 96),),
                "labels": torch.zeros(2, 4).long(),
                "decoder_input_ids": torch.zeros(2, 3).long(),
            },
            "must have the same shape",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_logits_can_be_skipped_and_outputs_can_be_a_tuple(model):
    regions, labels = random_regions(model), random_labels(model)
    assert model(encoder_outputs=(regions,), labels=labels, skip_logits=True).logits is None
    loss, logits, *_ = model(encoder_outputs=(regions,), labels=labels, return_dict=False)
    assert loss.ndim == 0
    assert logits.shape == (*labels.shape, model.config.vocab_size)


# -------------------------------------------------------------------------------------------------------- generate()


@every_attention
def test_a_wide_beam_search_finds_what_exhaustive_search_finds(make_model, attention_type):
    model = make_model(attention_type=attention_type, vocab_size=6, seed=3)
    model.decoder.embed_tokens.weight.data.mul_(4)  # sharper distributions, so that scores differ
    encoder_outputs = encode(model, num_images=1)
    max_length = 3
    scored = {}
    for words in itertools.product(range(6), repeat=max_length):
        ended = words.index(2) + 1 if 2 in words else max_length
        scored[words[:ended]] = None
    for words in scored:
        output = model(encoder_outputs=encoder_outputs, labels=torch.tensor([words]))
        log_probabilities = output.logits.log_softmax(-1)[0, range(len(words)), list(words)]
        scored[words] = log_probabilities.sum().item() / len(words) ** 0.7
    best = sorted(scored, key=scored.get, reverse=True)[:5]

    found = model.generate(
        encoder_outputs=copy.copy(encoder_outputs),
        num_beams=len(scored),
        num_return_sequences=5,
        max_new_tokens=max_length,
        length_penalty=0.7,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [words_of(row) for row in found.sequences] == best
    torch.testing.assert_close(found.sequences_scores, torch.tensor([scored[words] for words in best]))


@every_attention
def test_beam_search_with_and_without_cache_writes_the_same(make_model, attention_type):
    model = make_model(attention_type=attention_type)
    encoder_outputs = encode(model, num_images=3)
    settings = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 8}
    cached = model.generate(encoder_outputs=copy.copy(encoder_outputs), **settings)
    uncached = model.generate(encoder_outputs=copy.copy(encoder_outputs), use_cache=False, **settings)
    assert cached.tolist() == uncached.tolist()
    assert len(cached) == 9


def test_a_cache_whose_beams_are_not_reordered_is_noticed(model, monkeypatch):
    encoder_outputs = encode(model, num_images=3)
    settings = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 8}
    right = model.generate(encoder_outputs=copy.copy(encoder_outputs), **settings)
    monkeypatch.setattr(GRUCache, "reorder_cache", lambda self, beam_idx: None)
    wrong = model.generate(encoder_outputs=copy.copy(encoder_outputs), **settings)
    assert right.tolist() != wrong.tolist()


@every_attention
def test_a_batch_writes_what_its_images_get_alone(make_model, attention_type):
    model = make_model(attention_type=attention_type)
    regions = random_regions(model, num_images=3)
    for settings in ({}, {"num_beams": 3}):
        batch = model.generate(
            encoder_outputs=model.get_encoder()(regions=regions), max_new_tokens=8, **settings
        ).tolist()
        for row in range(3):
            alone = model.generate(
                encoder_outputs=model.get_encoder()(regions=regions[row : row + 1]), max_new_tokens=8, **settings
            )
            assert batch[row][: alone.shape[1]] == alone[0].tolist()


def test_sequence_scores_are_those_of_teacher_forced_rescoring(model):
    encoder_outputs = encode(model)
    found = model.generate(
        encoder_outputs=copy.copy(encoder_outputs),
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=6,
        length_penalty=0.8,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for index, (sequence, score) in enumerate(zip(found.sequences, found.sequences_scores, strict=True)):
        words, regions = words_of(sequence), encoder_outputs.last_hidden_state[index // 4][None]
        logits = model(encoder_outputs=(regions,), labels=torch.tensor([words])).logits
        log_probabilities = logits.log_softmax(-1)[0, range(len(words)), list(words)]
        torch.testing.assert_close(log_probabilities.sum() / len(words) ** 0.8, score)


def test_images_and_their_encoder_outputs_lead_to_the_same_captions(model):
    pixel_values = torch.randn(2, 3, 96, 96)
    settings = {"num_beams": 3, "max_new_tokens": 6}
    from_pixels = model.generate(pixel_values=pixel_values, **settings)
    regions = model.encoder.vision(pixel_values)
    encoded = model.generate(encoder_outputs=model.get_encoder()(regions=regions), **settings)
    plain = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=regions), **settings)
    assert from_pixels.tolist() == encoded.tolist() == plain.tolist()


def test_the_encoder_runs_once_and_projects_once_an_image(model, monkeypatch):
    sizes = []
    projection = model.encoder.projection.forward
    monkeypatch.setattr(model.encoder.projection, "forward", lambda r: sizes.append(len(r)) or projection(r))
    model.generate(pixel_values=torch.randn(2, 3, 96, 96), num_beams=5, max_new_tokens=6)
    assert sizes == [2]


def test_regions_given_to_generate_are_projected_once_and_left_alone(model, monkeypatch):
    sizes = []
    projection = model.encoder.projection.forward
    monkeypatch.setattr(model.encoder.projection, "forward", lambda r: sizes.append(len(r)) or projection(r))
    given = BaseModelOutput(last_hidden_state=random_regions(model))
    first = model.generate(encoder_outputs=given, num_beams=4, max_new_tokens=6)
    assert sizes == [2]
    assert len(given.last_hidden_state) == 2
    again = model.generate(encoder_outputs=(given.last_hidden_state,), num_beams=4, max_new_tokens=6)
    assert first.tolist() == again.tolist()


def test_a_training_batch_can_be_handed_to_generate(model):
    regions = random_regions(model)
    image_index = torch.tensor([0, 0, 1])  # of three captions: generate() writes one an image
    sequences = model.generate(encoder_outputs=(regions,), image_index=image_index, num_beams=2, max_new_tokens=4)
    assert len(sequences) == 2


def test_the_model_compiles_with_and_without_labels(model):
    regions, labels = random_regions(model), random_labels(model)
    input_ids = model.prepare_decoder_input_ids_from_labels(labels)
    compiled = torch.compile(model, backend="eager")
    for inputs in ({"labels": labels}, {"decoder_input_ids": input_ids}):
        expected = model(encoder_outputs=(regions,), **inputs).logits
        torch.testing.assert_close(compiled(encoder_outputs=(regions,), **inputs).logits, expected)


def test_transformers_trainer_sees_one_kind_of_labels():
    assert find_labels(GRUCaptionerForConditionalGeneration) == ["labels"]


def test_settings_of_generate_do_what_they_say(model):
    def generate(**settings):
        return model.generate(
            encoder_outputs=encode(model), max_new_tokens=settings.pop("max_new_tokens", 10), **settings
        )

    model.lm_head.bias.data[2] = 2.0  # would end soon
    assert (generate(min_new_tokens=7)[:, 1:8] != 2).all()
    assert (generate(min_length=7)[:, 1:7] != 2).all()
    model.lm_head.bias.data[2] = -9.0
    for row in generate(no_repeat_ngram_size=2, num_beams=3).tolist():
        pairs = list(itertools.pairwise(row))
        assert len(pairs) == len(set(pairs))
    torch.manual_seed(0)
    samples = generate(do_sample=True, num_return_sequences=20, top_k=0)
    assert len(samples) == 40
    assert len({tuple(row) for row in samples.tolist()}) > 30
    assert (generate(suppress_tokens=[5, 6, 7]).unsqueeze(-1) != torch.tensor([5, 6, 7])).all()
    output = generate(
        output_attentions=True, output_hidden_states=True, output_logits=True, return_dict_in_generate=True
    )
    assert len(output.logits) == len(output.cross_attentions) == 10
    assert output.cross_attentions[0][0].shape == (2, 2, 1, 9)
    assert output.decoder_hidden_states[0][0].shape == (2, 1, 16)


def test_attentions_of_generate_are_those_of_one_teacher_forced_forward(model):
    encoder_outputs = encode(model)
    output = model.generate(
        encoder_outputs=copy.copy(encoder_outputs),
        max_new_tokens=5,
        min_new_tokens=5,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    stepwise = torch.cat([step[0] for step in output.cross_attentions], dim=2)
    whole = model(encoder_outputs=encoder_outputs, labels=output.sequences[:, 1:], output_attentions=True)
    torch.testing.assert_close(stepwise, whole.cross_attentions[0])


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_generation_goes_on_from_a_prefix_and_from_a_state(model, name):
    model.generation_config.suppress_tokens = [model.config.pad_token_id]
    encoder_outputs = encode(model)
    whole = model.generate(encoder_outputs=copy.copy(encoder_outputs), max_new_tokens=8, min_new_tokens=8)
    prefix = whole[:, :4]
    from_prefix = model.generate(
        encoder_outputs=copy.copy(encoder_outputs), decoder_input_ids=prefix, max_new_tokens=5, min_new_tokens=5
    )
    assert from_prefix.tolist() == whole.tolist()
    output = model(encoder_outputs=encoder_outputs, decoder_input_ids=prefix[:, :3])
    state = getattr(output, name)
    assert state is output.cache
    step, other_step = (model(encoder_outputs=encoder_outputs, decoder_input_ids=prefix[:, 3:], **{each: state})
                        for each in ("cache", "past_key_values"))  # fmt: skip
    assert torch.equal(step.logits, other_step.logits)
    from_state = model.generate(
        encoder_outputs=copy.copy(encoder_outputs),
        decoder_input_ids=prefix,
        **{name: state},
        max_new_tokens=5,
        min_new_tokens=5,
    )
    assert from_state.tolist() == whole.tolist()


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_a_state_is_shared_by_the_beams_and_left_alone(model, settings):
    encoder_outputs = encode(model)
    prefix = torch.tensor([[0, 5, 6], [0, 7, 8]])
    state = model(encoder_outputs=encoder_outputs, decoder_input_ids=prefix[:, :2]).cache
    before = state.states.clone()
    arguments = {"encoder_outputs": encoder_outputs, "decoder_input_ids": prefix, "max_new_tokens": 5, **settings}
    expected = model.generate(**arguments)
    assert torch.equal(model.generate(**arguments, cache=state), expected)
    assert torch.equal(model.generate(**arguments, cache=state), expected)  # again
    assert torch.equal(state.states, before)
    settings = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 3}
    sampled = model.generate(encoder_outputs=encoder_outputs, decoder_input_ids=prefix, cache=state, **settings)
    assert len(sampled) == 8


def test_a_forward_with_any_number_of_images_can_be_exported(model):
    pixel_values, ids = torch.randn(2, 3, 96, 96), torch.tensor([[0, 4], [0, 6]])
    number = torch.export.Dim("images", min=1, max=64)
    shapes = {"pixel_values": {0: number}, "decoder_input_ids": {0: number}, "use_cache": None}
    inputs = {"pixel_values": pixel_values, "decoder_input_ids": ids, "use_cache": False}
    program = torch.export.export(model, (), inputs, strict=False, dynamic_shapes=shapes).module()
    one, three = ([each[:1].repeat(count, *[1] * (each.ndim - 1)) for each in (pixel_values, ids)] for count in (1, 3))
    expected = model(**inputs).logits[0]
    for images, tokens in (one, three):
        logits = program(pixel_values=images, decoder_input_ids=tokens, use_cache=False).logits
        assert logits.shape == (len(images), 2, model.config.vocab_size)
        torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=1e-4)


def test_captions_go_on_from_what_the_processor_makes_of_their_beginning(model, processor, photo):
    inputs = processor(images=photo, text="A brown dog")
    written = model.generate(**inputs, num_beams=2, num_return_sequences=2, max_new_tokens=3)
    assert all(row[:4] == inputs.decoder_input_ids[0].tolist() for row in written.tolist())
    nothing = processor(images=photo, text="")
    assert torch.equal(model.generate(**nothing), model.generate(pixel_values=nothing.pixel_values))
    for side in ("left", "right"):
        with pytest.raises(ValueError, match="different numbers of tokens"):
            model.generate(**processor(images=[photo, photo], text=["A", "A dog"], padding_side=side))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generate_warns_of_nothing_and_writes_the_same_without_a_cache(model, caplog, num_beams):
    pixel_values = torch.randn(2, 3, 96, 96)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        logging.getLogger("transformers").propagate = True
        written = model.generate(pixel_values=pixel_values, num_beams=num_beams, max_new_tokens=6)
        model.generate(pixel_values=pixel_values, num_beams=num_beams, max_new_tokens=6, return_dict_in_generate=True)
    assert caplog.messages == []
    step_by_step = model.generate(pixel_values=pixel_values, num_beams=num_beams, max_new_tokens=6, use_cache=False)
    assert torch.equal(written, step_by_step)
    model.config.use_cache = False
    assert model(pixel_values=pixel_values, decoder_input_ids=written).cache is None


def test_what_another_release_passes_is_named_and_ignored(model, caplog):
    logging.getLogger("transformers").propagate = True
    inputs = {"pixel_values": torch.randn(1, 3, 96, 96), "decoder_input_ids": torch.tensor([[0, 4]])}
    logits = model(**inputs).logits
    assert torch.equal(model(**inputs, cache_position=torch.arange(2), a_later_name=None).logits, logits)
    assert [message for message in caplog.messages if "ignores a_later_name, cache_position" in message]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({}, "needs an image: pass pixel_values or encoder_outputs"),
        ({"decoder_input_ids": torch.tensor([[0]])}, "needs an image"),
        ({"pixel_values": torch.zeros(3, 96, 96)}, r"found \(3, 96, 96\); one image is pixel_values\[None\]"),
        ({"inputs": torch.zeros(3, 96, 96)}, r"one image is pixel_values\[None\]"),
        ({"pixel_values": torch.zeros(0, 3, 96, 96)}, "hold no image"),
    ],
)
def test_generate_says_what_is_wrong_with_its_images(model, inputs, complaint):
    with pytest.raises(ValueError, match=complaint):
        model.generate(**inputs)
    if "decoder_input_ids" not in inputs and "inputs" not in inputs and inputs:
        with pytest.raises(ValueError, match=complaint):
            model(**inputs, decoder_input_ids=torch.tensor([[0]]))


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_caption_ends_at_a_stop_string(model, processor, photo, num_beams):
    inputs = processor(images=photo, text="A brown dog runs")
    settings = {"num_beams": num_beams, "max_new_tokens": 6, "min_new_tokens": 6}
    (unstopped,) = model.generate(**inputs, **settings)
    (stopped,) = model.generate(**inputs, **settings, stop_strings="dog runs", tokenizer=processor.tokenizer)
    assert processor.decode(stopped).startswith("a brown dog runs")
    assert (stopped != model.config.pad_token_id).sum() < (unstopped != model.config.pad_token_id).sum()
    labels = model.labels_of_sequences(torch.nn.functional.pad(stopped[None], (0, 3), value=model.config.pad_token_id))
    assert labels[0, -3:].tolist() == [-100] * 3


def test_any_of_several_end_tokens_ends_a_caption(make_model):
    model = make_model(eos_token_id=[2, 5])
    with torch.no_grad():
        model.lm_head.bias[5] = 100
    written = model.generate(pixel_values=torch.randn(2, 3, 96, 96), max_new_tokens=6)
    assert written.tolist() == [[0, 5], [0, 5]]
    sequences = torch.tensor([[0, 4, 5, 6, 2], [0, 4, 6, 2, 1], [0, 1, 1, 1, 1]])
    expected = [[4, 5, -100, -100], [4, 6, 2, -100], [1, -100, -100, -100]]
    assert model.labels_of_sequences(sequences).tolist() == expected


def test_weights_that_were_loaded_are_not_drawn_again(model):
    gru = model.decoder.language_gru
    before = gru.weight_ih_l0.clone()
    for parameter in gru.parameters():
        parameter._is_hf_initialized = True  # transformers' mark of what a checkpoint held
    model._init_weights(gru)
    assert torch.equal(gru.weight_ih_l0, before)
    del gru.weight_ih_l0._is_hf_initialized
    model._init_weights(gru)
    assert not torch.equal(gru.weight_ih_l0, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_works_whatever_the_weights_are_in(model, dtype):
    model = model.to(dtype)
    pixel_values = torch.randn(2, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        written = model.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=6)
        loss = model(pixel_values=pixel_values, labels=random_labels(model)).loss
    assert written.shape[0] == 2
    assert loss.isfinite()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamically_quantized_weights_write_nearly_the_same(model):
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear, torch.nn.GRU})
    inputs = {"pixel_values": torch.randn(2, 3, 96, 96), "decoder_input_ids": torch.tensor([[0, 4, 5]] * 2)}
    assert quantized.generate(**inputs, max_new_tokens=3).shape[0] == 2
    difference = (quantized(**inputs).logits - model(**inputs).logits).abs().max()
    assert 0 < difference < 0.3


def test_what_a_recurrent_state_cannot_do_is_refused(model):
    with pytest.raises(NotImplementedError, match="decode again"):
        GRUCache().crop(1)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(pixel_values=torch.randn(1, 3, 96, 96), prompt_lookup_num_tokens=2)


def test_a_cache_never_changes_the_states_it_was_given():
    states = torch.arange(12.0).view(2, 3, 2)
    cache = GRUCache(states, seen_tokens=4)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache.states[0].tolist() == [[4, 5], [0, 1], [0, 1]]
    cache.batch_select_indices(torch.tensor([0]))
    cache.batch_repeat_interleave(2)
    assert cache.states[0].tolist() == [[4, 5], [4, 5]]
    assert (cache.batch_size, len(cache), cache.get_seq_length(), cache.is_initialized) == (2, 2, 4, True)
    assert states.flatten().tolist() == list(range(12))
    cache.reset()
    assert (cache.batch_size, cache.get_seq_length(), cache.is_initialized) == (0, 0, False)


# ------------------------------------------------------------------------------------------------ the vision encoder

SMALL_TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SMALL_CNN = {"hidden_sizes": [16, 24], "depths": [1, 1]}
FAMILIES = {
    # name: configuration, image size, regions, region size
    "resnet": (lambda: ResNetConfig(embedding_size=8, layer_type="basic", **SMALL_CNN), 64, 64, 24),
    "convnext": (lambda: ConvNextConfig(num_stages=2, **SMALL_CNN), 64, 64, 24),
    "vit": (lambda: ViTConfig(image_size=64, patch_size=16, **SMALL_TRANSFORMER), 64, 16, 32),
    "dinov2": (lambda: Dinov2Config(image_size=56, patch_size=14, **SMALL_TRANSFORMER), 56, 16, 32),
    "dinov2-registers": (
        lambda: Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=3, **SMALL_TRANSFORMER),
        56,
        16,
        32,
    ),
    "swin": (
        lambda: SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        64,
        64,
        16,
    ),
    "timm-vgg16": (
        lambda: TimmWrapperConfig(architecture="vgg16", model_args={"features_only": True, "out_indices": [-2]}),
        64,
        16,
        512,
    ),
    "timm-inception-v3": (lambda: TimmWrapperConfig(architecture="inception_v3", do_pooling=False), 107, 4, 2048),
    "timm-resnet50": (lambda: TimmWrapperConfig(architecture="resnet50", do_pooling=False), 64, 4, 2048),
    "timm-efficientnet-lite0": (
        lambda: TimmWrapperConfig(architecture="tf_efficientnet_lite0", do_pooling=False),
        224,
        49,
        1280,
    ),
    "timm-vit": (lambda: TimmWrapperConfig(architecture="test_vit", do_pooling=False), 160, 100, 64),
    "timm-swin": (
        lambda: TimmWrapperConfig(
            architecture="swin_tiny_patch4_window7_224",
            do_pooling=False,
            model_args={"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
        ),
        224,
        49,
        96,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_encoders_gives_the_same_regions_after_saving(make_model, tmp_path, family):
    make_config, image_size, num_regions, region_size = FAMILIES[family]
    model = make_model(encoder_config=make_config())
    pixel_values = torch.randn(2, 3, image_size, image_size)
    regions = model.encoder.vision(pixel_values)
    assert regions.shape == (2, num_regions, region_size)
    assert regions.std() > 0

    model.save_pretrained(tmp_path)
    loaded, info = GRUCaptionerForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded.encoder.vision(pixel_values), regions)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_layer_is_kept_that_the_regions_do_not_need(make_model, family):
    make_config, image_size, _, _ = FAMILIES[family]
    model = make_model(encoder_config=make_config(), freeze_encoder=False)
    model.encoder.vision(torch.randn(2, 3, image_size, image_size)).sum().backward()
    dead = {name for name, parameter in model.encoder.vision.named_parameters() if parameter.grad is None}
    # transformers' ConvNextModel and DINOv2 always have these; together they are as large as one region
    assert dead <= {"backbone.layernorm.weight", "backbone.layernorm.bias", "backbone.embeddings.mask_token"}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_regions_stand_row_by_row_as_the_photo_does(make_model, family):
    """A change in the top left corner must move the first region more than the last."""
    make_config, image_size, _, _ = FAMILIES[family]
    model = make_model(encoder_config=make_config())
    pixel_values = torch.randn(1, 3, image_size, image_size)
    changed = pixel_values.clone()
    changed[:, :, : image_size // 8, : image_size // 8] += 3
    difference = (model.encoder.vision(changed) - model.encoder.vision(pixel_values)).abs().mean(-1)[0]
    assert difference[0] > difference[-1]


FOUR_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
OTHER_FAMILIES = {
    # name: configuration, regions of an image of 64 x 64 pixels, region size
    "clip": (lambda: CLIPVisionConfig(image_size=64, patch_size=16, **SMALL_TRANSFORMER), 16, 32),
    "vit-mae": (lambda: ViTMAEConfig(image_size=64, patch_size=16, **SMALL_TRANSFORMER), 16, 32),
    "deit": (lambda: DeiTConfig(image_size=64, patch_size=16, **SMALL_TRANSFORMER), 16, 32),
    "pvt": (
        lambda: PvtConfig(image_size=64, depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1] * 4),
        4,
        32,
    ),
    "dinov3-convnext": (lambda: DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4), 4, 32),
    "efficientnet": (
        lambda: EfficientNetConfig(image_size=64, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128),
        4,
        128,
    ),
    "mobilevit": (lambda: MobileViTConfig(image_size=64), 4, 640),
}


@torch.no_grad()
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_encoders_give_one_region_per_part_of_the_image(make_model, tmp_path, family):
    make_config, num_regions, region_size = OTHER_FAMILIES[family]
    model = make_model(encoder_config=make_config())
    pixel_values = torch.randn(1, 3, 64, 64)
    regions = model.encoder.vision(pixel_values)
    assert regions.shape == (1, num_regions, region_size)
    assert torch.equal(model.encoder.vision(pixel_values), regions)
    changed = pixel_values.clone()
    changed[:, :, :8, :8] += 3
    difference = (model.encoder.vision(changed) - regions).abs().mean(-1)[0]
    assert difference[0] > difference[-1] or family in ("efficientnet", "mobilevit")  # initial weights see nothing
    model.save_pretrained(tmp_path)
    loaded = GRUCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.vision(pixel_values), regions)


def test_an_encoder_that_does_not_make_regions_of_images_is_refused_by_name(make_model):
    with pytest.raises(ValueError, match=r"bert can't be the vision encoder, .* image: \w") as refusal:
        make_model(encoder_config=BertConfig(**SMALL_TRANSFORMER))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"siglip2_vision_model can't be the vision encoder, .*: .*spatial_shapes"):
        make_model(encoder_config=Siglip2VisionConfig(**SMALL_TRANSFORMER))


def batch_norm_statistics(model):
    return torch.cat([buffer.flatten() for name, buffer in model.named_buffers() if "running_" in name]).clone()


def test_a_frozen_encoder_stays_as_it_is_whatever_train_says(model):
    model.train()
    before = batch_norm_statistics(model)
    loss = model(pixel_values=torch.randn(2, 3, 96, 96), labels=random_labels(model)).loss
    loss.backward()
    assert model.decoder.training
    assert not model.encoder.vision.backbone.training
    assert torch.equal(batch_norm_statistics(model), before)
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.vision.parameters())
    assert model.encoder.projection.keys_and_values.weight.grad is not None


def test_one_switch_unfreezes_the_encoder_and_freezes_it_again(model, tmp_path):
    model.train()
    model.set_encoder_trainable()
    before = batch_norm_statistics(model)
    model(pixel_values=torch.randn(2, 3, 96, 96), labels=random_labels(model)).loss.backward()
    assert all(p.grad is not None for p in model.encoder.vision.parameters())
    assert model.encoder.vision.backbone.training
    assert torch.equal(batch_norm_statistics(model), before)  # the pretrained ones stay
    assert not model.config.freeze_encoder
    model.set_encoder_trainable(False)
    assert not model.encoder.vision.backbone.training
    assert model.config.freeze_encoder

    model.save_pretrained(tmp_path)
    frozen = GRUCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert not any(p.requires_grad for p in frozen.encoder.vision.parameters())
    trainable = GRUCaptionerForConditionalGeneration.from_pretrained(tmp_path, freeze_encoder=False)
    assert all(p.requires_grad for p in trainable.encoder.vision.parameters())


def test_the_encoder_learns_from_a_layer_on(model):
    model.train()
    model.set_encoder_trainable(first_layer="layer3")
    model(pixel_values=torch.randn(2, 3, 96, 96), labels=random_labels(model)).loss.backward()
    learn = {name.split(".")[2] for name, p in model.encoder.vision.named_parameters() if p.grad is not None}
    assert learn == {"layer3", "layer4"}
    stand = {name.split(".")[2] for name, p in model.encoder.vision.named_parameters() if not p.requires_grad}
    assert stand == {"conv1", "bn1", "layer1", "layer2"}
    with pytest.raises(ValueError, match=r"no layer 'layer'; some parameters: timm_model\.conv1"):
        model.set_encoder_trainable(first_layer="layer")
    assert not model.config.freeze_encoder


def test_gradient_checkpointing_of_the_encoder_saves_memory_not_gradients(make_model):
    def gradients(checkpointing):
        model = make_model(dropout=0.0).train()
        model.set_encoder_trainable()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()  # renamed in transformers 5.23
        assert model.is_gradient_checkpointing is model.is_activation_checkpointing is checkpointing
        torch.manual_seed(0)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            loss = model(pixel_values=torch.randn(2, 3, 96, 96), labels=random_labels(model)).loss
        loss.backward()
        return sum(saved), [p.grad for p in model.encoder.vision.parameters()]

    memory, expected = gradients(False)
    less_memory, found = gradients(True)
    assert less_memory < 0.8 * memory
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other)


@pytest.mark.parametrize(
    ("encoder_config", "can"),
    [
        (TimmWrapperConfig(architecture="test_resnet", do_pooling=False), True),
        (TimmWrapperConfig(architecture="test_mambaout", do_pooling=False), True),
        (TimmWrapperConfig(architecture="lcnet_035", do_pooling=False), True),
        (TimmWrapperConfig(architecture="dla46_c", do_pooling=False), False),
    ],
)
def test_a_model_says_whether_its_encoder_can_checkpoint_gradients(make_model, encoder_config, can):
    model = make_model(encoder_config=encoder_config)
    assert model.supports_gradient_checkpointing is can
    assert not model.is_gradient_checkpointing
    assert not model.is_activation_checkpointing
    if not can:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        with pytest.raises(ValueError, match="does not support"):
            enable()


# ------------------------------------------------------------------------------------------- loading, saving, sizes


def test_a_pretrained_encoder_keeps_its_weights_in_a_new_captioner(tmp_path):
    encoder = AutoModel.from_config(TimmWrapperConfig(architecture="test_resnet", do_pooling=False)).eval()
    encoder.to(torch.bfloat16).save_pretrained(tmp_path)
    model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(tmp_path, vocab_size=20, hidden_size=16)
    pixel_values = torch.randn(1, 3, 96, 96)
    expected = encoder.float()(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.eval().encoder.vision(pixel_values), expected)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.vocab_size == 20


def test_a_whole_vgg_loses_its_classifier_and_keeps_its_convolutions(tmp_path):
    TimmWrapperModel(TimmWrapperConfig(architecture="vgg11", do_pooling=False)).eval().save_pretrained(tmp_path)
    whole = TimmWrapperModel.from_pretrained(tmp_path)
    model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 64)
    conv5 = whole.timm_model.features[:-1](pixel_values)  # all but the last pooling
    torch.testing.assert_close(model.encoder.vision(pixel_values), conv5.flatten(2).transpose(1, 2))
    assert sum(p.numel() for p in model.encoder.vision.parameters()) < 10e6


def test_a_misspelt_field_is_refused(tmp_path):
    with pytest.raises(TypeError, match="vocabulary_size is not a field"):
        GRUCaptionerForConditionalGeneration.from_encoder_pretrained(tmp_path, vocabulary_size=9)


@pytest.mark.parametrize("tie", [True, False])
def test_output_layer_and_embeddings_share_weights_when_tied(make_model, tmp_path, tie):
    model = make_model(tie_word_embeddings=tie)
    model.save_pretrained(tmp_path)
    loaded = GRUCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    for each in (model, loaded):
        assert (each.lm_head.weight is each.decoder.embed_tokens.weight) == tie
    regions, labels = random_regions(model), random_labels(model)
    before, after = (each(encoder_outputs=(regions,), labels=labels).logits for each in (model, loaded))
    assert torch.equal(before, after)


def test_the_vocabulary_can_grow(model):
    model.resize_token_embeddings(60, mean_resizing=False)
    assert model.config.vocab_size == 60
    assert model(encoder_outputs=encode(model), labels=random_labels(model)).logits.shape[-1] == 60


def test_weights_missing_from_a_checkpoint_are_initialized_not_left_as_memory(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if "gru" not in name}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = GRUCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    recurrent = loaded.decoder.language_gru.weight_hh_l0.chunk(3)
    for gate in recurrent:
        torch.testing.assert_close(gate @ gate.T, torch.eye(len(gate)), atol=1e-5, rtol=1e-5)
    assert (loaded.decoder.fusion_gru.bias_ih_l0 == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_end_to_end(model, dtype):
    model.to(dtype)
    pixel_values = torch.randn(2, 3, 96, 96)
    sequences = model.generate(pixel_values=pixel_values, num_beams=2, max_new_tokens=4)
    assert sequences.shape[0] == 2
    assert model(pixel_values=pixel_values, labels=random_labels(model)).loss.isfinite()


def test_a_cache_of_another_kind_is_refused_by_name(model):
    inputs = {"pixel_values": torch.randn(1, 3, 96, 96), "decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)}
    for name in ("cache", "past_key_values"):
        with pytest.raises(ValueError, match="cache must be the GRUCache of an earlier call, found DynamicCache"):
            model(**inputs, **{name: DynamicCache()})
        with pytest.raises(ValueError, match="found DynamicCache"):
            model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=2, **{name: DynamicCache()})


def test_guidance_is_refused_wherever_it_is_asked_for(model):
    pixel_values = torch.randn(1, 3, 96, 96)
    ids = {name: getattr(model.config, name) for name in TOKEN_IDS}
    guided = GenerationConfig(max_new_tokens=2, guidance_scale=1.5, **ids)
    refused = pytest.raises(ValueError, match=r"can't be written with guidance_scale \(found 1.5\): leave it out")
    with refused:
        model.generate(pixel_values=pixel_values, guidance_scale=1.5)
    with refused:
        model.generate(pixel_values=pixel_values, generation_config=guided)
    with refused:
        model.generate(pixel_values, guided)
    unguided = model.generate(pixel_values=pixel_values, max_new_tokens=2, guidance_scale=1)
    model.generation_config = guided
    with refused:
        model.generate(pixel_values=pixel_values)
    assert torch.equal(model.generate(pixel_values=pixel_values, guidance_scale=1.0), unguided)
