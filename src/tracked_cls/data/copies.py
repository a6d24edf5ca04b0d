"""Exact copies of a picture in two given splits, or with two labels: refused, or settled by a rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tracked_cls.data.ingest import Outcome, Rejection
from tracked_cls.data.intake import Intake
from tracked_cls.data.manifest import Indices
from tracked_cls.data.names import printable
from tracked_cls.data.shards import DIGESTS, INDEX
from tracked_cls.data.sources import SPLITS, Sample
from tracked_cls.data.splits import Listing
from tracked_cls.data.storage import PIXELS
from tracked_cls.errors import UserError

LEAK, CONFLICT = "E_LEAK", "E_LABEL_CONFLICT"
_FIRST_KEPT = {"keep_test": (2, 1, 0), "keep_train": (0, 1, 2)}  # the numbers of splits, the one that keeps its copies first
_NAMED = 3  # pairs


def settle(listing: Listing, rule: str) -> Mapping[int, Rejection]:
    """Return what is to be left out, by position, and why.

    `rule` is ``data.duplicates``: ``allow`` leaves out nothing; ``refuse`` raises `UserError` where pixels occur in two
    splits or, in a set of one label per image, with two labels; ``keep_test`` and ``keep_train`` keep the copies of one split
    and, where these have two labels, none. Copies of one label in one split stay.
    """
    if rule == "allow":
        return {}
    left_out: dict[int, Rejection] = {}
    for found in _pictures(listing):
        left_out |= _settled(listing, found, _FIRST_KEPT.get(rule, _FIRST_KEPT["keep_test"]))
    if rule == "refuse" and left_out:
        raise _refusal(listing)
    return left_out


def _pictures(listing: Listing) -> Iterator[list[int]]:
    """Yield the positions of each picture that occurs more than once."""
    members: dict[str, list[int]] = {}
    for index, content in enumerate(listing.contents):
        members.setdefault(content, []).append(index)
    yield from (found for found in members.values() if len(found) > 1)


def _settled(listing: Listing, found: Sequence[int], order: Sequence[int]) -> dict[int, Rejection]:
    """Return which copies of one picture are left out where the first split of `order` that has one keeps its own."""
    splits = listing.splits
    kept_in = next(code for code in order if any(splits[index] == code for index in found))
    kept = [index for index in found if splits[index] == kept_in]
    path = printable(listing.paths[kept[0]])
    left_out = {
        index: Rejection(LEAK, f"the same pixels as {path}, which is in {SPLITS[kept_in]}")
        for index in found
        if splits[index] != kept_in
    }
    if _has_two_labels(listing, kept):
        names = " and ".join(repr(name) for name in dict.fromkeys(_label(listing, index) for index in kept))
        left_out |= {index: Rejection(CONFLICT, f"the same pixels are labelled {names}, e.g. {path}") for index in kept}
    return left_out


def _has_two_labels(listing: Listing, found: Sequence[int]) -> bool:
    return listing.labels.ndim == 1 and len(np.unique(listing.labels[list(found)])) > 1


def _label(listing: Listing, index: int) -> str:
    return listing.classes[int(listing.labels[index])]


def _refusal(listing: Listing) -> UserError:
    """Return the error that counts and names what is in two splits, and what has two labels."""
    pictures, splits = list(_pictures(listing)), listing.splits
    torn = [_apart(found, [SPLITS[splits[index]] for index in found]) for found in pictures if np.ptp(splits[found])]
    contrary = [found for found in pictures if _has_two_labels(listing, found)]
    labelled = [_apart(found, [_label(listing, index) for index in found]) for found in contrary]
    told = ((LEAK, "in two splits", torn), (CONFLICT, "under two labels", labelled))
    parts = [
        f"{code}: {len(pairs):,} {'picture is' if len(pairs) == 1 else 'pictures are'}, pixel for pixel, {where}: "
        f"{_named(listing, pairs)}"
        for code, where, pairs in told
        if pairs
    ]
    return UserError(
        f"{'; '.join(parts)}; data.duplicates=keep_test keeps such copies in test (else val) and leaves the others out, "
        "keep_train keeps those in train; both leave out what has two labels within a split; allow keeps all"
    )


_Pair = tuple[tuple[int, str], tuple[int, str]]


def _apart(found: Sequence[int], values: Sequence[str]) -> _Pair:
    """Return the first copy and the first that differs from it, each with its value."""
    other = next(place for place, value in enumerate(values) if value != values[0])
    return (found[0], values[0]), (found[other], values[other])


def _named(listing: Listing, pairs: Sequence[_Pair]) -> str:
    named = [" and ".join(f"{printable(listing.paths[index])} ({value})" for index, value in pair) for pair in pairs[:_NAMED]]
    return ", ".join(named) + (", ..." if len(pairs) > _NAMED else "")


# ---- leaving out what was decoded already ----------------------------------------------------------------------------


def withdraw(taken: Intake, left_out: Mapping[int, Rejection], folder: Path) -> Intake:
    """Return the intake without some of its accepted images, which count as rejected, and take them out of the cache too."""
    kept = [index for index in range(len(taken.samples)) if index not in left_out]
    _keep_rows(folder, np.array(kept, np.int64))
    accepted = [place for place, (_, outcome) in enumerate(taken.outcomes) if not isinstance(outcome, Rejection)]
    outcomes = list(taken.outcomes)
    for index, rejection in left_out.items():
        outcomes[accepted[index]] = taken.samples[index], rejection
    return Intake(
        samples=[taken.samples[index] for index in kept],
        sha256=[taken.sha256[index] for index in kept],
        pixel_digests=[taken.pixel_digests[index] for index in kept],
        shapes=[taken.shapes[index] for index in kept],
        sums=[taken.sums[index] for index in kept],
        outcomes=outcomes,
    )


def lasting(outcomes: Sequence[tuple[Sample, Outcome]]) -> list[tuple[Sample, Outcome]]:
    """Return the outcomes that are the image's own: not those that another image or an option decided."""
    return [(sample, it) for sample, it in outcomes if not (isinstance(it, Rejection) and it.code in (LEAK, CONFLICT))]


def _keep_rows(folder: Path, kept: Indices) -> None:
    """Write the arrays of a cache anew, with these rows alone; the bytes of other images stay in shards, unread."""
    for path in (folder / name for name in (PIXELS, INDEX, DIGESTS)):
        if path.is_file():
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            shape = (len(kept), *rows.shape[1:])
            narrower = np.lib.format.open_memmap(path.with_suffix(".part"), mode="w+", dtype=rows.dtype, shape=shape)
            for place, row in enumerate(kept.tolist()):
                narrower[place] = rows[row]
            narrower.flush()
            path.with_suffix(".part").replace(path)
