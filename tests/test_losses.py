"""What training minimises, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tracked_cls.config import LossConfig
from tracked_cls.losses import make_loss

LOGITS = [[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]
LABELS = [0, 1]


def by_hand(smoothing):
    """Cross entropy against a target of 1 - s + s/K on the label and s/K elsewhere, mean over samples."""
    total = 0.0
    for logits, label in zip(LOGITS, LABELS, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in logits))
        for index, value in enumerate(logits):
            target = smoothing / 3 + (1 - smoothing if index == label else 0)
            total -= target * (value - log_sum)
    return total / len(LABELS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_with_smoothing_is_the_mean_over_samples(smoothing):
    loss = make_loss(LossConfig(smoothing=smoothing))(torch.tensor(LOGITS), torch.tensor(LABELS), None)
    assert float(loss) == pytest.approx(by_hand(smoothing), abs=1e-6)


def test_a_known_value():
    # one sample, logits 0 and 0: every target gives ln 2
    loss = make_loss(LossConfig(smoothing=0.3))(torch.zeros(1, 2), torch.tensor([1]), None)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)


def test_binary_cross_entropy_by_hand():
    # image 0 has class 0 only, image 1 classes 1 and 2
    targets = torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.uint8)
    total = 0.0
    for logits, wanted in zip(LOGITS, targets.tolist(), strict=True):
        total += sum(math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits, wanted, strict=True)) / 3
    loss = make_loss(LossConfig(name="bce"))(torch.tensor(LOGITS), targets, None)
    assert float(loss) == pytest.approx(total / 2, abs=1e-6)


def test_binary_cross_entropy_of_single_labels_takes_them_as_one_of_each():
    loss_of = make_loss(LossConfig(name="bce", smoothing=0.2))
    hot = torch.eye(3)[LABELS]
    assert torch.equal(loss_of(torch.tensor(LOGITS), torch.tensor(LABELS), None), loss_of(torch.tensor(LOGITS), hot, None))


def test_smoothing_moves_both_sides_of_binary_cross_entropy_to_one_half():
    smooth = make_loss(LossConfig(name="bce", smoothing=0.2))(torch.tensor([[1.0]]), torch.tensor([[1]]), None)
    assert float(smooth) == pytest.approx(0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1)), abs=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_weights_multiply_the_loss_of_each_image(name):
    loss_of = make_loss(LossConfig(name=name))
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    each = [float(loss_of(logits[i : i + 1], labels[i : i + 1], None)) for i in range(2)]
    weighted = float(loss_of(logits, labels, torch.tensor([0.5, 1.5])))
    assert weighted == pytest.approx((0.5 * each[0] + 1.5 * each[1]) / 2, abs=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_extreme_logits_give_finite_losses(name):
    loss = make_loss(LossConfig(name=name))(torch.tensor([[1e4, -1e4]]), torch.tensor([1]), None)
    assert math.isfinite(float(loss))
