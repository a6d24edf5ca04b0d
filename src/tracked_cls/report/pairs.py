"""Runs tested against each other on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracked_cls.errors import UserError
from tracked_cls.report.artifacts import SPLITS, Predictions, RunFacts, read_predictions
from tracked_cls.statistics.intervals import Estimate
from tracked_cls.statistics.paired import corrected, difference, mcnemar

ALPHA = 0.05
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # what runs are called, the first A

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """One run compared with the first, on the same `count` images of a split.

    `gained` images are right by this run alone, `lost` by the first alone; `p` is of the exact McNemar test, `p_corrected` by
    Holm for all pairs of the page.
    """

    run: int
    split: str
    count: int
    gained: int
    lost: int
    difference: Estimate
    p: float
    p_corrected: float

    @property
    def is_shown(self) -> bool:
        """Whether the difference is more than chance, at the level of 0.05 over all pairs."""
        return self.p_corrected < ALPHA

    @property
    def verdict(self) -> str:
        """Better, worse, or neither as far as these images tell."""
        return ("better" if self.gained > self.lost else "worse") if self.is_shown else "no difference shown"


@dataclass(frozen=True)
class Compared:
    """Pairs with the first run, and in words why others could not be compared."""

    pairs: Sequence[Pair]
    refused: Sequence[str]


def compare(runs: Sequence[RunFacts]) -> Compared:
    """Test each run against the first one, image by image; only runs scored on the very same images are."""
    counted: list[tuple[int, str, int, int, int]] = []
    refused = []
    read = _Reader(runs)
    for place in range(1, len(runs)):
        try:
            counted.append(_count(read, place))
        except UserError as error:
            refused.append(f"{letter(place)} was not tested against A: {error}.")
    gained, lost = (np.array([found[column] for found in counted], np.int64) for column in (3, 4))
    p_values = mcnemar(gained, lost) if counted else np.array([])
    holm = corrected(p_values, np.ones(len(counted), bool)) if counted else p_values
    pairs = [
        Pair(*found, difference(found[3], found[4], found[2]), float(p), float(p_holm))
        for found, p, p_holm in zip(counted, p_values, holm, strict=True)
    ]
    return Compared(pairs, refused)


class _Reader:
    """Predictions of runs by place and split, each read once."""

    def __init__(self, runs: Sequence[RunFacts]) -> None:
        self._runs = runs
        self._read: dict[tuple[int, str], Predictions] = {}

    def splits(self, place: int) -> list[str]:
        """Return the splits that a run has predictions for."""
        return [split for split in SPLITS if _predictions_file(self._runs[place], split).is_file()]

    def __call__(self, place: int, split: str) -> Predictions:
        if (place, split) not in self._read:
            try:
                self._read[place, split] = read_predictions(_predictions_file(self._runs[place], split))
            except UserError as error:
                raise UserError(f"{letter(place)}: {error}") from None
        return self._read[place, split]


def _predictions_file(run: RunFacts, split: str) -> Path:
    return run.folder / "tables" / f"{split}_predictions.parquet"


def _count(read: _Reader, place: int) -> tuple[int, str, int, int, int]:
    """Return (place, split, images, gained, lost); raises `UserError` where the two were not scored on the same images."""
    for one in (0, place):
        if not read.splits(one):
            raise UserError(f"{letter(one)} has no predictions; score it: -e evaluate -P model=runs:/<id>")
    shared = [split for split in read.splits(0) if split in read.splits(place)]
    if not shared:
        raise UserError(
            f"A was scored on {' and '.join(read.splits(0))}, {letter(place)} on {' and '.join(read.splits(place))}"
        )
    first, other = read(0, shared[0]), read(place, shared[0])
    by_first, by_other = np.argsort(first.ids), np.argsort(other.ids)
    _require_same_images(first, other, by_first, by_other)
    right_first, right_other = first.right[by_first], other.right[by_other]
    gained, lost = int((right_other & ~right_first).sum()), int((right_first & ~right_other).sum())
    return place, shared[0], len(first.ids), gained, lost


def _require_same_images(first: Predictions, other: Predictions, by_first: Indices, by_other: Indices) -> None:
    if not np.array_equal(first.ids[by_first], other.ids[by_other]):
        common = len(set(first.ids.tolist()) & set(other.ids.tolist()))
        raise UserError(
            f"they were scored on other images ({len(first.ids):,} and {len(other.ids):,}, {common:,} of them shared)"
        )
    differing = int((first.labels[by_first] != other.labels[by_other]).sum())
    if differing:
        raise UserError(f"they were scored on the same images, {differing:,} of which have another label")


def letter(place: int) -> str:
    """Return what a page calls a run: A is the first one."""
    return LETTERS[place]
