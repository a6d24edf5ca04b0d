"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tracked_cls.config import LossConfig
from tracked_cls.errors import lookup

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def make_loss(cfg: LossConfig) -> Loss:
    """Return a loss of (logits [B,K], targets, weights [B] or None): the mean over the batch, each image times its weight.

    Targets are labels [B], or a share of each class [B,K]: 0 or 1 where images have several labels, anything between where
    labels were mixed. Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7.
    """
    return partial(_weighted_mean, lookup(cfg.name, _PER_SAMPLE, "loss"), cfg.smoothing)


def _weighted_mean(
    per_sample: Callable[[Tensor, Tensor, float], Tensor],
    smoothing: float,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
) -> Tensor:
    losses = per_sample(logits, targets, smoothing)
    return losses.mean() if weights is None else (losses * weights).mean()


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")


def _binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the mean over the classes of each image [B]; smoothing moves both 0 and 1 towards one half."""
    shares = as_shares(targets, logits.shape[1]).to(logits.dtype)
    smooth = shares * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(dim=1)


def as_shares(targets: Tensor, num_classes: int) -> Tensor:
    """Return labels [B] as float32 [B,K], 1 at the label; what has that shape already stays."""
    if targets.dim() == 2:
        return targets.float()
    return functional.one_hot(targets, num_classes).to(torch.float32)


_PER_SAMPLE = {"cross_entropy": _cross_entropy, "bce": _binary_cross_entropy}
