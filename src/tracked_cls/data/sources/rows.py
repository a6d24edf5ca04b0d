"""One listed item as its source gives it, checked: a line of a table, an item of a user's dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tracked_cls.data.names import natural_key
from tracked_cls.data.sources.base import SPLIT_OF_WORD, Sample
from tracked_cls.errors import UserError, did_you_mean

_LARGEST_WEIGHT = 3.4e38  # weights are stored as float32


class Row(NamedTuple):
    """One item as text. `place` tells people where it stands: ``line 12``, ``row 12``, ``item 12``."""

    place: str
    path: str
    labels: Sequence[str]
    split: str = ""
    group: str = ""
    weight: str = "1"


class Checker:
    """Turns the rows of one source into samples; the first row that is wrong is a `UserError` with its place."""

    def __init__(self, where: str, *, multi_label: bool) -> None:
        self.where = where
        self.multi_label = multi_label
        self._row_of_path: dict[str, Row] = {}

    def sample(self, row: Row) -> Sample:
        """Return the row as a sample."""
        labels = self._labels(row)
        twin = self._row_of_path.setdefault(row.path, row)
        if twin is not row:
            raise self._twice(twin, row)
        return Sample(row.path, labels, self._split(row), row.group or None, self._weight(row))

    def error(self, row: Row, code: str, text: str) -> UserError:
        """Return the error of a row."""
        return UserError(f"{self.where}: {row.place}: {code}: {text}")

    def _labels(self, row: Row) -> tuple[str, ...]:
        for label in row.labels:
            if not label:
                raise self.error(row, "E_LABEL_MISSING", f"{row.path!r} has an empty label; name its class or remove the row")
            if label != label.strip():
                raise self.error(row, "E_LABEL", f"the label {label!r} begins or ends with a blank; remove the blank")
        if len(set(row.labels)) < len(row.labels):
            raise self.error(row, "E_LABEL", f"a label is named twice: {', '.join(map(repr, row.labels))}; name it once")
        if self.multi_label:
            return tuple(sorted(row.labels, key=natural_key))
        assert len(row.labels) == 1
        return (row.labels[0],)

    def _split(self, row: Row) -> str | None:
        if not row.split:
            return None
        split = SPLIT_OF_WORD.get(row.split.lower())
        if split is None:
            near = did_you_mean(row.split, SPLIT_OF_WORD)
            raise self.error(row, "E_SPLIT", f"the split must be train, val, test or empty, got {row.split!r}{near}")
        return split

    def _weight(self, row: Row) -> float:
        try:
            weight = float(row.weight)
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= _LARGEST_WEIGHT:  # nan fails too
            raise self.error(row, "E_WEIGHT", f"the weight must be a finite number of at least 0, got {row.weight!r}")
        return weight

    def _twice(self, first: Row, second: Row) -> UserError:
        labels, others = (", ".join(map(repr, row.labels)) or "no label" for row in (first, second))
        said = f"both with {labels}" if labels == others else f"with {labels} and with {others}"
        text = f"{second.path!r} is listed twice, in {first.place} and {second.place}, {said}; keep one of them"
        return self.error(second, "E_LABEL_CONFLICT", text)
