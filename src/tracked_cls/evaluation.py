"""The one loop that scores a set of images, and the numbers that follow from its logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls.errors import UserError

TOP = 5


@dataclass(frozen=True)
class Scores:
    """What a network says about N images: logits [N,K] float32 and their true labels [N] int64."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """Class with the highest logit [N]."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return float((self.predictions == self.labels).mean())

    @property
    def loss(self) -> float:
        """Cross entropy, mean over samples, without smoothing, in nats."""
        return float(functional.cross_entropy(torch.from_numpy(self.logits).double(), torch.from_numpy(self.labels)))

    def top_accuracy(self, k: int) -> float:
        """Share of samples whose label is among the k highest logits (all of them where there are fewer classes)."""
        k = min(k, self.logits.shape[1])
        best = np.argpartition(-self.logits, k - 1, axis=1)[:, :k]
        return float((best == self.labels[:, None]).any(axis=1).mean())


@dataclass(frozen=True)
class EvalReport:
    """Everything one evaluation says.

    `per_class` holds one row per class: name, precision, recall, f1, support; `confusion` is [true, predicted] counts.
    """

    classes: tuple[str, ...]
    metrics: dict[str, float]
    per_class: list[dict[str, str | float | int]]
    confusion: npt.NDArray[np.int64]


def score(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Scores:
    """Run a network in evaluation mode over (images, labels); its own mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pairs = [(model(images).float().cpu(), labels.cpu()) for images, labels in batches]
    finally:
        model.train(was_training)
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return Scores(logits, labels)


def refresh_batchnorm(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Take BatchNorm's statistics anew, as the plain mean over some training images.

    The running averages lag behind weights that still move fast, which leaves short trainings near chance in evaluation.
    Training itself never reads them. Source: Wu and Johnson, "Rethinking Batch in BatchNorm", 2021, section 3.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta, modes = [norm.momentum for norm in norms], [(module, module.training) for module in model.modules()]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # means: cumulative mean
        norm.train()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes:
        module.training = mode


def report(scores: Scores, classes: tuple[str, ...]) -> EvalReport:
    """Compute the numbers of an evaluation (scikit-learn); raises `UserError` where logits are not finite."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # 3 s that training does without

    if not np.isfinite(scores.logits).all():
        bad = int((~np.isfinite(scores.logits)).any(axis=1).sum())
        raise UserError(f"the model gives no finite numbers for {bad} of {len(scores.labels)} images")
    every = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        scores.labels, scores.predictions, labels=every, zero_division=0.0
    )
    rows: list[dict[str, str | float | int]] = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
    ]
    metrics = {
        "accuracy": scores.accuracy,
        f"top{TOP}_accuracy": scores.top_accuracy(TOP),
        "loss": scores.loss,
        "precision_macro": float(np.mean(precision)),
        "recall_macro": float(np.mean(recall)),
        "f1_macro": float(np.mean(f1)),
    }
    confusion = np.asarray(confusion_matrix(scores.labels, scores.predictions, labels=every), dtype=np.int64)
    return EvalReport(classes, metrics, rows, confusion)
