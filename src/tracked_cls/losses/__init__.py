"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from tracked_cls.config import LossConfig
from tracked_cls.errors import UserError, lookup
from tracked_cls.losses import terms
from tracked_cls.losses.class_weights import make_class_weights
from tracked_cls.losses.distillation import Teacher, softened, softened_binary
from tracked_cls.losses.terms import as_shares

__all__ = ["Loss", "Teacher", "as_shares", "distillation", "gradient_share", "make_loss"]


class Loss(Protocol):
    """A loss of logits [B,K]: the mean over the batch, each image times its weight [B], in float32.

    Targets are labels [B], or a share of each class [B,K]: 0 or 1 where images have several labels, anything between where
    labels were mixed. Only distillation looks at the images themselves.
    """

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Return a scalar."""


def make_loss(cfg: LossConfig, class_counts: Sequence[int] = (), classes: Sequence[str] = ()) -> MeanLoss:
    """Return the loss that a configuration names.

    `class_counts` [K] are the training images of each of the `classes`; class weights and ``ignore_index`` need them.
    It is the mean over all images, whatever ``loss.reduction`` says: see `gradient_share`.
    """
    options = {key: getattr(cfg, key) for key in cfg.own[cfg.name]}
    per_image = partial(lookup(cfg.name, _TERMS, "loss"), **options)
    weights = make_class_weights(cfg, class_counts, classes)
    smooth = _smooth_binary if cfg.name in cfg.many_labels else _smooth
    return MeanLoss(per_image, partial(smooth, smoothing=cfg.smoothing), weights)


def distillation(cfg: LossConfig, loss_of: MeanLoss, teacher: Callable[[Tensor], Tensor]) -> Loss:
    """Return a share `alpha` of what the teacher says and 1 - alpha of `loss_of`; it must be given the images.

    The teacher's part is the divergence of its probabilities at a temperature from the student's, softmax or, with losses
    that judge every class for itself, sigmoid; times temperature squared, so that gradients keep their size. It leaves
    out images of the ignored class, as the loss does.
    """
    assert cfg.alpha is not None
    assert cfg.temperature is not None
    many = cfg.name in cfg.many_labels
    compare = partial(softened_binary if many else softened, temperature=cfg.temperature)
    return _Taught(loss_of, teacher, compare, cfg.alpha, None if many else loss_of.counting)


def gradient_share(cfg: LossConfig, count: int, total: int) -> float:
    """Return what the mean over `count` images of a step's `total` is multiplied with before the backward pass.

    Their share of the step; with ``loss.reduction=sum`` their number.
    """
    return float(count) if cfg.reduction == "sum" else count / total


PerImage = Callable[[Tensor, Tensor, Tensor], Tensor]


class MeanLoss:
    """The mean over a batch of the loss of each image."""

    def __init__(self, per_image: PerImage, smooth: Callable[[Tensor], Tensor], class_weights: Tensor) -> None:
        self._per_image, self._smooth, self._class_weights = per_image, smooth, class_weights

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        class_weights = self._class_weights.to(logits.device, non_blocking=True)
        shares = self._shares(targets, logits, class_weights)
        return _mean(self._per_image(logits.float(), self._smooth(shares), class_weights), weights)

    def counting(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Return which part of each image's label counts [B]: 0 for the ignored class, between for mixed ones."""
        return self._shares(targets, logits, self._class_weights.to(logits.device, non_blocking=True)).sum(dim=1)

    def _shares(self, targets: Tensor, logits: Tensor, class_weights: Tensor) -> Tensor:
        return as_shares(targets, logits.shape[1]) * (class_weights > 0)


class _Taught:
    """A loss with a teacher's part."""

    def __init__(
        self,
        loss_of: Loss,
        teacher: Callable[[Tensor], Tensor],
        compare: Callable[[Tensor, Tensor], Tensor],
        alpha: float,
        counting: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        self._loss_of, self._teacher, self._compare, self._alpha = loss_of, teacher, compare, alpha
        self._counting = counting

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        assert images is not None, "a teacher looks at the images"
        taught = self._teacher(images)
        if taught.shape != logits.shape:
            raise UserError(f"loss.teacher knows {taught.shape[1]} classes, the data have {logits.shape[1]}")
        divergence = self._compare(logits.float(), taught)
        if self._counting is not None:
            divergence = divergence * self._counting(targets, logits)
        return self._alpha * _mean(divergence, weights) + (1 - self._alpha) * self._loss_of(logits, targets, weights)


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (losses * weights).mean()


def _smooth(shares: Tensor, smoothing: float) -> Tensor:
    """Spread a part of every image's label over all classes.

    Source: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7. What does not count stays without label.
    """
    return shares * (1 - smoothing) + shares.sum(dim=1, keepdim=True) * smoothing / shares.shape[1]


def _smooth_binary(shares: Tensor, smoothing: float) -> Tensor:
    """Move both 0 and 1 towards one half."""
    return shares * (1 - smoothing) + smoothing / 2


_TERMS: Mapping[str, Callable[..., Any]] = {
    "cross_entropy": terms.cross_entropy,
    "bce": terms.binary_cross_entropy,
    "focal": terms.focal,
    "focal_bce": terms.focal_binary,
    "poly1": terms.poly1,
    "mse": terms.mse,
    "l1": terms.l1,
}
