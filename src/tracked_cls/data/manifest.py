"""Which images, with which labels, in which split: the frozen list everything downstream refers to."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tracked_cls.data.sources import SPLITS
from tracked_cls.errors import UserError, did_you_mean

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.integer[Any]]  # int64 [N], or uint8 [N,K] of 0 and 1 where an image has any number of labels
Splits = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]
Weights = npt.NDArray[np.float32]

_NUMERIC = ("labels", "splits", "keys", "weights")
_TEXT = ("id", "sha256", "path", "group")
_FEWEST_DIGITS = 4  # of an id, to tell an image by its beginning
_AT_A_TIME = 10_000  # strings of a column that is run through
_GROUP_ROWS = 1 << 16  # that are read together: what a column takes of memory does not grow with the set
_COMPARED = 10_000  # paths that a misspelt one is compared with


@dataclass(frozen=True, eq=False)
class Manifest:
    """N samples in a fixed order: labels, splits (index into `SPLITS`), weights, and keys, which drive the augmentation.

    `digest` names samples, labels, splits and geometry, and weights and groups where there are any; `content_digest` the
    decoded pixels and class names only, so that a folder and an IDX file of the same images agree. Each text column is
    read when it is first asked for.
    """

    name: str
    digest: str
    content_digest: str
    classes: tuple[str, ...]
    labels: Labels
    splits: Splits
    keys: Keys
    weights: Weights
    read_column: Callable[[str], Sequence[str]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of labels."""
        return self.labels.ndim == 2

    @cached_property
    def ids(self) -> Sequence[str]:
        """Content digest of each sample, with an ordinal for exact copies."""
        return self.read_column("id")

    @cached_property
    def sha256(self) -> Sequence[str]:
        """SHA-256 of each file."""
        return self.read_column("sha256")

    @cached_property
    def paths(self) -> Sequence[str]:
        """Path of each sample, relative to the root of its source."""
        return self.read_column("path")

    @cached_property
    def groups(self) -> Sequence[str]:
        """What must stay in one split with others of the same name; empty for a sample that stands alone."""
        return self.read_column("group")

    def indices(self, split: str) -> Indices:
        """Return the positions of a split's samples, ascending."""
        return np.flatnonzero(np.asarray(self.splits) == code_of(split)).astype(np.int64, copy=False)

    def num_of(self, split: str) -> int:
        """Return the number of a split's samples."""
        return int(np.count_nonzero(np.asarray(self.splits) == code_of(split)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return split -> class -> number of images; with several labels an image counts for each of them."""
        rows = [class_counts(np.asarray(self.labels)[self.indices(split)], len(self.classes)) for split in SPLITS]
        return {split: dict(zip(self.classes, row.tolist(), strict=True)) for split, row in zip(SPLITS, rows, strict=True)}

    def names_of(self, index: int) -> list[str]:
        """Return the class names of a sample: one, or any number with several labels."""
        labels = np.asarray(self.labels[index])
        return [self.classes[label] for label in (np.flatnonzero(labels) if labels.ndim else [labels])]

    def strata(self) -> Indices:
        """Return what a stratified draw divides by: see `strata_of`."""
        return strata_of(np.asarray(self.labels))

    def with_splits(self, splits: Splits) -> Manifest:
        """Return the same samples divided otherwise, under a digest of its own."""
        return replace(self, splits=splits, digest=_digest([self.digest, splits.tolist()]))


def class_counts(labels: Labels, num_classes: int) -> Indices:
    """Return the images of each class [K]."""
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0), np.int64)
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def strata_of(labels: Labels) -> Indices:
    """Return the label of each sample [N]; with several labels its rarest one, the number of classes where it has none."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    num_classes = labels.shape[1]
    by_rarity = np.argsort(class_counts(labels, num_classes), kind="stable")
    rarest = by_rarity[np.argmax(labels[:, by_rarity], axis=1)]
    return np.asarray(np.where(labels.any(axis=1), rarest, num_classes), np.int64)


def make_manifest(
    name: str,
    classes: Sequence[str],
    *,
    labels: Labels,
    splits: Splits,
    paths: Sequence[str],
    sha256: Sequence[str],
    pixel_digests: Sequence[str],
    geometry: Mapping[str, Any],
    weights: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
) -> Manifest:
    """Return the manifest of samples in the order given; `pixel_digests` are those of the decoded images.

    Weights default to 1, groups to none (an empty name).
    """
    ids = _ids(pixel_digests)
    own_weights = np.ones(len(ids), np.float32) if weights is None else np.asarray(weights, np.float32)
    own_groups = list(groups or [""] * len(ids))
    parts: list[Any] = [ids, list(classes), labels.tolist(), splits.tolist(), dict(geometry)]
    # only where there are any, so that a set without them keeps the digest it always had
    parts += [{"weights": own_weights.tolist()}] if (own_weights != 1).any() else []
    parts += [{"groups": own_groups}] if any(own_groups) else []
    text = {"id": ids, "sha256": list(sha256), "path": list(paths), "group": own_groups}
    return Manifest(
        name=name,
        digest=_digest(parts),
        content_digest=_digest(sorted(set(_named(pixel_digests, labels, classes)))),
        classes=tuple(classes),
        labels=labels,
        splits=splits,
        keys=np.array([_key(sample) for sample in ids], np.uint64),
        weights=own_weights,
        read_column=text.__getitem__,
    )


def _named(pixel_digests: Sequence[str], labels: Labels, classes: Sequence[str]) -> Iterator[str]:
    """Yield each image's pixels with its class name, or with a JSON list of the names where there may be several."""
    for digest, label in zip(pixel_digests, labels, strict=True):
        names = (
            classes[int(label)]
            if labels.ndim == 1
            else json.dumps(sorted(classes[index] for index in np.flatnonzero(label).tolist()))
        )
        yield f"{digest} {names}"


def _ids(pixel_digests: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    ids = []
    for digest in pixel_digests:
        ids.append(f"{digest}-{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return ids


def _key(sample_id: str) -> int:
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def code_of(split: str) -> int:
    """Return the number of a split; an unknown name is a `UserError`."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return SPLITS.index(split)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the numeric columns as .npy and the text as Parquet; names and digests belong to the caller's ``meta.json``."""
    import pyarrow  # half a second to import, and only those who write or read text need it
    import pyarrow.parquet

    for name in _NUMERIC:
        np.save(folder / f"{name}.npy", getattr(manifest, name), allow_pickle=False)
    table = pyarrow.table({name: list(manifest.read_column(name)) for name in _TEXT})
    pyarrow.parquet.write_table(table, folder / "manifest.parquet", row_group_size=_GROUP_ROWS)


def load_manifest(folder: Path, *, name: str, classes: Sequence[str], digest: str, content_digest: str) -> Manifest:
    """Return the manifest in a folder, its numeric columns memory-mapped."""
    numeric = {column: np.load(folder / f"{column}.npy", mmap_mode="r", allow_pickle=False) for column in _NUMERIC}
    return Manifest(name, digest, content_digest, tuple(classes), **numeric, read_column=partial(_read_column, folder))


def _read_column(folder: Path, name: str) -> Sequence[str]:
    import pyarrow.parquet

    return _Column(pyarrow.parquet.ParquetFile(folder / "manifest.parquet"), name)


class _Column(Sequence[str]):
    """Text in a file, held by Arrow a group of rows at a time; strings are made when they are asked for."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self._held: tuple[int, Any] = (-1, None)  # one group and its number, put here together: threads may read

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> Any:
        places = range(len(self))[index]
        if isinstance(places, int):
            number = bisect_right(self._starts, places) - 1
            return self._rows(number)[places - self._starts[number]].as_py()
        if places.step != 1:
            return [self[place] for place in places]
        found: list[str] = []
        while len(found) < len(places):
            start = places.start + len(found)
            number = bisect_right(self._starts, start) - 1
            offset, stop = self._starts[number], min(places.stop, self._starts[number + 1])
            found += self._rows(number)[start - offset : stop - offset].to_pylist()
        return found

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from self[start : start + _AT_A_TIME]

    def _rows(self, number: int) -> Any:
        held, rows = self._held
        if number != held:
            rows = self._file.read_row_group(number, columns=[self._name]).column(self._name)
            self._held = number, rows
        return rows


# ---- one sample ------------------------------------------------------------------------------------------------------


def find_sample(manifest: Manifest, text: str) -> int:
    """Return the position of the sample that a user names by path, id, number, or the beginning of its id.

    Raises `UserError` with a near match for what is not there, and with some candidates for what is ambiguous.
    """
    for column in (manifest.paths, manifest.ids):
        if text in column:
            return column.index(text)
    if text.isdecimal() and int(text) < len(manifest):
        return int(text)
    starting = (
        [index for index, name in enumerate(manifest.ids) if name.startswith(text)] if len(text) >= _FEWEST_DIGITS else []
    )
    if len(starting) == 1:
        return starting[0]
    if starting:
        some = ", ".join(f"{manifest.ids[index]} ({manifest.paths[index]})" for index in starting[:3])
        raise UserError(f"sample: {len(starting)} images have an id that starts with {text!r}: {some}; give more of it")
    if text.isdecimal() and len(text) < len(manifest.ids[0]):
        raise UserError(f"sample: there is no image {text}; {manifest.name} has the numbers 0 to {len(manifest) - 1}")
    near = did_you_mean(text, manifest.paths[:_COMPARED])
    raise UserError(f"sample: no image of {manifest.name} has the path or id {text!r}{near}")
