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
_ORDER = 2**32 + 1
_WHOLE = 1 << 22
_BLOCK = 1 << 16
_ROUNDS = 8


def uniforms(seed: int, epoch: int, keys: npt.NDArray[np.uint64], *, stream: int, draws: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers [B, draws] in [0, 1) for samples with `keys` [B]; `stream` tells one user from another."""
    return (_bits(seed, epoch, keys, stream, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seeds(seed: int, epoch: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a seed [B] for each sample with `keys` [B], for generators that draw as many numbers as they like."""
    return _bits(seed, epoch, keys, _SEEDS, 1)[:, 0]


def permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """Return the order [size] in which an epoch visits positions 0..size-1."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


class Permutation:
    """The order in which an epoch visits positions 0..size-1, some of it at a time.

    Up to four million positions it is `permutation`. Of more, blocks are worked out as they are asked for, by a Feistel network
    (Luby and Rackoff, "How to construct pseudorandom permutations", 1988) over the next power of two, walked on until it is
    below `size` (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): memory does not grow with the size.
    """

    def __init__(self, seed: int, epoch: int, size: int) -> None:
        self._size = size
        self._whole = permutation(seed, epoch, size) if size <= _WHOLE else None
        self._round_keys = _bits(seed, epoch, np.zeros(1, np.uint64), _ORDER, _ROUNDS)[0]
        self._block_number, self._block = -1, np.empty(0, np.int64)

    def between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the positions visited from `start` to before `stop`."""
        if self._whole is not None:
            return self._whole[start:stop]
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        parts = [self._worked_out(number) for number in range(first, last + 1)]
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return block[start - first * _BLOCK : stop - first * _BLOCK]

    def _worked_out(self, number: int) -> npt.NDArray[np.int64]:
        if number != self._block_number:
            start = number * _BLOCK
            self._block = self._walk(np.arange(start, min(start + _BLOCK, self._size), dtype=np.uint64))
            self._block_number = number
        return self._block

    def _walk(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        found = self._network(positions)
        while len(outside := np.flatnonzero(found >= self._size)):
            found[outside] = self._network(found[outside])
        return found.astype(np.int64)

    def _network(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        bits = (self._size - 1).bit_length()
        low_bits = np.uint64(bits // 2)
        low_mask, high_mask = np.uint64(2 ** (bits // 2) - 1), np.uint64(2 ** (bits - bits // 2) - 1)
        high, low = values >> low_bits, values & low_mask
        for number, key in enumerate(self._round_keys):  # the halves differ by a bit: they take turns, and do not change places
            if number % 2:
                high = high ^ (_mix(low ^ key) & high_mask)
            else:
                low = low ^ (_mix(high ^ key) & low_mask)
        return (high << low_bits) | low


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
