"""Near copies across splits: proposed by the lowest frequencies of the images, decided by comparing their pixels.

Everything happens in the cosine transform, where a horizontal flip is a change of signs, a blur is a factor per frequency, and
the correlation of two images is a dot product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tracked_cls.data.decode import Pixels
from tracked_cls.data.manifest import Indices, Splits

Floats = npt.NDArray[np.float32]
Images = Callable[[Indices], Pixels]

MAX_COMPARISONS = 5_000_000_000  # about a minute on two cores; beyond it evenly spaced held-out images stand for all

_SIDE = 32  # frequencies per direction that are compared; of smaller images all
_LOWEST = 8  # frequencies per direction that propose
_EVEN = _LOWEST // 2 * _LOWEST - 1  # of these 63, so many have an even horizontal frequency
_CANDIDATES = 8  # images proposed for each held-out one
_PROPOSED = 0.8  # likeness of the lowest frequencies from which pixels are compared
_FLAT = 4  # grey levels: an image of a smaller spread is as good as empty, and like every other such
_BLURS = (0.0, 0.5, 0.7, 0.9, 1.2)  # pixels: what resizing did to one of the two
# the decision, calibrated on planted copies and on MNIST and CIFAR-10 as they are (benchmarks/leakage.py)
_SURE = 0.99  # a copy, however alike the images of the set are
_ALIKE = 0.90  # a copy if the middle one of the candidates ...
_NEARER = 0.25  # ... is four times as far away
_BATCH_VALUES = 1 << 25  # pixel values transformed at once
_CELLS = 1 << 24  # images compared by their lowest frequencies at once
_CHUNKS = 64  # a row of comparisons is searched by the maxima of so many parts


class Pair(NamedTuple):
    """A held-out image and the one it is a near copy of, as positions, with the correlation of their pixels, at most 1."""

    held_out: int
    other: int
    likeness: float
    flipped: bool


@dataclass(frozen=True)
class Likeness:
    """What was found: the `pairs`, most alike first, and how many of the held-out images were `compared`."""

    pairs: Sequence[Pair]
    compared: int
    held_out: int


def near_copies(images: Images, splits: Splits, max_comparisons: int = MAX_COMPARISONS) -> Likeness:
    """Return the image that each of test (among train and val) and of val (among train) is a near copy of, if there is one.

    `images` gives uint8 [B,S,S,C] of some positions, of clips [B,T,S,S,C], whose middle frame counts. A copy may have been
    encoded again, resized or mirrored. Memory stays within some hundred megabytes, and a kilobyte per image.
    """
    gallery = _Gallery(images)
    signatures = gallery.signatures(len(splits))
    pairs: list[Pair] = []
    compared = 0
    for code in (1, 2):
        held_out, others = (np.flatnonzero(chosen).astype(np.int64) for chosen in (splits == code, splits < code))
        held_out = _thinned(held_out, max_comparisons // (2 * max(1, len(others))))
        compared += len(held_out)
        for some, proposed in _proposals(signatures, held_out, others):
            pairs += gallery.decide(some, proposed)
    pairs.sort(key=lambda pair: (-pair.likeness, pair))
    return Likeness(pairs, compared, int(np.count_nonzero(splits > 0)))


def _thinned(indices: Indices, count: int) -> Indices:
    """Return `count` evenly spaced ones, or all where they are fewer."""
    return indices if len(indices) <= count else indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)]


# ---- candidates ------------------------------------------------------------------------------------------------------


def _proposals(signatures: Floats, held_out: Indices, others: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield some held-out images [Q] at a time with the others most similar to each [Q,M], M at most 8, where there are any."""
    if not len(others):
        return
    base = _Base(signatures[others])
    for some in _parts(held_out, max(1, _CELLS // len(others))):
        places, likeness = base.nearest(signatures[some])
        has_any = likeness.max(axis=1) >= _PROPOSED
        yield some[has_any], others[places[has_any]]


class _Base:
    """Signatures [N,63] that others are compared with, flipped or not."""

    def __init__(self, signatures: Floats) -> None:
        self._num = len(signatures)
        padded = np.pad(signatures, ((0, -self._num % _CHUNKS), (0, 0)))
        self._even, self._odd = (np.ascontiguousarray(part.T) for part in (padded[:, :_EVEN], padded[:, _EVEN:]))

    def nearest(self, signatures: Floats) -> tuple[Indices, Floats]:
        """Return the most similar ones of each [Q,M] and how similar they are: exact, by the maxima of interleaved parts."""
        likeness = np.abs(signatures[:, _EVEN:] @ self._odd)  # a flip turns this sum's sign and leaves the other's
        likeness += signatures[:, :_EVEN] @ self._even
        likeness[:, self._num :] = -2
        maxima = likeness.reshape(len(likeness), _CHUNKS, -1).max(axis=1)
        best = _top(maxima, _CANDIDATES)
        columns = (best[:, None] + np.arange(_CHUNKS)[:, None] * maxima.shape[1]).reshape(len(likeness), -1)
        found = np.take_along_axis(likeness, columns, axis=1)
        top = _top(found, min(_CANDIDATES, self._num))
        return np.take_along_axis(columns, top, axis=1), np.take_along_axis(found, top, axis=1)


def _top(values: Floats, count: int) -> Indices:
    """Return the positions of the largest of each row, in no order."""
    if count >= values.shape[1]:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.argpartition(values, -count, axis=1)[:, -count:]


def _parts(indices: Indices, size: int) -> Iterator[Indices]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


# ---- images ----------------------------------------------------------------------------------------------------------


class _Gallery:
    """Images by their frequencies."""

    def __init__(self, images: Images) -> None:
        self._images = images
        one = images(np.zeros(1, np.int64))
        self._batch = max(1, _BATCH_VALUES // one.size)
        self._size = one.shape[-2]
        side = min(self._size, _SIDE)
        squared = (np.arange(side) * np.pi / side) ** 2
        falling = [np.exp(-(blur**2) / 2 * (squared[:, None] + squared)).ravel() for blur in _BLURS]
        self._blurs = np.stack(falling, axis=1).astype(np.float32)  # [m*m, blurs]
        self._mirror = np.repeat(np.where(np.arange(side) % 2, -1, 1), side).astype(np.float32)  # [m*m]

    def _spectra(self, indices: Indices) -> Floats:
        pixels = self._images(indices)
        return spectra(pixels if pixels.ndim == 4 else pixels[:, pixels.shape[1] // 2])

    def signatures(self, num: int) -> Floats:
        """Return the lowest frequencies of the grey images [N,63], those that a flip leaves alone first, as unit vectors.

        Each frequency counts alike, whatever its share in the images of this set. Rows of empty images are 0.
        """
        rows = [self._lowest(batch) for batch in _parts(np.arange(num), self._batch)]
        lowest = np.concatenate(rows)
        lowest /= np.maximum(lowest.std(axis=0), 1e-6)
        lengths = np.linalg.norm(lowest, axis=1, keepdims=True)
        return np.asarray(np.divide(lowest, lengths, out=np.zeros_like(lowest), where=lengths > 0))

    def _lowest(self, indices: Indices) -> Floats:
        grey = self._spectra(indices).mean(axis=1)
        is_flat = np.sqrt((grey**2).sum(axis=(1, 2))) < _FLAT * self._size
        grey[is_flat] = 0
        low = np.zeros((len(grey), _LOWEST, _LOWEST), np.float32)
        low[:, : grey.shape[1], : grey.shape[2]] = grey[:, :_LOWEST, :_LOWEST]
        even, odd = (low[:, start::2].reshape(len(low), -1) for start in (0, 1))
        return np.concatenate([even[:, 1:], odd], axis=1)  # the first is the mean

    def decide(self, held_out: Indices, proposed: Indices) -> Iterator[Pair]:
        """Yield the pairs of held-out images [Q] and one of those proposed for each [Q,M] that are near copies."""
        for rows in _parts(np.arange(len(held_out)), max(1, self._batch // proposed.shape[1])):
            likeness, flipped = self._likeness(held_out[rows], proposed[rows])
            best = likeness.argmax(axis=1)
            nearest = likeness[np.arange(len(rows)), best]
            middle = np.sort(likeness, axis=1)[:, (likeness.shape[1] - 1) // 2]
            is_apart = (nearest >= _ALIKE) & (1 - nearest <= _NEARER * (1 - middle))
            for row in np.flatnonzero((nearest >= _SURE) | is_apart):
                other = proposed[rows[row], best[row]]
                yield Pair(int(held_out[rows[row]]), int(other), float(nearest[row]), bool(flipped[row, best[row]]))

    def _likeness(self, held_out: Indices, proposed: Indices) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the correlation [Q,M] of pixels, one of the two flipped and blurred as fits best, and whether flipped."""
        own = self._spectra(held_out)[:, None]
        other = self._spectra(proposed.ravel()).reshape(*proposed.shape, *own.shape[2:])
        product, own, other = (
            values.sum(axis=2).reshape(*values.shape[:2], -1) for values in (own * other, own * own, other * other)
        )
        scales = [
            np.sqrt(np.maximum((one @ self._blurs**2) * two.sum(axis=2, keepdims=True), 1e-6))
            for one, two in ((own, other), (other, own))
        ]
        plain, mirrored = (
            (numerator @ self._blurs / np.minimum(*scales)).max(axis=2) for numerator in (product, product * self._mirror)
        )
        return np.maximum(plain, mirrored), mirrored > plain


def spectra(pixels: Pixels) -> Floats:
    """Return the cosine transform of uint8 [B,S,S,C] as [B,C,m,m], m at most 32, horizontal frequency first; 0 for the mean."""
    batch, size, _, channels = pixels.shape
    basis = _basis(size, min(size, _SIDE))
    rows = np.moveaxis(pixels, 3, 1).astype(np.float32, order="C").reshape(-1, size) @ basis.T
    columns = np.swapaxes(rows.reshape(batch, channels, size, -1), 2, 3).reshape(-1, size) @ basis.T
    result = columns.reshape(batch, channels, len(basis), len(basis))
    result[:, :, 0, 0] = 0
    return result


def _basis(size: int, count: int) -> Floats:
    """Return the first `count` cosines [count,size] of the orthonormal transform."""
    basis = np.cos(np.arange(count)[:, None] * (np.arange(size) + 0.5) * np.pi / size) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, np.float32)
