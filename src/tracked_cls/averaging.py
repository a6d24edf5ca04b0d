"""Averages of weights: over the steps of a training, and over its best epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """An exponential moving average of a network's weights; buffers follow the network.

    After step n (from 1) each weight is decay_n times itself plus (1 - decay_n) times the network's, where decay_n is
    min(decay, (1 + n) / (10 + n)), so that an early average forgets the first weights soon; the first step copies.
    Source: Polyak and Juditsky, 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        super().__init__(network, multi_avg_fn=self._lerp)

    def _lerp(self, averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        steps = int(num_averaged) + 1
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(averages), list(weights), 1 - decay)


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several networks' tensors; whole-number ones (counters), and what is the same in all, are the first's.

    Source: Wortsman et al., "Model soups", 2022, of one training.
    """
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point() or all(torch.equal(first, other) for other in tensors):  # frozen: bit-equal it stays
        return first
    return torch.stack(list(tensors)).mean(dim=0)
