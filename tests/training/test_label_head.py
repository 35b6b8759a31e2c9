import math

import pytest
import torch

from hf_gru_captioner.training.label_head import LabelHead, label_frequencies, label_loss


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


def test_labels_are_counted_once_an_image_and_rare_ones_left_out():
    labels = [["horse", "horse", "person"], None, ["horse"], []]
    assert label_frequencies(labels, 1) == {"horse": 2 / 3, "person": 1 / 3}
    assert label_frequencies(labels, 2) == {"horse": 2 / 3}
    assert label_frequencies([None], 1) == {}
