"""What an image counts by its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tracked_cls.config import LossConfig
from tracked_cls.errors import UserError, lookup

Counts = Sequence[int]


def make_class_weights(cfg: LossConfig, class_counts: Counts, classes: Sequence[str]) -> Tensor:
    """Return float32 [K] with a mean of 1, 0 for the ignored class; [1] where all count alike.

    The mean is over the training images, each by its own class: a mean over all images of a batch, each times its weight,
    has then the scale of a plain mean, whatever the batch holds, and means of unequal parts of a batch, weighed by their
    images, add up. Losses that judge every class for itself give an image all the weights: there it is over the classes
    that count.
    """
    if cfg.class_weights is None and cfg.ignore_index is None:
        return torch.ones(1)
    weights = torch.tensor(_given(cfg, class_counts, classes), dtype=torch.float64)
    if cfg.ignore_index is not None:
        weights[_ignored_class(cfg.ignore_index, classes)] = 0
    counts = torch.tensor(class_counts, dtype=torch.float64)
    total = float((weights * counts).sum())
    if total == 0:
        raise UserError("loss.class_weights and loss.ignore_index leave no training image that counts")
    if cfg.name in cfg.many_labels:
        return (weights / weights[weights > 0].mean()).float()
    return (weights * float(counts.sum()) / total).float()


def _ignored_class(given: str, classes: Sequence[str]) -> int:
    """Return the number of a class given by its name or its number; an unknown one raises `UserError`."""
    number_by_name = {name: number for number, name in enumerate(classes)}
    if given not in number_by_name and given.isdecimal() and int(given) < len(classes):
        return int(given)
    return lookup(given, number_by_name, "class in loss.ignore_index")


def _given(cfg: LossConfig, counts: Counts, classes: Sequence[str]) -> list[float]:
    given = cfg.class_weights
    if isinstance(given, dict):
        return _by_name(given, classes)
    if isinstance(given, list):
        if len(given) != len(classes):
            raise UserError(f"loss.class_weights must have one number per class ({len(classes)}), got {len(given)}")
        return [float(weight) for weight in given]
    if given is None:
        return [1.0] * len(counts)
    rarity = lookup(given, _RARITY, "loss.class_weights")
    return [rarity(count, cfg) if count else 0.0 for count in counts]


def _by_name(given: Mapping[str, float], classes: Sequence[str]) -> list[float]:
    known = dict.fromkeys(classes, 1.0)
    for name in given:
        lookup(name, known, "class in loss.class_weights")
    return [float(given.get(name, 1.0)) for name in classes]


def _balanced(count: int, cfg: LossConfig) -> float:
    return 1 / count


def _effective(count: int, cfg: LossConfig) -> float:
    """Return Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019, equation 3."""
    assert cfg.effective_beta is not None, "the configuration resolves it"
    return (1 - cfg.effective_beta) / (1 - cfg.effective_beta**count)


_RARITY: Mapping[str, Callable[[int, LossConfig], float]] = {"balanced": _balanced, "effective": _effective}
