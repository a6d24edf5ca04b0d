"""Which samples an epoch visits, batch by batch. Nothing here is as long as the epoch, but what a sampler draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from tracked_cls import randomness
from tracked_cls.data.manifest import Indices, Keys, Manifest
from tracked_cls.distributed import Ranks
from tracked_cls.errors import UserError

T = TypeVar("T")
Chances = npt.NDArray[np.float64]


class Drawn(NamedTuple):
    """Samples in the order of their visit: positions in the manifest [B], and the keys [B] that drive their augmentation."""

    indices: Indices
    keys: Keys


class Lazy(Sequence[T], Generic[T]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, size: int, make: Callable[[int], T]) -> None:
        self._size = size
        self._make = make

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy[T]: ...
    def __getitem__(self, index: int | slice) -> T | Lazy[T]:
        if isinstance(index, slice):
            numbers = range(self._size)[index]
            return Lazy(len(numbers), lambda number: self._make(numbers[number]))
        return self._make(range(self._size)[index])


@dataclass(frozen=True, eq=False)
class Order:
    """An epoch of `size` visits in `num_batches` batches that differ by one at most; `visits(start, stop)` gives some."""

    size: int
    num_batches: int
    visits: Callable[[int, int], Drawn]

    def batch(self, number: int) -> Drawn:
        """Return a batch, by its number from 0."""
        return self.visits(*self._bounds(number))

    def length_of(self, number: int) -> int:
        """Return how many visits a batch has."""
        start, stop = self._bounds(number)
        return stop - start

    def part(self, number: int, ranks: Ranks, before: int) -> Drawn:
        """Return a process's part of a batch, with as many of the visits `before` it; the batch is a ring."""
        start, stop = self._bounds(number)
        part = ranks.share(stop - start)
        if not before:
            return self.visits(start + part.start, start + part.stop)
        whole, places = self.visits(start, stop), np.arange(part.start - before, part.stop)
        return Drawn(whole.indices[places], whole.keys[places])

    def _bounds(self, number: int) -> tuple[int, int]:
        each, more = divmod(self.size, self.num_batches)
        start = number * each + min(number, more)
        return start, start + each + (number < more)


def in_order(manifest: Manifest, indices: Indices) -> Callable[[int, int], Drawn]:
    """Visit samples as they come."""

    def visits(start: int, stop: int) -> Drawn:
        chosen = indices[start:stop]
        return Drawn(chosen, manifest.keys[chosen])

    return visits


def shuffled(manifest: Manifest, indices: Indices, *, seed: int, epoch: int) -> Callable[[int, int], Drawn]:
    """Visit all samples once, in the random order of (seed, epoch)."""
    places = randomness.Permutation(seed, epoch, len(indices))

    def visits(start: int, stop: int) -> Drawn:
        chosen = indices[places.between(start, stop)]
        return Drawn(chosen, manifest.keys[chosen])

    return visits


def sampled(manifest: Manifest, indices: Indices, chances: Chances, *, seed: int, epoch: int) -> Callable[[int, int], Drawn]:
    """Visit as many samples, drawn with replacement with `chances` [N]; each copy is augmented differently."""
    order = indices[randomness.draw(seed, epoch, chances)]
    keys = _occurrences(manifest.keys[order], order)
    return lambda start, stop: Drawn(order[start:stop], keys[start:stop])


def chances_of(manifest: Manifest, indices: Indices, sampler: str) -> Chances:
    """Return the probability of each sample to be drawn [N]: by its weight, or so that every class comes equally often."""
    if sampler == "weights":
        chances = np.asarray(manifest.weights[indices], np.float64)
    else:
        labels = np.asarray(manifest.labels[indices])
        chances = 1.0 / np.bincount(labels)[labels]
    if not chances.sum() > 0:
        raise UserError("loader.sampler=weights: all weights of the training images are 0")
    return np.asarray(chances / chances.sum())


def _occurrences(keys: Keys, order: Indices) -> Keys:
    """Return keys that differ where a sampler draws the same image again, so that each copy is augmented differently."""
    if len(np.unique(order)) == len(order):
        return keys
    by_index = np.argsort(order, kind="stable")
    first = np.concatenate([[True], np.diff(order[by_index]) > 0])
    starts = np.flatnonzero(first)
    ordinal = np.empty(len(order), np.uint64)
    ordinal[by_index] = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return randomness.nth(keys, ordinal)
