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
    loss = make_loss(LossConfig(smoothing=smoothing))(torch.tensor(LOGITS), torch.tensor(LABELS))
    assert float(loss) == pytest.approx(by_hand(smoothing), abs=1e-6)


def test_a_known_value():
    # one sample, logits 0 and 0: every target gives ln 2
    loss = make_loss(LossConfig(smoothing=0.3))(torch.zeros(1, 2), torch.tensor([1]))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)
