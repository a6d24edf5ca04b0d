"""Which images, with which labels, in which split: the frozen list everything downstream refers to."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracked_cls.config import DataConfig
from tracked_cls.data.sources import SPLITS
from tracked_cls.errors import UserError

Labels = npt.NDArray[np.int64]
Splits = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]

_COLUMNS = ("id", "sha256", "path")


@dataclass(frozen=True, eq=False)
class Manifest:
    """N samples in a fixed order: labels, splits (index into `SPLITS`) and keys, which drive the augmentation.

    `digest` names samples, labels, splits and geometry; `content_digest` the decoded pixels and class names only, so that
    a folder and an IDX file of the same images agree. The text columns are read when first asked for.
    """

    name: str
    digest: str
    content_digest: str
    classes: tuple[str, ...]
    labels: Labels
    splits: Splits
    keys: Keys
    read_text: Callable[[], Mapping[str, Sequence[str]]]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _text(self) -> Mapping[str, Sequence[str]]:
        return self.read_text()

    @property
    def ids(self) -> Sequence[str]:
        """Content digest of each sample, with an ordinal for exact copies."""
        return self._text["id"]

    @property
    def sha256(self) -> Sequence[str]:
        """SHA-256 of each file."""
        return self._text["sha256"]

    @property
    def paths(self) -> Sequence[str]:
        """Path of each sample, relative to the root of its source."""
        return self._text["path"]

    def indices(self, split: str) -> Labels:
        """Return the positions of a split's samples, ascending."""
        return np.flatnonzero(np.asarray(self.splits) == _code(split)).astype(np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return split -> class -> number of images."""
        table = np.zeros((len(SPLITS), len(self.classes)), np.int64)
        np.add.at(table, (np.asarray(self.splits), np.asarray(self.labels)), 1)
        return {split: dict(zip(self.classes, row.tolist(), strict=True)) for split, row in zip(SPLITS, table, strict=True)}


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
) -> Manifest:
    """Return the manifest of samples in the order given; `pixel_digests` are those of the decoded images."""
    ids = _ids(pixel_digests)
    named = sorted({f"{digest} {classes[label]}" for digest, label in zip(pixel_digests, labels.tolist(), strict=True)})
    parts = [ids, list(classes), labels.tolist(), splits.tolist(), dict(geometry)]
    text = {"id": ids, "sha256": list(sha256), "path": list(paths)}
    return Manifest(
        name=name,
        digest=_digest(parts),
        content_digest=_digest(named),
        classes=tuple(classes),
        labels=labels,
        splits=splits,
        keys=np.array([_key(sample) for sample in ids], np.uint64),
        read_text=lambda: text,
    )


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


def _code(split: str) -> int:
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return SPLITS.index(split)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the numeric columns as .npy and the text as Parquet; names and digests belong to the caller's ``meta.json``."""
    import pyarrow  # half a second to import, and only those who write or read text need it
    import pyarrow.parquet

    for name, column in (("labels", manifest.labels), ("splits", manifest.splits), ("keys", manifest.keys)):
        np.save(folder / f"{name}.npy", column, allow_pickle=False)
    table = pyarrow.table({name: list(manifest._text[name]) for name in _COLUMNS})
    pyarrow.parquet.write_table(table, folder / "manifest.parquet")


def load_manifest(folder: Path, *, name: str, classes: Sequence[str], digest: str, content_digest: str) -> Manifest:
    """Return the manifest in a folder, its numeric columns memory-mapped."""
    labels, splits, keys = (
        np.load(folder / f"{column}.npy", mmap_mode="r", allow_pickle=False) for column in ("labels", "splits", "keys")
    )
    return Manifest(name, digest, content_digest, tuple(classes), labels, splits, keys, lambda: _read_text(folder))


def _read_text(folder: Path) -> Mapping[str, Sequence[str]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / "manifest.parquet", columns=list(_COLUMNS))
    return {name: table.column(name).to_pylist() for name in _COLUMNS}


# ---- splits ----------------------------------------------------------------------------------------------------------


def assign_splits(labels: Labels, given: Sequence[str | None], cfg: DataConfig, classes: Sequence[str]) -> Splits:
    """Return the split of every sample: given ones are kept, a missing val or test is drawn from train.

    Test takes `cfg.test_fraction` of each class, val then `cfg.val_fraction` of what is left, each at least one image and
    train too. Drawn per class from `cfg.split_seed`, so that one class's images move no other's. A class with too few
    images is a `UserError`.
    """
    splits = np.array([_code(split or "train") for split in given], np.uint8)
    missing = [(split, fraction) for split, fraction in (("test", cfg.test_fraction), ("val", cfg.val_fraction))
               if _code(split) not in splits]  # fmt: skip
    for label, name in enumerate(classes):
        pool = np.flatnonzero((labels == label) & (splits == _code("train")))
        if len(pool) < 1 + len(missing):
            needed = ", ".join(["train", *(split for split, _ in reversed(missing))])
            raise UserError(f"class {name!r} has {len(pool)} usable images for {needed}; it needs at least {1 + len(missing)}")
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((cfg.split_seed, label))))
        pool = random.permutation(pool)
        for still_missing, (split, fraction) in zip(range(len(missing), 0, -1), missing, strict=True):
            count = min(max(1, round(fraction * len(pool))), len(pool) - still_missing)
            splits[pool[:count]] = _code(split)
            pool = pool[count:]
    return splits
