import math

import numpy as np
import pytest
import torch

from hf_gru_captioner.data import CaptionCollator
from hf_gru_captioner.evaluation import DocumentFrequencies
from hf_gru_captioner.training import CrossEntropy, SelfCritical
from hf_gru_captioner.training.label_head import LabelHead, WithLabelLoss, label_frequencies, label_loss

LABELS = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [0.0, 1.0]])  # of three images, one of them unlabelled


def make_head(model, frequencies):
    """A head whose predictions differ between images."""
    head = LabelHead(model.encoder.vision.region_size, frequencies)
    head.linear.weight.data.normal_(std=0.1)
    return head


def test_the_loss_is_the_binary_cross_entropy_of_images_whose_labels_are_known():
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.4, 0.9]])
    labels = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [0.0, 0.0]])
    expected = 0.0
    for row in (0, 2):
        for column in range(2):
            probability = 1 / (1 + math.exp(-logits[row, column]))
            expected -= math.log(probability if labels[row, column] else 1 - probability)
    assert label_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_the_head_reads_the_mean_region_and_begins_with_the_frequencies():
    head = LabelHead(4, [0.25, 1.0])
    regions = torch.randn(3, 5, 4)
    torch.testing.assert_close(head(regions).sigmoid(), torch.tensor([[0.25, 0.9999]]).expand(3, 2))
    head.linear.weight.data.normal_()
    torch.testing.assert_close(head(regions), head(regions.mean(dim=1, keepdim=True)))
    assert not torch.allclose(head(regions)[0], head(regions)[1])


def test_the_labels_of_images_add_to_the_loss_and_teach_the_encoder(model, batch):
    model.set_encoder_trainable()
    head = make_head(model, [0.5, 0.2])
    objective = WithLabelLoss(CrossEntropy(0.2), head, 0.3)
    batch = objective.prepare(model, {**batch, "image_labels": LABELS}, 0.0)
    num_items = objective.num_items(batch)
    loss, _ = objective.loss(model, batch, num_items)

    plain = {name: value for name, value in batch.items() if name != "image_labels"}
    probabilities = head(model.encoder.vision(batch["pixel_values"])).sigmoid()
    right = torch.where(LABELS[[0, 2]] == 1, probabilities[[0, 2]], 1 - probabilities[[0, 2]])
    expected = -right.log().sum() / 2  # a mean over the images whose labels are known
    torch.testing.assert_close(loss, model(**plain, smoothing=0.2).loss + 0.3 * expected)
    assert objective.metrics["label_loss"] == pytest.approx(expected.item(), rel=1e-4)

    (0.3 * objective.metrics["label_loss"] + CrossEntropy(0.2).loss(model, plain, num_items[0])[0]).backward()
    first = next(model.encoder.vision.parameters())
    without = first.grad.clone()
    model.zero_grad()
    loss.backward()
    assert not torch.allclose(first.grad, without)
    assert head.linear.weight.grad.abs().sum() > 0


def test_micro_batches_add_up_to_the_step(model, processor, make_dataset):
    head = make_head(model, [0.5])
    objective, rows = WithLabelLoss(CrossEntropy(0.2), head, 0.3), list(make_dataset(3))
    labels = torch.tensor([[1.0], [torch.nan], [0.0]])

    def prepared(images):
        batch = CaptionCollator(processor)(rows[images])
        return objective.prepare(model, {**batch, "image_labels": labels[images]}, 0.0)

    whole, parts = prepared(slice(3)), [prepared(slice(2)), prepared(slice(2, 3))]
    num_items = objective.num_items(whole)
    torch.testing.assert_close(sum(map(objective.num_items, parts)), num_items)
    expected, _ = objective.loss(model, whole, num_items)
    label_loss_of_step = objective.metrics["label_loss"]
    objective.prepare(model, whole, 0.0)
    torch.testing.assert_close(sum(objective.loss(model, part, num_items)[0] for part in parts), expected)
    assert objective.metrics["label_loss"] == pytest.approx(label_loss_of_step)


def test_a_step_without_labelled_images_learns_from_captions_alone(model, batch):
    head = LabelHead(model.encoder.vision.region_size, [0.5])
    objective = WithLabelLoss(CrossEntropy(scheduled_sampling=0.5), head, 1.0)
    prepared = objective.prepare(model, {**batch, "image_labels": torch.full((3, 1), torch.nan)}, 1.0)
    loss, _ = objective.loss(model, prepared, objective.num_items(prepared))
    plain = {name: value for name, value in prepared.items() if name != "image_labels"}
    torch.testing.assert_close(loss, model(**plain).loss)
    assert objective.metrics == {"label_loss": 0.0}


@pytest.mark.parametrize("encode_once", [True, False])
def test_it_is_added_to_the_loss_of_samples_too(model, batch, encode_once):
    """The labels still reward the samples that name them."""
    model.set_encoder_trainable()
    head = make_head(model, [0.5, 0.2])
    seen = []

    def reward(captions, labels):
        seen.append(labels)
        return np.arange(len(captions))

    samples = SelfCritical(DocumentFrequencies({}, 1, "none"), samples=2, label_reward=reward, encode_once=encode_once)
    objective = WithLabelLoss(samples, head, 0.3)
    prepared = objective.prepare(model, {**batch, "image_labels": LABELS}, 0.0)
    torch.testing.assert_close(seen[0], LABELS.repeat_interleave(2, dim=0), equal_nan=True)
    num_items = objective.num_items(prepared)
    assert num_items[-1] == 2
    model.eval()  # no dropout
    loss, regions = objective.loss(model, prepared, num_items)
    plain = {name: value for name, value in prepared.items() if name != "image_labels"}
    expected = label_loss(head(regions), LABELS) / 2
    torch.testing.assert_close(loss, samples.loss(model, plain, num_items[:-1])[0] + 0.3 * expected)
    assert objective.metrics == {"reward": samples.metrics["reward"], "label_loss": pytest.approx(expected.item())}
    expected.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.encoder.vision.parameters())


def test_labels_are_counted_once_an_image_and_rare_ones_left_out():
    labels = [["horse", "horse", "person"], None, ["horse"], []]
    assert label_frequencies(labels, 1) == {"horse": 2 / 3, "person": 1 / 3}
    assert label_frequencies(labels, 2) == {"horse": 2 / 3}
    assert label_frequencies([None], 1) == {}
