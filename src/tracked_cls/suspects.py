"""Which labels are probably wrong, judged by models that never saw the images they judge.

Confident learning: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_TINY = 1e-300  # a probability that rounding made 0 has a logarithm all the same


@dataclass(frozen=True, eq=False)
class Suspects:
    """N labels and how suspect each is.

    `order`: positions, the most suspect first. `rivals`: the class [N] that speaks most against the label. `scores` [N]: the
    logarithm (in nats) of how much likelier the label is than its rival, each taken relative to what is usual for images of
    that class; the lowest is the most suspect, below 0 the rival is the likelier one. `are_errors` [N]: whether confident
    learning counts the label as wrong.
    """

    order: Indices
    rivals: Indices
    scores: Floats
    are_errors: npt.NDArray[np.bool_]


def find_suspects(probabilities: Floats, labels: Indices) -> Suspects:
    """Rank labels [N] by out-of-fold probabilities [N,K]: those that the models contradict most come first.

    The paper's normalised margin, p(label) - max p(other), crowds all that the models are sure about together near -1. Here it
    is taken between logarithms, after each class was divided by its threshold; equal scores go by p(label), then by position.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    relative = np.log(np.maximum(probabilities, _TINY)) - np.log(np.maximum(thresholds(probabilities, labels), _TINY))
    others = relative.copy()
    others[rows, labels] = -np.inf
    rivals = others.argmax(axis=1).astype(np.int64)
    scores = relative[rows, labels] - others[rows, rivals]
    return Suspects(np.lexsort((own, scores)), rivals, scores, _are_errors(probabilities, labels))


def thresholds(probabilities: Floats, labels: Indices) -> Floats:
    """Return for each class [K] the mean probability of it among the images labelled so; 1 for a class without any."""
    sums, counts = np.zeros(probabilities.shape[1]), np.bincount(labels, minlength=probabilities.shape[1])
    np.add.at(sums, labels, probabilities[np.arange(len(labels)), labels])
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def margins(probabilities: Floats, labels: Indices) -> Floats:
    """Return p(label) - max p(other) [N], in [-1, 1]: below 0 another class is the likelier one."""
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return np.asarray(probabilities[rows, labels] - others.max(axis=1))


def _are_errors(probabilities: Floats, labels: Indices) -> npt.NDArray[np.bool_]:
    """Tell which samples lie off the diagonal of the confident joint (the paper's equation 1).

    A sample counts for the likeliest of the classes that it reaches the threshold of; one that reaches none does not count.
    """
    reached = np.where(probabilities >= thresholds(probabilities, labels), probabilities, -1.0)
    return np.asarray((reached.max(axis=1) >= 0) & (reached.argmax(axis=1) != labels))
