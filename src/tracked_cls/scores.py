"""What a network says about images, and whether it is right, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tracked_cls.statistics.counts import Counts

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


class Judged(NamedTuple):
    """M statements of a network: the row [M] of the image, the `confidence` [M] in [0, 1], and whether it was `right` [M]."""

    rows: Indices
    confidence: Floats
    right: Marks


@dataclass(frozen=True, eq=False)
class Scores:
    """What a network says about N images: logits [N,K] float32 and their true labels [N] int64."""

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def tempered(self, temperature: float) -> Self:
        """Return the same with logits divided by a temperature."""
        return self if temperature == 1 else replace(self, logits=(self.logits / temperature).astype(np.float32))

    @property
    def predictions(self) -> Indices:
        """Class with the highest logit [N]."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @cached_property
    def probabilities(self) -> Floats:
        """Probability of each class [N,K]: rows sum to 1, in double precision."""
        shares = np.exp(self._behind)
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    @property
    def _behind(self) -> Floats:
        """How far each logit is behind the highest of its row [N,K], at most 0, in double precision."""
        wide = self.logits.astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        return wide

    @property
    def right(self) -> Marks:
        """Whether the prediction is right [N]."""
        return np.asarray(self.predictions == self.labels)

    @property
    def losses(self) -> Floats:
        """Cross entropy of each image [N], without smoothing, in nats."""
        behind = self._behind
        return np.asarray(np.log(np.exp(behind).sum(axis=1)) - behind[np.arange(len(self.labels)), self.labels])

    @property
    def briers(self) -> Floats:
        """Brier score of each image [N]: squared differences of probability and truth, summed over classes, in [0, 2].

        Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
        """
        return np.asarray(((self.probabilities - self.marks) ** 2).sum(axis=1))

    @property
    def judged(self) -> Judged:
        """One statement for each image: its likeliest class."""
        return Judged(np.arange(len(self.labels)), self.probabilities.max(axis=1), self.right)

    @property
    def marks(self) -> Marks:
        """Whether an image has a class [N,K]."""
        return np.asarray(np.arange(self.logits.shape[1]) == self.labels[:, None])

    @property
    def said(self) -> Marks:
        """Whether an image is predicted to have a class [N,K]."""
        return np.asarray(np.arange(self.logits.shape[1]) == self.predictions[:, None])

    @property
    def counts(self) -> Counts:
        """Hits, predictions and support of each class [K]."""
        return Counts(*(table.sum(axis=0, dtype=np.float64) for table in (self.marks & self.said, self.said, self.marks)))

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return float(self.right.mean())

    @property
    def loss(self) -> float:
        """Mean of `losses`."""
        return float(self.losses.mean())

    def in_top(self, k: int) -> Marks:
        """Whether the label is among the k highest logits [N] (true where there are no more classes than k)."""
        k = min(k, self.logits.shape[1])
        best = np.argpartition(-self.logits, k - 1, axis=1)[:, :k]
        return np.asarray((best == self.labels[:, None]).any(axis=1))

    def top_accuracy(self, k: int) -> float:
        """Share of samples whose label is among the k highest logits (all of them where there are fewer classes)."""
        return float(self.in_top(k).mean())

    def confusion(self) -> Indices | None:
        """Return counts [true, predicted]."""
        table = np.zeros((self.logits.shape[1],) * 2, np.int64)
        np.add.at(table, (self.labels, self.predictions), 1)
        return table


@dataclass(frozen=True, eq=False)
class MultiLabelScores(Scores):
    """What a network says about N images that have any number of labels each: `labels` is uint8 [N,K], 0 or 1."""

    @property
    def predictions(self) -> Indices:
        """1 for each class with a probability above one half [N,K]."""
        return (self.logits > 0).astype(np.int64)

    @cached_property
    def probabilities(self) -> Floats:
        """Probability of each class [N,K], each for itself, in double precision."""
        return np.asarray(np.exp(-np.logaddexp(0.0, -self.logits.astype(np.float64))))

    @property
    def right(self) -> Marks:
        """Whether an image is given exactly the right set of labels [N]."""
        return np.asarray((self.said == self.marks).all(axis=1))

    @property
    def losses(self) -> Floats:
        """Binary cross entropy of each image [N], mean over classes, in nats."""
        wide = self.logits.astype(np.float64)
        return np.asarray(np.logaddexp(0.0, np.where(self.marks, -wide, wide)).mean(axis=1))

    @property
    def briers(self) -> Floats:
        """Brier score of each image [N]: squared difference of probability and truth, mean over classes, in [0, 1]."""
        return np.asarray(((self.probabilities - self.marks) ** 2).mean(axis=1))

    @property
    def judged(self) -> Judged:
        """A statement for each image and class [N*K]: the probability that the image has it, and whether it does."""
        rows = np.repeat(np.arange(len(self.labels)), self.labels.shape[1])
        return Judged(rows, self.probabilities.ravel(), self.marks.ravel())

    @property
    def marks(self) -> Marks:
        """Whether an image has a class [N,K]."""
        return np.asarray(self.labels > 0)

    @property
    def said(self) -> Marks:
        """Whether an image is predicted to have a class [N,K]."""
        return np.asarray(self.logits > 0)

    @property
    def agreement(self) -> Floats:
        """Share of the classes that an image is right about [N]."""
        return np.asarray((self.said == self.marks).mean(axis=1))

    def confusion(self) -> None:
        """There is none: an image is not one class taken for another."""
