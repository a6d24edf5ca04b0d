"""Randomness as a pure function of what it is for, so that workers, batches and restarts change nothing.

Every number comes from a counter-based hash (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", 2014) keyed by (seed, epoch, sample, draw).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SEEDS = 2**32  # a stream that no list of transforms reaches


def uniforms(seed: int, epoch: int, keys: npt.NDArray[np.uint64], *, stream: int, draws: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers [B, draws] in [0, 1) for samples with `keys` [B]; `stream` tells one user from another."""
    return (_bits(seed, epoch, keys, stream, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seeds(seed: int, epoch: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a seed [B] for each sample with `keys` [B], for generators that draw as many numbers as they like."""
    return _bits(seed, epoch, keys, _SEEDS, 1)[:, 0]


def permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """Return the order [size] in which an epoch visits positions 0..size-1."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def draw(seed: int, epoch: int, chances: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the positions [N] of an epoch drawn with replacement, each with its probability among `chances` [N]."""
    size = len(chances)
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).choice(size, size, p=chances)


def nth(keys: npt.NDArray[np.uint64], ordinals: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return keys [B] for the repetitions of samples: that of ordinal 0 is the sample's own, the others are new."""
    with np.errstate(over="ignore"):
        return np.where(ordinals == 0, keys, _mix(keys ^ _mix(ordinals)))


def _bits(seed: int, epoch: int, keys: npt.NDArray[np.uint64], stream: int, draws: int) -> npt.NDArray[np.uint64]:
    """Return 64 random bits [B, draws] for each draw of each sample."""
    with np.errstate(over="ignore"):
        head = _mix(np.uint64(seed) * _GOLDEN + np.uint64(epoch))
        head = _mix(head ^ (np.uint64(stream) * _GOLDEN))
        counters = _mix(keys ^ head)[:, None] + np.arange(1, draws + 1, dtype=np.uint64)[None, :] * _GOLDEN
        return _mix(counters)


def _mix(x: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    x = np.asarray(x, dtype=np.uint64) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)
