"""Precision, recall and F1 of classes, out of how often each was meant, said, and both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracked_cls.statistics.intervals import Bounds, Floats, wilson

AVERAGES = ("macro", "micro", "weighted")


@dataclass(frozen=True, eq=False)
class Counts:
    """Images by class [...,K]: `hits` have the class and are predicted so, `predicted` are predicted so, `support` have it.

    Leading axes hold resamples. A class without images is nan in everything; a class that is never predicted, but has images,
    has a precision of 0.
    """

    hits: Floats
    predicted: Floats
    support: Floats

    @property
    def precision(self) -> Floats:
        """Share of the images predicted as a class that have it [...,K]."""
        return np.where(self.support > 0, self.hits / np.maximum(self.predicted, 1), np.nan)

    @property
    def recall(self) -> Floats:
        """Share of the images of a class that are predicted so [...,K]."""
        return np.where(self.support > 0, self.hits / np.maximum(self.support, 1), np.nan)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall [...,K]."""
        return np.where(self.support > 0, 2 * self.hits / np.maximum(self.predicted + self.support, 1), np.nan)

    def averages(self) -> dict[str, Floats]:
        """Return ``precision_macro``, ``recall_weighted``, ... [...]: means over the classes that have images.

        micro: of the sums over classes; weighted: by support.
        """
        pooled = Counts(*(values.sum(axis=-1) for values in (self.hits, self.predicted, self.support)))
        found: dict[str, Floats] = {}
        for name in ("precision", "recall", "f1"):
            values = getattr(self, name)
            found[f"{name}_macro"] = mean_of_known(values)
            found[f"{name}_micro"] = getattr(pooled, name)
            weighted = np.where(self.support > 0, values, 0) * self.support
            total = self.support.sum(axis=-1)
            found[f"{name}_weighted"] = np.where(total > 0, weighted.sum(axis=-1) / np.maximum(total, 1), np.nan)
        return found

    def bounds(self) -> dict[str, Bounds]:
        """Return intervals [...,K] of precision, recall and f1 by name; nan for a class without images.

        Each is a share: of the images predicted as the class, of those that have it, and F1 is 2 J / (1 + J) of J, the share
        of hits among all images that have the class or are predicted so.
        """
        involved = self.predicted + self.support - self.hits
        low, high = wilson(self.hits, involved)
        found = {
            "precision": wilson(self.hits, self.predicted),
            "recall": wilson(self.hits, self.support),
            "f1": (2 * low / (1 + low), 2 * high / (1 + high)),
        }
        has_images = self.support > 0
        return {name: (np.where(has_images, low, np.nan), np.where(has_images, high, np.nan))
                for name, (low, high) in found.items()}  # fmt: skip


def mean_of_known(values: npt.NDArray[np.float64]) -> Floats:
    """Return the mean over the last axis of what is not nan; nan where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)
