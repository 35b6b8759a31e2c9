import copy

import numpy as np
import pytest
import torch

from hf_gru_captioner.evaluation import CaptionSet, bleu_scores, cider_scores
from hf_gru_captioner.label_names import LabelNames
from hf_gru_captioner.training import SelfCritical, count_ngrams
from hf_gru_captioner.training.scst import LabelReward, as_words

END = 2


@pytest.fixture
def frequencies(processor, make_dataset):
    return count_ngrams(processor.tokenizer(captions)["input_ids"] for captions in make_dataset(4)["captions"])


@pytest.fixture
def writer(model):
    model.generation_config.update(max_new_tokens=6, suppress_tokens=[0, 1, 3])
    return model.train()


def test_frequencies_count_photos_and_the_end_token(frequencies, processor):
    assert frequencies.images == 4
    assert frequencies.counts[str(END)] == 4
    dog = processor.tokenizer.convert_tokens_to_ids("dog")
    assert frequencies.counts[str(dog)] == 2  # two of the four photos


def test_samples_stand_image_by_image_and_end_with_their_end_token(writer, batch, frequencies):
    torch.manual_seed(0)
    prepared = SelfCritical(frequencies, samples=4).prepare(writer, batch, 0.0)
    assert prepared["labels"].shape[0] == 12
    assert prepared["image_index"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for row in prepared["labels"].tolist():
        words = [token for token in row if token >= 0]
        assert row == words + [-100] * (len(row) - len(words))
        assert END not in words[:-1]
        assert words[-1] == END or len(words) == 6
        assert not {0, 1, 3} & set(words)
    assert writer.training


def test_samples_are_free_of_the_rules_of_the_search(writer, batch, frequencies):
    """Otherwise they would be rarer or more frequent than their probability says."""
    writer.generation_config.update(num_beams=3, length_penalty=0.9, no_repeat_ngram_size=1)
    torch.manual_seed(0)
    samples = SelfCritical(frequencies, samples=6).prepare(writer, batch, 0.0)["labels"].tolist()
    words = [[token for token in row if token > END] for row in samples]
    assert any(len(set(of_sample)) < len(of_sample) for of_sample in words)


@pytest.mark.parametrize(
    ("trained", "encode_once", "runs"), [(False, True, 1), (False, False, 1), (True, True, 1), (True, False, 2)]
)
def test_the_encoder_runs_once_for_sampling_and_learning(writer, batch, frequencies, trained, encode_once, runs):
    writer.set_encoder_trainable(trained)
    calls = []
    writer.encoder.vision.register_forward_hook(lambda *_: calls.append(1))
    objective = SelfCritical(frequencies, samples=2, encode_once=encode_once)
    prepared = objective.prepare(writer, batch, 0.0)
    objective.loss(writer, prepared, objective.num_items(prepared))[0].backward()
    assert len(calls) == runs
    assert writer.encoder.projection.keys_and_values.weight.grad is not None
    assert writer.training
    of_encoder = [parameter.grad is not None for parameter in writer.encoder.vision.parameters()]
    assert all(of_encoder) if trained else not any(of_encoder)


def test_gradients_are_the_same_whether_the_encoder_runs_once_or_twice(writer, batch, frequencies):
    writer.set_encoder_trainable(True)
    writer.eval()  # no dropout, to compare
    gradients = []
    for encode_once in (True, False):
        torch.manual_seed(2)
        writer.zero_grad()
        objective = SelfCritical(frequencies, samples=2, cross_entropy_weight=0.2, encode_once=encode_once)
        prepared = objective.prepare(writer, batch, 0.0)
        objective.loss(writer, prepared, objective.num_items(prepared))[0].backward()
        gradients.append({name: each.grad.clone() for name, each in writer.named_parameters() if each.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("bleu_weight", [0.0, 2.0])
def test_the_advantage_is_the_reward_above_the_other_samples_mean(writer, batch, frequencies, bleu_weight):
    torch.manual_seed(1)
    objective = SelfCritical(frequencies, samples=3, bleu_weight=bleu_weight)
    prepared = objective.prepare(writer, batch, 0.0)
    samples = as_words(prepared["labels"])
    people = as_words(batch["labels"])
    references = [people[2 * image : 2 * image + 2] for image in range(3) for _ in range(3)]
    captions = CaptionSet(samples, references, "none")
    rewards = cider_scores(captions, frequencies) + bleu_weight * bleu_scores(captions).per_image[:, 3]
    assert rewards.max() > 0
    rewards = rewards.reshape(3, 3)
    expected = [[rewards[i, k] - np.delete(rewards[i], k).mean() for k in range(3)] for i in range(3)]
    np.testing.assert_allclose(prepared["advantage"].view(3, 3), expected, atol=1e-6)
    assert objective.metrics["reward"] == pytest.approx(rewards.mean())


def test_the_greedy_baseline_is_the_reward_of_the_greedy_caption(writer, batch, frequencies):
    torch.manual_seed(1)
    prepared = SelfCritical(frequencies, samples=1, baseline="greedy").prepare(writer, batch, 0.0)
    greedy = copy.deepcopy(writer).eval().generate(pixel_values=batch["pixel_values"], max_new_tokens=6)
    people = as_words(batch["labels"])
    for image in range(3):
        words = [" ".join(str(token) for token in greedy[image, 1:].tolist() if token != 1)]
        words.append(as_words(prepared["labels"])[image])
        both = cider_scores(CaptionSet(words, [people[2 * image : 2 * image + 2]] * 2, "none"), frequencies)
        assert prepared["advantage"][image].item() == pytest.approx(both[1] - both[0], abs=1e-6)


def test_a_caption_that_stops_in_the_middle_earns_less_than_a_whole_one(frequencies, processor):
    people = processor.tokenizer(["a brown dog runs through the grass"])["input_ids"]
    references = [[" ".join(map(str, people[0]))]]
    objective = SelfCritical(frequencies)
    whole, cut = torch.tensor(people), torch.tensor([people[0][:-1]])
    assert objective._rewards(whole, references, 1) > 1.05 * objective._rewards(cut, references, 1)


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.3, 0.5)])
def test_the_loss_is_the_policy_gradients_and_the_cross_entropys(writer, batch, frequencies, share, temperature):
    writer.eval()  # no dropout, to compare
    torch.manual_seed(2)
    objective = SelfCritical(frequencies, samples=2, cross_entropy_weight=share, temperature=temperature)
    prepared = objective.prepare(writer, batch, 0.0)
    num_items = objective.num_items(prepared)
    loss, _ = objective.loss(writer, prepared, num_items)
    expected = 0.0
    for row in range(6):
        labels = prepared["labels"][row : row + 1]
        logits = writer(pixel_values=batch["pixel_values"][row // 2][None], labels=labels).logits[0]
        nll = torch.nn.functional.cross_entropy(logits / temperature, labels[0], reduction="sum")
        expected = expected + (1 - share) * prepared["advantage"][row] * nll / num_items[0]
    if share:
        expected = expected + share * writer(**batch).loss
        assert num_items[1] == (batch["labels"] >= 0).sum()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)


def test_references_count_with_their_weights_and_samples_alike(writer, batch, frequencies):
    writer.eval()
    objective = SelfCritical(frequencies, samples=2, cross_entropy_weight=0.4)

    def loss_of(batch):
        torch.manual_seed(2)
        prepared = objective.prepare(writer, batch, 0.0)
        return objective.loss(writer, prepared, objective.num_items(prepared))[0]

    weighted = {**batch, "caption_weights": torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0, 3.0])}
    difference = writer(**weighted).loss - writer(**batch).loss
    assert abs(difference) > 1e-3
    torch.testing.assert_close(loss_of(weighted) - loss_of(batch), 0.4 * difference, atol=1e-5, rtol=1e-3)


def test_a_low_temperature_samples_what_a_search_would_write(writer, batch, frequencies):
    greedy = writer.eval().generate(pixel_values=batch["pixel_values"], max_new_tokens=6)
    prepared = SelfCritical(frequencies, samples=2, temperature=1e-4).prepare(writer, batch, 0.0)
    written = [" ".join(str(token) for token in row[1:].tolist() if token != 1) for row in greedy]
    assert as_words(prepared["labels"]) == [caption for caption in written for _ in range(2)]


def test_training_raises_the_reward(writer, batch, frequencies):
    torch.manual_seed(0)
    objective = SelfCritical(frequencies, samples=8)
    optimizer = torch.optim.Adam([each for each in writer.parameters() if each.requires_grad], lr=2e-2)
    rewards = []
    for _ in range(100):
        prepared = objective.prepare(writer, batch, 0.0)
        rewards.append(objective.metrics["reward"])
        optimizer.zero_grad()
        objective.loss(writer, prepared, objective.num_items(prepared))[0].backward()
        optimizer.step()
    assert sum(rewards[-10:]) > 1.1 * sum(rewards[:10])  # the random start differs by release


def test_one_sample_has_nothing_to_be_compared_with(frequencies):
    with pytest.raises(ValueError, match="at least 2 are needed, found 1"):
        SelfCritical(frequencies, samples=1)


def test_naming_labels_is_rewarded_and_naming_what_is_not_there_costs(writer, batch, frequencies, processor):
    names = LabelNames(["dog", "hot dog", "child"], {"child": ["girl"]})
    reward = LabelReward(["child", "dog", "hot_dog"], names, processor.batch_decode, weight=0.5)
    texts = ["A brown dog runs", "Two children play", "A girl and a brown dog", "The beach", "A brown dog"]
    captions = processor.encode_captions(texts)
    has = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [torch.nan] * 3])
    assert reward(captions, has).tolist() == [0.5, -0.5, 0.0, 0.0, 0.0]

    plain = SelfCritical(frequencies, samples=2)
    labelled = SelfCritical(frequencies, samples=2, label_reward=lambda captions, labels: labels[:, 0].numpy())
    torch.manual_seed(0)
    before = plain.prepare(writer, batch, 0.0)
    torch.manual_seed(0)
    number = int(batch["image_index"].max()) + 1
    after = labelled.prepare(writer, {**batch, "image_labels": torch.arange(number)[:, None] + 1.0}, 0.0)
    assert torch.equal(before["labels"], after["labels"])
    assert torch.allclose(before["advantage"], after["advantage"], atol=1e-5)  # the same for all samples of an image
    assert labelled.metrics["reward"] == pytest.approx(plain.metrics["reward"] + (number + 1) / 2, abs=1e-5)
