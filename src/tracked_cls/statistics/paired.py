"""Two models on the same images: whether one is better, by how much, and in which classes it got worse.

Only images that one of them has right and the other wrong tell anything: `gained` are right by the challenger alone, `lost`
by the champion alone. Arrays of any shape are taken, so that a simulation is one call.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracked_cls.statistics.intervals import Estimate

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float64]

_DRAWS = 10_000


def mcnemar(gained: Counts, lost: Counts) -> Probabilities:
    """Return the two-sided p-values of the exact McNemar test [...]: 1 where nothing was gained or lost.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947; exact by the
    binomial distribution of what was gained, given how many differ.
    """
    from scipy.stats import binom  # half a second, where it is needed only

    return np.asarray(np.minimum(2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5), 1.0))


def worsening(gained: Counts, lost: Counts) -> Probabilities:
    """Return the one-sided p-values of the exact McNemar test [...] for having lost more than was gained."""
    from scipy.stats import binom

    return np.asarray(binom.sf(lost - 1, gained + lost, 0.5))


def corrected(p_values: Probabilities, tested: Flags) -> Probabilities:
    """Return p-values [...,M] corrected for the number of tests along the last axis; 1 where nothing was `tested` [...,M].

    Below a level, each is significant at that level however many there are (Holm, "A simple sequentially rejective multiple
    test procedure", 1979).
    """
    values = np.where(tested, p_values, 1.0)
    order = np.argsort(values, axis=-1, kind="stable")
    left = np.maximum(tested.sum(axis=-1, keepdims=True) - np.arange(values.shape[-1]), 1)
    ascending = np.maximum.accumulate(np.take_along_axis(values, order, axis=-1) * left, axis=-1)
    found = np.empty_like(values)
    np.put_along_axis(found, order, np.minimum(ascending, 1.0), axis=-1)
    return found


def class_worsening(gained: Counts, lost: Counts) -> Probabilities:
    """Return for each class [...,K] the p-value of having got worse, corrected for the number of classes.

    A class in which nothing was gained or lost is none of the tests: the exact test takes the number that differ as given, and
    that one could not come out either way (Tarone, "A modified Bonferroni method for discrete data", 1990).
    """
    return corrected(worsening(gained, lost), gained + lost > 0)


def difference(gained: int, lost: int, count: int, *, seed: int = 0) -> Estimate:
    """Return challenger's accuracy minus champion's on `count` images, with its 95 % paired bootstrap interval.

    To draw images with their replacement is to draw how many of them were gained, lost, and neither: multinomial counts.
    """
    draws = np.random.default_rng(seed).multinomial(count, np.array([gained, lost, count - gained - lost]) / count, _DRAWS)
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / count, [2.5, 97.5])
    return Estimate((gained - lost) / count, float(low), float(high))
