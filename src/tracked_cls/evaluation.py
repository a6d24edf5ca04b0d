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

from tracked_cls import freezing
from tracked_cls.compute import is_out_of_memory, release_memory
from tracked_cls.data.loaders import Batch
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

    @property
    def summary(self) -> dict[str, float]:
        """The numbers that are no averages over classes."""
        return {"accuracy": self.accuracy, f"top{TOP}_accuracy": self.top_accuracy(TOP), "loss": self.loss}

    def confusion(self) -> npt.NDArray[np.int64] | None:
        """Return counts [true, predicted]."""
        table = np.zeros((self.logits.shape[1],) * 2, np.int64)
        np.add.at(table, (self.labels, self.predictions), 1)
        return table


@dataclass(frozen=True)
class MultiLabelScores(Scores):
    """What a network says about N images that have any number of labels each: `labels` is uint8 [N,K], 0 or 1."""

    @property
    def predictions(self) -> npt.NDArray[np.int64]:
        """1 for each class with a probability above one half [N,K]."""
        return (self.logits > 0).astype(np.int64)

    @property
    def accuracy(self) -> float:
        """Share of images with exactly the right set of labels, in [0, 1]."""
        return float((self.predictions == self.labels).all(axis=1).mean())

    @property
    def loss(self) -> float:
        """Binary cross entropy, mean over samples and classes, in nats."""
        targets = torch.from_numpy(self.labels).double()
        return float(functional.binary_cross_entropy_with_logits(torch.from_numpy(self.logits).double(), targets))

    @property
    def summary(self) -> dict[str, float]:
        """The numbers that are no averages over classes; `label_accuracy` is 1 minus the Hamming loss."""
        right = float((self.predictions == self.labels).mean())
        return {"accuracy": self.accuracy, "label_accuracy": right, "loss": self.loss}

    def confusion(self) -> None:
        """There is none: an image is not one class taken for another."""


@dataclass(frozen=True)
class EvalReport:
    """Everything one evaluation says.

    `per_class` holds one row per class: name, precision, recall, f1, support; `confusion` is [true, predicted] counts, None
    where images have several labels.
    """

    classes: tuple[str, ...]
    metrics: dict[str, float]
    per_class: list[dict[str, str | float | int]]
    confusion: npt.NDArray[np.int64] | None


def score(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Run a network in evaluation mode; its own mode is restored afterwards. Several views of an image: mean of logits."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pairs = [(_logits(model, batch), batch.targets.cpu()) for batch in batches]
    finally:
        model.train(was_training)
    logits, labels = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return MultiLabelScores(logits, labels) if labels.ndim == 2 else Scores(logits, labels)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits = _in_halves(model, batch.images).float().cpu()
    return logits if batch.views == 1 else logits.reshape(-1, batch.views, logits.shape[1]).mean(dim=1)


def _in_halves(model: nn.Module, images: Tensor) -> Tensor:
    """Return logits, of half the images at a time where memory does not suffice for all."""
    try:
        logits: Tensor = model(images)
        return logits
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(images) == 1:
            raise
    release_memory(images.device)
    return torch.cat([_in_halves(model, half) for half in torch.tensor_split(images, 2)])


def refresh_batchnorm(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Take BatchNorm's statistics anew, as the plain mean over some training images.

    The running averages lag behind weights that still move fast, which leaves short trainings near chance in evaluation.
    Training itself never reads them. Frozen layers keep theirs.
    Source: Wu and Johnson, "Rethinking Batch in BatchNorm", 2021, section 3.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and not freezing.is_held(module)
    ]
    if not norms:
        return
    momenta, modes = [norm.momentum for norm in norms], [(module, module.training) for module in model.modules()]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # means: cumulative mean
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes:
        module.training = mode


def report(scores: Scores, classes: tuple[str, ...]) -> EvalReport:
    """Compute the numbers of an evaluation (scikit-learn); raises `UserError` where logits are not finite."""
    from sklearn.metrics import precision_recall_fscore_support  # 3 s that training does without

    if not np.isfinite(scores.logits).all():
        bad = int((~np.isfinite(scores.logits)).any(axis=1).sum())
        raise UserError(f"the model gives no finite numbers for {bad} of {len(scores.labels)} images")
    precision, recall, f1, support = precision_recall_fscore_support(
        scores.labels, scores.predictions, labels=np.arange(len(classes)), zero_division=0.0
    )
    rows: list[dict[str, str | float | int]] = [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
    ]
    metrics = {
        **scores.summary,
        "precision_macro": float(np.mean(precision)),
        "recall_macro": float(np.mean(recall)),
        "f1_macro": float(np.mean(f1)),
    }
    return EvalReport(classes, metrics, rows, scores.confusion())
