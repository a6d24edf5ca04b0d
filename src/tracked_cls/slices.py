"""Columns of the manifest that an evaluation is cut along, to see where a model is weak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from tracked_cls.data.manifest import Manifest
from tracked_cls.errors import UserError

Indices = npt.NDArray[np.int64]
Column = list[str]  # a value for each image

AUTO = "auto"
_MOST_VALUES = 50  # of a column that nobody asked for
_ALONE = "(none)"
_QUARTERS = (0.25, 0.5, 0.75)


def columns_of(manifest: Manifest, indices: Indices, names: Sequence[str] = (AUTO,)) -> dict[str, Column]:
    """Return column -> its value for each of the images at `indices` of a manifest.

    ``label``; ``group`` (data.group_pattern, or a column of the table); ``folder`` of the path; ``weight``, in quarters where
    it has more than four values; ``auto``: of group and folder those that have 2 to 50 values and tell more than the label.
    Raises `UserError` for a column that was asked for and has one value only.
    """
    found = {name: _READERS[name](manifest, indices) for name in names if name != AUTO}
    for name, values in found.items():
        if len(set(values)) < 2:
            raise UserError(f"evaluate.slices: {name} is {values[0]!r} for all of these images, which makes no slices; "
                            f"leave it out")  # fmt: skip
    return (_telling(manifest, indices) if AUTO in names else {}) | found


def _telling(manifest: Manifest, indices: Indices) -> dict[str, Column]:
    labels = _labels(manifest, indices)
    columns = {"group": _groups(manifest, indices), "folder": _folders(manifest, indices)}
    return {name: values for name, values in columns.items()
            if 2 <= len(set(values)) <= _MOST_VALUES and not _is_renamed(values, labels)}  # fmt: skip


def _is_renamed(values: Column, labels: Column) -> bool:
    """Whether values and labels divide the images in the same way."""
    return len(set(zip(values, labels, strict=True))) == len(set(values)) == len(set(labels))


def _labels(manifest: Manifest, indices: Indices) -> Column:
    return [" + ".join(manifest.names_of(index)) or _ALONE for index in indices.tolist()]


def _groups(manifest: Manifest, indices: Indices) -> Column:
    groups = manifest.groups
    return [groups[index] or _ALONE for index in indices.tolist()]


def _folders(manifest: Manifest, indices: Indices) -> Column:
    paths = manifest.paths
    return [str(PurePosixPath(paths[index]).parent) for index in indices.tolist()]


def _weights(manifest: Manifest, indices: Indices) -> Column:
    weights = np.asarray(manifest.weights[indices], np.float64)
    if len(np.unique(weights)) <= len(_QUARTERS) + 1:
        return [f"{weight:g}" for weight in weights.tolist()]
    inner = np.unique(np.quantile(weights, _QUARTERS, method="inverted_cdf"))
    quarters = np.searchsorted(inner, weights, side="left")
    names = {quarter: f"{weights[quarters == quarter].min():g} to {weights[quarters == quarter].max():g}"
             for quarter in np.unique(quarters).tolist()}  # fmt: skip
    return [names[quarter] for quarter in quarters.tolist()]


_READERS: Mapping[str, Callable[[Manifest, Indices], Column]] = {
    "label": _labels,
    "group": _groups,
    "folder": _folders,
    "weight": _weights,
}
