"""Which image is learnt from, chosen by, and tested on: given splits kept, missing ones drawn, folds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tracked_cls.config import DataConfig
from tracked_cls.data.manifest import Indices, Labels, Manifest, Splits, class_counts, code_of, strata_of
from tracked_cls.data.sources import SPLITS
from tracked_cls.errors import UserError

_TRAIN, _VAL, _TEST = (code_of(split) for split in SPLITS)
_CURE = "add images, or change the fractions, data.split_seed or the splits given"


@dataclass(frozen=True, eq=False)
class Listing:
    """What a split is drawn from: N samples with their labels, the splits given to them, their groups ("" is none).

    `contents` are digests of the decoded pixels. Exact copies stay together, as groups do, unless `copies_apart`.
    """

    labels: Labels
    given: Sequence[str | None]
    classes: Sequence[str]
    paths: Sequence[str]
    contents: Sequence[str]
    groups: Sequence[str]
    copies_apart: bool = False

    @cached_property
    def splits(self) -> Splits:
        """The splits [N] before any is drawn: what was given, else train."""
        return np.array([code_of(split or "train") for split in self.given], np.uint8)

    @cached_property
    def units(self) -> list[str]:
        """What is kept together [N]: the group of a sample, or itself, with all that hold a copy of one of its pictures."""
        names = [f"group {group}" if group else f"sample {path}" for group, path in zip(self.groups, self.paths, strict=True)]
        return names if self.copies_apart else joined(names, self.contents)


def joined(names: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Return the name of each sample's unit [N]: names that share a content are one, under the first of them."""
    if len(set(contents)) == len(contents):
        return list(names)
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    holder: dict[str, str] = {}
    for name, content in zip(names, contents, strict=True):
        first, second = sorted((root(name), root(holder.setdefault(content, name))))
        parent[second] = first  # sorted: no order of listing has a say
    return [root(name) for name in names]


def assign_splits(listing: Listing, cfg: DataConfig) -> Splits:
    """Return the split of every sample: given ones are kept, a missing val or test is drawn from train.

    Test takes `cfg.test_fraction`, val then `cfg.val_fraction` of what is left: by class and seed, by content with
    ``data.split=hash``, and group by group where there are groups; exact copies of a picture count as one and stay together.
    Raises `UserError` where a class is left without a training image, val or test without any, or where given splits tear a
    group apart.
    """
    splits = listing.splits.copy()
    _check_groups_whole(listing, splits)
    fractions = {_TEST: cfg.test_fraction, _VAL: cfg.val_fraction}
    missing = {code: fraction for code, fraction in fractions.items() if code not in splits}
    if cfg.split == "hash":
        _draw_by_content(splits, listing, missing, cfg.split_seed)
    elif any(listing.groups):
        _draw_groups(splits, listing, missing, cfg.split_seed)
    else:
        _draw_by_class(splits, listing, missing, cfg.split_seed)
    _check(splits, listing.labels, listing.classes, whole=_wholes(listing))
    return splits


def _random(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream))))


# ---- by class --------------------------------------------------------------------------------------------------------


def _draw_by_class(splits: Splits, listing: Listing, missing: Mapping[int, float], seed: int) -> None:
    """Draw per class, so that one class's images move no other's; each split gets at least one image, and train too.

    An image with several labels counts for its rarest one; of exact copies the first is drawn, and the others go with it.
    """
    strata = strata_of(listing.labels)
    train = np.flatnonzero(splits == _TRAIN)
    number: dict[str, int] = {}
    numbers = np.array([number.setdefault(unit, len(number)) for unit in listing.units], np.int64)
    _, first, unit = np.unique(numbers[train], return_index=True, return_inverse=True)
    is_first = np.zeros(len(splits), bool)
    is_first[train[first]] = True
    for stratum in range(strata.max() + 1):
        pool = np.flatnonzero((strata == stratum) & is_first)
        if len(pool) < 1 + len(missing):
            if listing.labels.ndim == 1:
                has_copies = bool(((strata == stratum) & (splits == _TRAIN)).sum() > len(pool))
                raise _too_few(listing.classes[stratum], len(pool), missing, has_copies=has_copies)
            continue  # the image may have other labels; what is left in the end is checked
        pool = _random(seed, stratum).permutation(pool)
        for still_missing, (code, fraction) in zip(range(len(missing), 0, -1), missing.items(), strict=True):
            count = min(max(1, round(fraction * len(pool))), len(pool) - still_missing)
            splits[pool[:count]] = code
            pool = pool[count:]
    splits[train] = splits[train[first]][unit]


def _too_few(name: str, count: int, missing: Mapping[int, float], *, has_copies: bool) -> UserError:
    needed = ", ".join(["train", *(SPLITS[code] for code in sorted(missing))])
    usable = "usable images, exact copies counted once," if has_copies else "usable images"
    return UserError(f"class {name!r} has {count} {usable} for {needed}; it needs at least {1 + len(missing)}")


# ---- by content ------------------------------------------------------------------------------------------------------


def _draw_by_content(splits: Splits, listing: Listing, missing: Mapping[int, float], seed: int) -> None:
    """Let the hash of an image (or of its group) decide, so that no image moves when others come or go."""
    content_of = dict(zip(listing.units, listing.contents, strict=True))
    names = [unit if unit.startswith("group ") else content_of[unit] for unit in listing.units]
    place = np.array([_uniform(name, seed) for name in names])
    for code, fraction in missing.items():
        splits[(splits == _TRAIN) & (place < fraction)] = code
        place = (place - fraction) / (1 - fraction)


def _uniform(name: str, seed: int) -> float:
    """Return a number in [0, 1) that name and seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "big") / 2**48


# ---- by group --------------------------------------------------------------------------------------------------------


def _check_groups_whole(listing: Listing, splits: Splits) -> None:
    first: dict[str, int] = {}
    for index, group in enumerate(listing.groups):
        other = first.setdefault(group, index) if group else index
        if splits[other] != splits[index]:
            raise UserError(
                f"group {group!r} lies in two splits: {listing.paths[other]} is in {SPLITS[splits[other]]}, "
                f"{listing.paths[index]} in {SPLITS[splits[index]]}; move one of them, or give no splits"
            )


def _draw_groups(splits: Splits, listing: Listing, missing: Mapping[int, float], seed: int) -> None:
    """Move whole groups of the training images to the missing splits."""
    names, group_of = np.unique(listing.units, return_inverse=True)  # sorted: no order of listing has a say
    for code, fraction in missing.items():
        pool = np.flatnonzero(splits == _TRAIN)
        table = np.zeros((len(names), len(listing.classes) + 1), np.int64)
        np.add.at(table, group_of[pool], _columns(listing.labels[pool], len(listing.classes)))
        order = _random(seed, code).permutation(np.unique(group_of[pool]))
        splits[pool[np.isin(group_of[pool], _choose(table, order, fraction))]] = code


def _columns(labels: Labels, num_classes: int) -> Indices:
    """Return 0 or 1 per class [N,K], and a last column of ones, by which samples without labels count too."""
    marks = np.eye(num_classes, dtype=np.int64)[labels] if labels.ndim == 1 else labels.astype(np.int64)
    return np.hstack([marks, np.ones((len(labels), 1), np.int64)])


def _choose(table: Indices, order: Indices, fraction: float) -> list[int]:
    """Return the groups to take, going through `order`: each if it brings the counts [K+1] nearer to the share wanted.

    None takes the last image of a class. Where all groups are too large, it is the one that overshoots least.
    """
    left = table.sum(axis=0)
    target, got, taken = fraction * left, np.zeros_like(left), []
    for group in order.tolist():
        row = table[group]
        if _spares_every_class(left, row) and _distance(got + row, target) < _distance(got, target):
            taken.append(group)
            got, left = got + row, left - row
    spare = [group for group in order.tolist() if _spares_every_class(left, table[group])]
    return taken or sorted(spare, key=lambda group: _distance(table[group], target))[:1]


def _spares_every_class(left: Indices, row: Indices) -> bool:
    return bool(((left > row) | (row == 0)).all())


def _distance(counts: Indices, target: npt.NDArray[np.float64]) -> float:
    return float(np.abs(counts - target).sum())


# ---- what must hold in the end ---------------------------------------------------------------------------------------


def _wholes(listing: Listing) -> str:
    """Return in words what stays whole; nothing where there are no groups."""
    num_groups = len(set(listing.groups) - {""})
    num_units = len({unit for unit in listing.units if unit.startswith("group ")})
    shared = f", {num_groups - num_units} of them with another that has a copy of a picture (data.duplicates=allow parts those)"
    return f"the groups, {num_groups} in all, stay whole{shared if num_units < num_groups else ''}" if num_groups else ""


def _check(splits: Splits, labels: Labels, classes: Sequence[str], *, whole: str = "") -> None:
    """Refuse splits that cannot be learnt from, or that cannot tell what was learnt."""
    counts = [class_counts(labels[splits == code], len(classes)) for code in range(len(SPLITS))]
    sizes = ", ".join(f"{np.count_nonzero(splits == code)} {split}" for code, split in enumerate(SPLITS))
    cure = f"{whole}: make them smaller, or {_CURE}" if whole else _CURE
    for label in np.flatnonzero(counts[_TRAIN] == 0).tolist():
        own = ", ".join(f"{count[label]} {split}" for count, split in zip(counts, SPLITS, strict=True))
        raise UserError(f"class {classes[label]!r} has no training image ({own}); {cure}")
    for code in (_VAL, _TEST):
        if code not in splits:
            raise UserError(f"the {SPLITS[code]} split has no images ({sizes}); {cure}")


# ---- folds -----------------------------------------------------------------------------------------------------------


def k_folds(manifest: Manifest, folds: int, fold: int, seed: int, *, copies_apart: bool = False) -> Manifest:
    """Return the samples with train and val divided anew: part `fold` of `folds` stratified parts is val; test stays.

    Groups stay whole, and so do the exact copies of a picture (in two folds, one would have been seen), which join groups
    unless `copies_apart`. Images with several labels are stratified by their rarest one. A class with fewer images (or
    groups) than folds is a `UserError`.
    """
    splits = np.array(manifest.splits)
    pool = np.flatnonzero(splits != _TEST)
    labels = np.asarray(manifest.labels)
    groups = _group_numbers(manifest, pool, copies_apart=copies_apart)
    first, copy_of = _copies(manifest, pool) if groups is None else (np.arange(len(pool)), np.arange(len(pool)))
    _check_enough(labels[pool[first]], groups, folds, manifest.classes)
    splits[pool] = _TRAIN
    part = _part(strata_of(labels)[pool[first]], groups, folds, fold, seed)
    splits[pool[np.isin(copy_of, part)]] = _VAL
    _check(splits, labels, manifest.classes)
    return manifest.with_splits(splits)


def _group_numbers(manifest: Manifest, pool: Indices, *, copies_apart: bool) -> Indices | None:
    """Return the number of each sample's group [N]; None where there are no groups."""
    groups = [manifest.groups[index] for index in pool.tolist()]
    if not any(groups):
        return None
    names = [f"group {group}" if group else f"sample {index}" for index, group in enumerate(groups)]
    names = names if copies_apart else joined(names, _pictures(manifest, pool))
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _copies(manifest: Manifest, pool: Indices) -> tuple[Indices, Indices]:
    """Return the positions [M] of the first of each picture, ascending, and which of them each sample [N] is a copy of."""
    number: dict[str, int] = {}
    copy_of = np.array([number.setdefault(picture, len(number)) for picture in _pictures(manifest, pool)], np.int64)
    return np.unique(copy_of, return_index=True)[1].astype(np.int64), copy_of


def _pictures(manifest: Manifest, pool: Indices) -> list[str]:
    """Return the digest of each sample's pixels: its id without the ordinal of copies."""
    return [manifest.ids[index].partition("-")[0] for index in pool.tolist()]


def _part(strata: Indices, units: Indices | None, folds: int, fold: int, seed: int) -> Indices:
    """Return the positions of one part."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # a second to import, and folds are rare

    # strata with fewer images than folds (of several labels only) are one: scikit-learn would warn
    common = np.where(np.bincount(strata)[strata] < folds, strata.max() + 1, strata)
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    divider: Any = StratifiedKFold if units is None else StratifiedGroupKFold
    parts = list(divider(folds, shuffle=True, random_state=state).split(np.zeros(len(strata)), common, units))
    return np.asarray(parts[fold][1], np.int64)


def _check_enough(labels: Labels, units: Indices | None, folds: int, classes: Sequence[str]) -> None:
    marks = _columns(labels, len(classes))[:, :-1]
    what = "images" if units is None else "groups"
    for label, name in enumerate(classes):
        members = np.flatnonzero(marks[:, label])
        count = len(members) if units is None else len(np.unique(units[members]))
        if count < folds:
            cure = f"set data.folds to at most {count}, or add images" if count > 1 else "add images"
            raise UserError(f"class {name!r} has {count} {what} outside the test split, too few for data.folds={folds}; {cure}")
