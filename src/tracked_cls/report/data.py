"""The data report: what was prepared, what was turned away, and how it looks, as JSON and as one HTML file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracked_cls.data.decode import Pixels
from tracked_cls.data.likeness import Likeness, Pair
from tracked_cls.data.manifest import Manifest
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.data.sources import SPLITS, natural_key
from tracked_cls.report.page import MAX_BYTES, open_template, thumbnail_uri

Indices = npt.NDArray[np.int64]

_MAX_CLASSES = 20
_MAX_REJECTED = 200
_SAMPLES_PER_CLASS = 10
_SAMPLE_SIDE = 64
_MAX_GROUPS = 1000
_SHOWN_GROUPS = 50
_MAX_PAIRS = 1000
_SHOWN_PAIRS = 24
_CHANGES = {  # what `decode.changes_of` and `ingest` name, in words
    "exif_rotated": "Turned upright by EXIF",
    "transparency_on_white": "Transparency put on white",
    "16_bit_reduced": "16 bits reduced to 8",
    "palette_or_cmyk_to_rgb": "Palette or CMYK made RGB",
    "first_frame_of_several": "First of several frames taken",
    "wrong_extension": "Extension of another format",
}


@dataclass(frozen=True, eq=False)
class DataFacts:
    """What a preparation knows in the end.

    `images` gives the prepared images uint8 [B,S,S,C] of some positions; `shapes` are (height, width, channels) of the decoded
    ones; `changed` counts what decoding did to files, with examples; `likeness` is text where no near copies were looked for.
    """

    source: str
    manifest: Manifest
    preprocess: Preprocess
    images: Callable[[Indices], Pixels]
    shapes: Sequence[tuple[int, int, int]]
    pixel_digests: Sequence[str]
    rejected: Sequence[tuple[str, str, str]]
    num_ignored: int
    notes: Sequence[str]
    changed: Mapping[str, Any]
    likeness: Likeness | str
    seconds: float


# ---- the facts -------------------------------------------------------------------------------------------------------


def data_report(facts: DataFacts) -> dict[str, Any]:
    """Return ``report.json``: plain values only."""
    manifest = facts.manifest
    counts = manifest.counts()
    per_class = {name: sum(counts[split][name] for split in SPLITS) for name in manifest.classes}
    return {
        "name": manifest.name,
        "source": facts.source,
        "digest": manifest.digest,
        "content_digest": manifest.content_digest,
        "num_images": len(manifest),
        "num_classes": len(manifest.classes),
        "counts": counts,
        "images_per_class": per_class,
        "balance": min(per_class.values()) / max(per_class.values()),
        "original_sizes": _original_sizes(facts.shapes),
        "preprocess": facts.preprocess.to_dict(),
        "duplicates": _duplicates(facts),
        "near_duplicates": _near_duplicates(facts),
        "notes": list(facts.notes),
        "changed": dict(facts.changed),
        "rejected": [
            {"path": path, "code": code, "reason": reason, "action": "left out"} for path, code, reason in facts.rejected
        ],
        "num_rejected": len(facts.rejected),
        "num_ignored": facts.num_ignored,
        "seconds": round(facts.seconds, 2),
    }


def _original_sizes(shapes: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Return the spread of heights and widths, and the commonest sizes, of the images as they came."""
    sides = np.array([shape[:2] for shape in shapes])
    common = Counter((height, width) for height, width, _ in shapes).most_common(5)
    return {
        **{name: _spread(sides[:, axis]) for axis, name in enumerate(("height", "width"))},
        "most_common": [{"height": size[0], "width": size[1], "count": count} for size, count in common],
        "num_sizes": len(set(map(tuple, sides.tolist()))),
        "num_grey": sum(shape[2] == 1 for shape in shapes),
    }


def _spread(values: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _duplicates(facts: DataFacts) -> dict[str, Any]:
    """Count images whose pixels occur again, and name them: those in several splits first, then in several classes."""
    manifest = facts.manifest
    members: dict[str, list[int]] = defaultdict(list)
    for index, digest in enumerate(facts.pixel_digests):
        members[digest].append(index)
    groups = [_group_of(manifest, found) for found in members.values() if len(found) > 1]
    groups.sort(key=lambda group: (-len(group["splits"]), -len(group["classes"]), -len(group["paths"])))
    return {
        "within_splits": sum(len(group["paths"]) - len(group["splits"]) for group in groups),
        "across_splits": sum(len(group["splits"]) > 1 for group in groups),
        "across_classes": sum(len(group["classes"]) > 1 for group in groups),
        "groups": groups[:_MAX_GROUPS],
        "num_groups": len(groups),
    }


def _group_of(manifest: Manifest, found: Sequence[int]) -> dict[str, Any]:
    splits = [SPLITS[code] for code in np.unique(np.asarray(manifest.splits[np.array(found)]))]
    classes = sorted({" | ".join(manifest.names_of(index)) for index in found}, key=natural_key)
    return {"paths": [manifest.paths[index] for index in found], "splits": splits, "classes": classes}


def _near_duplicates(facts: DataFacts) -> dict[str, Any]:
    """Count the images of val and test that look like copies of others, and name the pairs, the most alike first."""
    found = facts.likeness
    if isinstance(found, str):
        return {"looked": False, "why_not": found, "count": 0, "across_classes": 0, "compared": 0, "held_out": 0, "pairs": []}
    pairs = [_pair_of(facts.manifest, pair) for pair in _near_pairs(facts)]
    return {
        "looked": True,
        "why_not": None,
        "count": len(pairs),
        "across_classes": sum(pair["classes"][0] != pair["classes"][1] for pair in pairs),
        "compared": found.compared,
        "held_out": found.held_out,
        "pairs": pairs[:_MAX_PAIRS],
    }


def _near_pairs(facts: DataFacts) -> list[Pair]:
    """Return the pairs that are no exact copies: those are counted as such."""
    digests = facts.pixel_digests
    pairs = [] if isinstance(facts.likeness, str) else facts.likeness.pairs
    return [pair for pair in pairs if digests[pair.held_out] != digests[pair.other]]


def _pair_of(manifest: Manifest, pair: Pair) -> dict[str, Any]:
    both = (pair.held_out, pair.other)
    return {
        "paths": [manifest.paths[index] for index in both],
        "splits": [SPLITS[manifest.splits[index]] for index in both],
        "classes": [" | ".join(manifest.names_of(index)) for index in both],
        "likeness": round(pair.likeness, 4),
        "flipped": pair.flipped,
    }


# ---- the page --------------------------------------------------------------------------------------------------------


class _Thumbnail(NamedTuple):
    data_uri: str
    alt: str


def render_data_report(report: dict[str, Any], facts: DataFacts, augmented: Pixels | None = None) -> str:
    """Return one self-contained HTML page below 3 MB: no scripts, nothing from elsewhere, names escaped.

    `augmented`: pictures uint8 [N,1+draws,S,S,C] of some training images, plain and then drawn.
    """
    template = open_template("data_report.html")
    for per_class in (_SAMPLES_PER_CLASS, 5, 2, 0):
        page = template.render(
            report=report,
            splits=[split for split in SPLITS if any(report["counts"][split].values())],
            samples=_samples(facts, per_class),
            augmented=[]
            if augmented is None or not per_class
            else [[thumbnail_uri(image, _SAMPLE_SIDE) for image in row] for row in augmented],
            changes=_CHANGES,
            rejected=report["rejected"][:_MAX_REJECTED],
            groups=report["duplicates"]["groups"][:_SHOWN_GROUPS],
            pairs=_pictures_of_pairs(facts) if per_class else [],
            most_of_a_class={split: max(report["counts"][split].values()) for split in SPLITS},
        )
        if len(page.encode()) < MAX_BYTES:
            break
    return page


def _samples(facts: DataFacts, per_class: int) -> dict[str, list[_Thumbnail]]:
    """Return class -> evenly spaced training images, for the first 20 classes."""
    manifest = facts.manifest
    train = manifest.indices("train")
    labels = np.asarray(manifest.labels[train])
    grid = {}
    for label, name in enumerate(manifest.classes[:_MAX_CLASSES]):
        members = train[labels[:, label] > 0 if manifest.multi_label else labels == label]
        chosen = members[np.linspace(0, len(members) - 1, min(per_class, len(members))).astype(int)]
        pictures = zip(chosen, facts.images(chosen) if len(chosen) else (), strict=True)
        grid[name] = [_Thumbnail(thumbnail_uri(image, _SAMPLE_SIDE), f"{name}, image {index}") for index, image in pictures]
    return grid


def _pictures_of_pairs(facts: DataFacts) -> list[list[str]]:
    """Return the two images of each of the first near copies."""
    pairs = [(pair.held_out, pair.other) for pair in _near_pairs(facts)[:_SHOWN_PAIRS]]
    return [[thumbnail_uri(image, _SAMPLE_SIDE) for image in facts.images(np.array(pair, np.int64))] for pair in pairs]
