"""How well a model's confidence fits how often it is right, and the one number that mends it.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracked_cls.statistics.intervals import Estimate, Floats, Z, percentiles

NUM_BINS = 15
_COLDEST, _HOTTEST = 0.01, 100.0
_SIMULATED = 2000


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against the share that was right, in M bins of confidence.

    `edges` [M+1] from 0 to 1, a bin holds its upper edge; mean `confidence` [M] and `accuracy` [M], the share right, nan in an
    empty bin; `counts` [M]; `ece`: the expected calibration error, the mean over all of |accuracy - confidence| of their bin
    (Guo et al., equation 3).
    """

    edges: Floats
    confidence: Floats
    accuracy: Floats
    counts: npt.NDArray[np.int64]
    ece: float


def reliability(confidence: Floats, right: npt.NDArray[np.bool_], num_bins: int = NUM_BINS) -> Reliability:
    """Compare confidences [N] in [0, 1] with whether each was right [N], in bins of equal width."""
    bins = bins_of(confidence, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    sure, hits = (np.bincount(bins, weights=values, minlength=num_bins) for values in (confidence, right))
    with np.errstate(invalid="ignore"):  # 0 / 0: an empty bin
        mean_confidence, accuracy = sure / counts, hits / counts
    ece = float(np.abs(hits - sure).sum() / len(confidence))
    return Reliability(np.linspace(0, 1, num_bins + 1), mean_confidence, accuracy, counts, ece)


def bins_of(confidence: Floats, num_bins: int = NUM_BINS) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence, 0 to `num_bins` - 1; an upper edge belongs to its bin."""
    return np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], confidence, side="left").astype(np.int64)


def calibration_error(found: Reliability, gaps: Floats, variances: Floats) -> Estimate:
    """Return the expected calibration error with its interval.

    `gaps` [R,M] are resampled sums of right - confidence by bin, `variances` [M] what the sums would have if every confidence
    were true. The error is a sum of absolute values, so chance only adds to it, and its percentile interval would lie above
    itself; so the resampled standard deviation is laid around it. `low` is 0 where perfect calibration explains as much by
    chance (Broecker and Smith, "Increasing the Reliability of Reliability Diagrams", 2007).
    """
    total = found.counts.sum()
    errors = np.abs(gaps).sum(axis=1) / total
    deviation = float(errors.std(ddof=1))
    if np.ptp(errors) == 0:  # one image, or all alike: nothing is known of the error
        return Estimate(found.ece)
    chance = np.abs(np.random.default_rng(0).standard_normal((_SIMULATED, len(variances))) * np.sqrt(variances)).sum(axis=1)
    explained = float(percentiles(chance / total)[1])
    low = 0.0 if found.ece <= explained else max(found.ece - Z * deviation, 0.0)
    return Estimate(found.ece, low, min(found.ece + Z * deviation, 1.0))


def fit_temperature(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.integer]) -> float:
    """Return the temperature T that makes logits / T the likeliest, from validation images that training did not see.

    `logits` [N,K]; `labels` int64 [N], or uint8 [N,K] of 0 and 1. Where every label has the highest logit the likelihood
    alone would take T to 0, however few images say so; so log T is taken to be normal around 0, with deviation 1, before any
    image is seen (the maximum a posteriori). A hundred images outweigh that.
    """
    from scipy.optimize import minimize_scalar  # 0.7 s that nothing else here needs

    loss = _loss_by_heat(logits.astype(np.float64), labels)
    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    found = minimize_scalar(
        lambda heat: loss(heat) + heat**2 / (2 * len(labels)), bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def _loss_by_heat(logits: Floats, labels: npt.NDArray[np.integer]) -> Callable[[float], float]:
    """Return the negative log likelihood of an image, in nats, as a function of log T: the mean, of several labels the sum."""
    if labels.ndim == 2:
        leads = np.where(labels > 0, logits, -logits)  # above 0 where the mark is right
        return lambda heat: float(np.logaddexp(0, -leads / np.exp(heat)).sum(axis=1).mean())
    own = logits[np.arange(len(labels)), labels]
    behind = logits - own[:, None]  # at most 0 everywhere where the label has the highest logit
    highest = behind.max(axis=1, keepdims=True)

    def loss(heat: float) -> float:
        shares = np.exp((behind - highest) / np.exp(heat)).sum(axis=1)
        return float((np.log(shares) + highest[:, 0] / np.exp(heat)).mean())

    return loss
