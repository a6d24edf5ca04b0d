"""Numbers with their uncertainty: 95 % confidence intervals of what N images say about all images.

Shares (of images, each right or wrong) get Wilson's score interval: near 0 and 1, and for few images, a bootstrap is too
narrow, and of a perfect score it has no width at all. Brown, Cai and DasGupta, "Interval Estimation for a Binomial
Proportion", 2001, recommend it. What is no share gets the percentile bootstrap over images (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bounds = tuple[Floats, Floats]

RESAMPLES = 1000
Z = 1.959963984540054  # what a standard normal variable exceeds in absolute value 5 times in 100
_TAIL = 0.025
_WEIGHTS_AT_ONCE = 4_000_000  # of resamples x images: 32 MB of them


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval; `low` and `high` are nan where there is none."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


def share(hits: float, total: float) -> Estimate:
    """Return a share of `total` images with Wilson's interval; all nan where there are no images."""
    low, high = wilson(np.float64(hits), np.float64(total))
    return Estimate(float(hits / total) if total else float("nan"), float(low), float(high))


def wilson(hits: npt.ArrayLike, totals: npt.ArrayLike) -> Bounds:
    """Return the bounds of Wilson's score interval for shares `hits` / `totals` of any shape; nan where a total is 0.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    totals = np.asarray(totals, np.float64)
    count = np.where(totals > 0, totals, np.nan)
    value = np.asarray(hits, np.float64) / count
    middle = (value + Z**2 / (2 * count)) / (1 + Z**2 / count)
    width = Z / (1 + Z**2 / count) * np.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    # rounding must not put a bound on the wrong side of the value itself
    return np.maximum(np.minimum(middle - width, value), 0.0), np.minimum(np.maximum(middle + width, value), 1.0)


def around(value: npt.ArrayLike, deviation: npt.ArrayLike) -> Bounds:
    """Return the bounds for numbers in (0, 1) with a normal error on the logit scale, so that they stay inside.

    `deviation` is the standard error of the number itself. Of a number of exactly 0 or 1 no error is known: nan.
    Source: Pepe, "The Statistical Evaluation of Medical Tests for Classification and Prediction", 2003, section 5.2.
    """
    value, deviation = np.asarray(value, np.float64), np.asarray(deviation, np.float64)
    is_inside = (value > 0) & (value < 1)
    safe = np.where(is_inside, value, 0.5)
    centre, width = np.log(safe / (1 - safe)), Z * deviation / (safe * (1 - safe))
    low, high = (1 / (1 + np.exp(-np.clip(centre + sign * width, -700, 700))) for sign in (-1, 1))
    return np.where(is_inside, low, np.nan), np.where(is_inside, high, np.nan)


def percentiles(samples: Floats) -> Bounds:
    """Return the 2.5 % and 97.5 % quantiles of resampled numbers [R,...] along the first axis; nan among them do not count."""
    ordered = np.sort(samples, axis=0)  # nan come last
    known = np.count_nonzero(~np.isnan(samples), axis=0)
    low, high = (_at(ordered, quantile * np.maximum(known - 1, 0)) for quantile in (_TAIL, 1 - _TAIL))
    return low, high


def _at(ordered: Floats, position: Floats) -> Floats:
    """Return what stands at a position [...] between the rows [R,...], linearly interpolated."""
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, np.ceil(position).astype(np.int64))
    first, second = (np.take_along_axis(ordered, rows[None], axis=0)[0] for rows in (below, above))
    return np.asarray(first + (position - below) * (second - first))


def bootstrapped(value: float, samples: Floats) -> Estimate:
    """Return a number with the percentile interval of its resampled values [R]; with none where these are all the same.

    Of a perfect score every resample is perfect, which does not make it certain.
    """
    low, high = percentiles(samples)
    if low == high:
        return Estimate(float(value))
    return Estimate(float(value), float(low), float(high))


def resampled_sums(columns: Any, *, num: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return [R,C]: the sums of the columns of a sparse matrix [N,C] over `num` resamples of N rows with replacement.

    Whatever follows from sums over images is bootstrapped by these, all of it on the same resamples.
    """
    count, num_columns = columns.shape
    by_column = columns.T.tocsr()
    rng = np.random.default_rng(seed)
    sums = np.empty((num, num_columns))
    at_once = max(1, _WEIGHTS_AT_ONCE // count)
    for start in range(0, num, at_once):
        width = min(at_once, num - start)
        cells = rng.integers(count, size=(count, width)) * width + np.arange(width)
        times = np.bincount(cells.ravel(), minlength=count * width).reshape(count, width)  # each row is drawn, by resample
        sums[start : start + width] = (by_column @ times.astype(np.float64)).T
    return sums
