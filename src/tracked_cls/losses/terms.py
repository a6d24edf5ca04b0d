"""The loss of each image: [B] of logits [B,K], shares of each class [B,K] and weights of the classes [K] (or [1])."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-12  # below which x ** gamma is flat: its slope is infinite at 0 for gamma below 1


def as_shares(targets: Tensor, num_classes: int) -> Tensor:
    """Return labels [B] as float32 [B,K], 1 at the label; what has that shape already stays."""
    if targets.dim() == 2:
        return targets.float()
    return functional.one_hot(targets, num_classes).to(torch.float32)


# ---- one of the classes: the sum over classes of weight * share * term(log probability) -----------------------------------


def cross_entropy(logits: Tensor, shares: Tensor, class_weights: Tensor) -> Tensor:
    """Return -log p of the class."""
    return -(class_weights * shares * functional.log_softmax(logits, dim=1)).sum(dim=1)


def focal(logits: Tensor, shares: Tensor, class_weights: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p of the class: Lin et al., "Focal Loss for Dense Object Detection", 2017, over a softmax."""
    log_p = functional.log_softmax(logits, dim=1)
    return -(class_weights * shares * _missing(log_p).clamp_min(_TINY) ** gamma * log_p).sum(dim=1)


def poly1(logits: Tensor, shares: Tensor, class_weights: Tensor, epsilon: float) -> Tensor:
    """Return -log p + epsilon (1 - p) of the class: Leng et al., "PolyLoss", 2022, equation 6."""
    log_p = functional.log_softmax(logits, dim=1)
    return (class_weights * shares * (epsilon * _missing(log_p) - log_p)).sum(dim=1)


def mse(logits: Tensor, shares: Tensor, class_weights: Tensor) -> Tensor:
    """Return the squared distance of probabilities to shares, summed over the classes: Brier (1950)."""
    return _of_image(shares, class_weights) * (logits.softmax(dim=1) - shares).square().sum(dim=1)


def l1(logits: Tensor, shares: Tensor, class_weights: Tensor) -> Tensor:
    """Return the absolute distance of probabilities to shares, summed over the classes."""
    return _of_image(shares, class_weights) * (logits.softmax(dim=1) - shares).abs().sum(dim=1)


def _missing(log_p: Tensor) -> Tensor:
    """Return 1 - p, exact where p is near 1."""
    return -torch.expm1(log_p)


def _of_image(shares: Tensor, class_weights: Tensor) -> Tensor:
    return (shares * class_weights).sum(dim=1)


# ---- any number of the classes: the mean over classes of weight * term(logit) ---------------------------------------------


def binary_cross_entropy(logits: Tensor, shares: Tensor, class_weights: Tensor) -> Tensor:
    """Return the cross entropy of each class for itself."""
    return (class_weights * _binary(logits, shares)).mean(dim=1)


def focal_binary(logits: Tensor, shares: Tensor, class_weights: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of each class for itself, as in Lin et al., 2017; its alpha is the weight of the class."""
    p = logits.sigmoid()
    missing = p * (1 - shares) + (1 - p) * shares
    return (class_weights * missing.clamp_min(_TINY) ** gamma * _binary(logits, shares)).mean(dim=1)


def _binary(logits: Tensor, shares: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, shares, reduction="none")
