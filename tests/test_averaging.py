"""Averages of weights, against their closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tracked_cls.averaging import MovingAverage, mean_of


def moving(decay, values):
    """Return the average of one weight that takes these values after each step."""
    network = nn.Linear(1, 1)
    average = MovingAverage(network, decay)
    for value in values:
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
    return average.module.weight.item()


def closed_form(decay, values):
    expected = values[0]  # the first step copies
    for step, value in enumerate(values[1:], 2):
        own = min(decay, (1 + step) / (10 + step))
        expected = own * expected + (1 - own) * value
    return expected


@pytest.mark.parametrize("decay", [0.1, 0.3, 0.9, 0.9999])
def test_a_moving_average_is_its_closed_form(decay):
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0]
    assert moving(decay, values) == pytest.approx(closed_form(decay, values), rel=1e-6)


def test_the_warm_up_of_the_decay_ends_at_the_decay():
    values = [1.0] + [0.0] * 60
    weights = [min(0.5, (1 + step) / (10 + step)) for step in range(2, 62)]
    assert moving(0.5, values) == pytest.approx(torch.tensor(weights, dtype=torch.float64).prod().item(), rel=1e-4)
    assert weights[-1] == 0.5
    assert weights[0] == 0.25


def test_buffers_follow_the_network():
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.9)
    network.running_mean.fill_(7.0)
    average.update_parameters(network)
    assert average.module.running_mean.tolist() == [7.0, 7.0]


def test_a_moving_average_is_saved_and_continued():
    network = nn.Linear(1, 1)
    one, other = MovingAverage(network, 0.9), MovingAverage(network, 0.9)
    for value in (1.0, 5.0):
        nn.init.constant_(network.weight, value)
        one.update_parameters(network)
    other.load_state_dict(one.state_dict())
    nn.init.constant_(network.weight, -2.0)
    for average in (one, other):
        average.update_parameters(network)
    assert one.module.weight.item() == other.module.weight.item()


def test_what_is_frozen_stays_bit_equal():
    frozen = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    states = [{"w": frozen.clone(), "v": torch.full((2,), float(epoch))} for epoch in range(3)]
    mean = mean_of(states)
    assert torch.equal(mean["w"], frozen)
    assert mean["v"].tolist() == [1.0, 1.0]


def test_the_mean_of_networks_is_that_of_each_tensor():
    states = [
        {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)},
        {"w": torch.tensor([2.0, 6.0]), "count": torch.tensor(9)},
    ]
    mean = mean_of(states)
    assert mean["w"].tolist() == [1.5, 4.0]
    assert mean["count"].item() == 3
    assert mean["count"].dtype == torch.int64
