"""How well a score ranks the images of a class above all others: area under the ROC curve, and average precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracked_cls.statistics.counts import mean_of_known
from tracked_cls.statistics.intervals import Estimate, Floats, around

_SCORES_AT_ONCE = 4_000_000  # images x classes


@dataclass(frozen=True, eq=False)
class Ranking:
    """One number for each of K classes against the rest: `values`, `low` and `high` [K], and their mean over classes.

    A class without images, or (ROC) with nothing but images, is nan and left out of `macro`.
    """

    values: Floats
    low: Floats
    high: Floats
    macro: Estimate


def rank(probabilities: Floats, marks: npt.NDArray[np.bool_]) -> tuple[Ranking, Ranking]:
    """Return the ROC AUC and the average precision of scores [N,K] for images that have the classes marked [N,K].

    Intervals follow from what each image adds to a number: for the AUC this is DeLong, DeLong and Clarke-Pearson, "Comparing
    the Areas under Two or More Correlated ROC Curves", 1988, by sorted ranks as in Sun and Xu, "Fast Implementation of DeLong's
    Algorithm", 2014; for average precision the infinitesimal jackknife (Efron, "The Jackknife, the Bootstrap and Other
    Resampling Plans", 1982, chapter 6). The mean over classes adds up what an image adds to all of them.
    """
    count, num_classes = probabilities.shape
    found: tuple[list[tuple[Floats, Floats]], ...] = ([], [])
    added = np.zeros((2, count))
    for columns in _blocks(count, num_classes):
        runs = _Runs.of(probabilities[:, columns], marks[:, columns])
        for kind, (values, parts) in enumerate((runs.areas(), runs.average_precisions())):
            found[kind].append((values, np.sqrt((parts**2).sum(axis=0))))
            added[kind] += np.where(np.isnan(values), 0.0, parts).sum(axis=1)
    auc, precision = (_ranking(parts, added) for parts, added in zip(found, added, strict=True))
    return auc, precision


def _blocks(count: int, num_classes: int) -> Iterator[slice]:
    step = max(1, _SCORES_AT_ONCE // max(count, 1))
    return (slice(start, start + step) for start in range(0, num_classes, step))


def _ranking(parts: Sequence[tuple[Floats, Floats]], added: Floats) -> Ranking:
    """Return numbers with intervals, from values and standard errors by block, and their mean of error `added` [N]."""
    values, deviations = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    macro = mean_of_known(values)
    num_known = max(int(np.count_nonzero(~np.isnan(values))), 1)
    low, high = around(macro, np.sqrt((added**2).sum()) / num_known)
    return Ranking(values, *around(values, deviations), Estimate(float(macro), float(low), float(high)))


@dataclass(frozen=True, eq=False)
class _Runs:
    """C columns of N scores in ascending order [N,C]: `order` sorts them, `marks` are 1.0 where the image has the class.

    Of each row, `below` and `upto` count the marked ones with a lower score and those with no higher one; `first` and `last`
    are the rows where its run of equal scores begins and ends.
    """

    order: npt.NDArray[np.int64]
    marks: Floats
    below: Floats
    upto: Floats
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats, marks: npt.NDArray[np.bool_]) -> _Runs:
        order = np.argsort(scores, axis=0, kind="stable")
        ordered = np.take_along_axis(scores, order, axis=0)
        sorted_marks = np.take_along_axis(marks, order, axis=0).astype(np.float64)
        rows = np.arange(len(scores))[:, None]
        begins = np.ones(scores.shape, bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        ends = np.ones(scores.shape, bool)
        ends[:-1] = begins[1:]
        first = np.maximum.accumulate(np.where(begins, rows, 0), axis=0)
        last = np.minimum.accumulate(np.where(ends, rows, len(scores) - 1)[::-1], axis=0)[::-1]
        sums = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(sorted_marks, axis=0)])
        below, upto = (np.take_along_axis(sums, at, axis=0) for at in (first, last + 1))
        return cls(order, sorted_marks, below, upto, first, last)

    @property
    def positives(self) -> Floats:
        """Marked rows [C]."""
        return np.asarray(self.marks.sum(axis=0))

    def areas(self) -> tuple[Floats, Floats]:
        """Return the AUC [C], and what each image adds to its error [N,C], in the order of the images."""
        positives, count = self.positives, len(self.order)
        negatives = count - positives
        tied = self.upto - self.below
        size = self.last - self.first + 1
        # share of the unmarked that a marked one beats, and of the marked that beat an unmarked one; a tie counts half
        wins = (self.first - self.below + (size - tied) / 2) / _known(negatives)
        losses = (positives - self.upto + tied / 2) / _known(positives)
        areas = np.where((positives > 0) & (negatives > 0), (self.marks * wins).sum(axis=0) / _known(positives), np.nan)
        scale = np.where(self.marks > 0, _spread(positives), _spread(negatives))
        return areas, self._unsorted((np.where(self.marks > 0, wins, losses) - areas) * scale)

    def average_precisions(self) -> tuple[Floats, Floats]:
        """Return the average precision [C], and what each image adds to its error [N,C], in the order of the images."""
        positives, count = self.positives, len(self.order)
        shown = (count - self.first).astype(np.float64)  # images with no lower score
        precision = (positives - self.below) / shown
        values = (self.marks * precision).sum(axis=0) / _known(positives)
        # another copy of an image helps (if marked) or hurts the precision at every marked one with no higher score
        gain = np.cumsum(self.marks / shown, axis=0)
        loss = np.cumsum(self.marks * precision / shown, axis=0)
        gain, loss = (np.take_along_axis(sums, self.last, axis=0) for sums in (gain, loss))
        parts = (self.marks * (precision - values + gain) - loss) / _known(positives)
        return values, self._unsorted(parts)

    def _unsorted(self, parts: Floats) -> Floats:
        unsorted = np.empty_like(parts)
        np.put_along_axis(unsorted, self.order, parts, axis=0)
        return unsorted


def _known(counts: Floats) -> Floats:
    """Return counts with nan for 0, by which nothing is divided."""
    return np.where(counts > 0, counts, np.nan)


def _spread(counts: Floats) -> Floats:
    """Return 1 / sqrt(n (n - 1)): what turns deviations from a mean into parts of its standard error; of one image 0."""
    return np.where(counts > 1, 1 / np.sqrt(np.maximum(counts * (counts - 1), 1)), 0.0)
