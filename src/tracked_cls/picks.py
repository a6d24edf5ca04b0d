"""Which images of an evaluation are worth a look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracked_cls.scores import Floats, Indices, MultiLabelScores, Scores


@dataclass(frozen=True)
class Pick:
    """One image by its row in the scores, and the class in question with its probability in [0, 1].

    The class is the predicted one; where images have several labels, the one that is most wrong (or least certain).
    """

    row: int
    target: int
    probability: float


def mistakes(scores: Scores, most: int) -> list[Pick]:
    """Return the most confident mistakes first: by the probability of the wrong class.

    Several labels: by the distance of a label's probability from the truth.
    """
    probabilities = scores.probabilities
    if isinstance(scores, MultiLabelScores):
        targets, errors = _worst_labels(scores)
    else:
        targets, errors = scores.predictions, probabilities.max(axis=1)
    return _picked(_ordered(-errors, np.flatnonzero(~scores.right))[:most], targets, probabilities)


def unsure(scores: Scores, most: int) -> list[Pick]:
    """Return the least certain images first: by the margin of the likeliest class over the next.

    Several labels: by the distance of a label's probability from one half.
    """
    probabilities = scores.probabilities
    every = np.arange(len(probabilities))
    if isinstance(scores, MultiLabelScores):
        distances = np.abs(probabilities - 0.5)
        return _picked(_ordered(distances.min(axis=1), every)[:most], distances.argmin(axis=1), probabilities)
    if probabilities.shape[1] < 2:
        return []
    return _picked(_ordered(_margins(probabilities), every)[:most], scores.predictions, probabilities)


def right(scores: Scores, most: int) -> list[Pick]:
    """Return typical images that are right: of each class, in their order, equally many of the most certain.

    Of more classes than there is room for, evenly spread ones. Several labels: all of an image's are right, and it counts
    for the label it is surest to have.
    """
    probabilities = scores.probabilities
    if isinstance(scores, MultiLabelScores):
        targets, doubts = np.where(scores.marks, probabilities, -1.0).argmax(axis=1), _worst_labels(scores)[1]
    else:
        targets, doubts = scores.predictions, -probabilities.max(axis=1)
    rows = _ordered(doubts, np.flatnonzero(scores.right & scores.marks.any(axis=1)))
    by_class = [rows[targets[rows] == target] for target in _spread(np.unique(targets[rows]), most)]
    each = max(1, most // max(len(by_class), 1))
    return [pick for members in by_class for pick in _picked(members[:each], targets, probabilities)]


def _worst_labels(scores: MultiLabelScores) -> tuple[Indices, Floats]:
    """Return for each image the label furthest from the truth [N], and how far, in [0, 1]."""
    errors = np.abs(scores.probabilities - scores.marks)
    return errors.argmax(axis=1), errors.max(axis=1)


def _margins(probabilities: Floats) -> Floats:
    """Return how much likelier the likeliest class is than the next [N]."""
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def _ordered(values: Floats, rows: Indices) -> Indices:
    """Return rows by their value, least first; of equal ones the earlier first."""
    return rows[np.argsort(values[rows], kind="stable")]


def _spread(classes: Indices, most: int) -> Indices:
    """Return at most so many of the classes, from the first to the last."""
    places = np.linspace(0, len(classes) - 1, min(len(classes), most)).round().astype(np.int64)
    return np.asarray(classes[places])


def _picked(rows: Indices, targets: Indices, probabilities: Floats) -> list[Pick]:
    return [Pick(int(row), int(targets[row]), float(probabilities[row, targets[row]])) for row in rows]
