"""The data report: what was prepared, what was turned away, and how it looks, as JSON and as one HTML file."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tracked_cls.data.decode import Pixels
from tracked_cls.data.manifest import Manifest
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.data.sources import SPLITS

_MAX_HTML_BYTES = 3_000_000
_MAX_CLASSES = 20
_MAX_REJECTED = 200
_SAMPLES_PER_CLASS = 10
_SAMPLE_SIDE = 64


@dataclass(frozen=True, eq=False)
class DataFacts:
    """What a preparation knows in the end. `shapes` are (height, width, channels) of the decoded images."""

    source: str
    manifest: Manifest
    preprocess: Preprocess
    pixels: Pixels
    shapes: Sequence[tuple[int, int, int]]
    pixel_digests: Sequence[str]
    rejected: Sequence[tuple[str, str, str]]
    num_ignored: int
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
        "rejected": [{"path": path, "code": code, "reason": reason} for path, code, reason in facts.rejected],
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


def _duplicates(facts: DataFacts) -> dict[str, int]:
    """Count images whose pixels occur again: surplus copies within one split, pictures in several splits or classes."""
    manifest = facts.manifest
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for digest, split, label in zip(facts.pixel_digests, manifest.splits.tolist(), manifest.labels.tolist(), strict=True):
        places[digest].append((split, label))
    copied = [found for found in places.values() if len(found) > 1]
    return {
        "within_splits": sum(len(found) - len({split for split, _ in found}) for found in copied),
        "across_splits": sum(len({split for split, _ in found}) > 1 for found in copied),
        "across_classes": sum(len({label for _, label in found}) > 1 for found in copied),
    }


# ---- the page --------------------------------------------------------------------------------------------------------


class _Thumbnail(NamedTuple):
    data_uri: str
    alt: str


def render_data_report(report: dict[str, Any], facts: DataFacts) -> str:
    """Return one self-contained HTML page below 3 MB: no scripts, nothing from elsewhere, names escaped."""
    import jinja2  # needed only where something is prepared

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tracked_cls"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("data_report.html")
    for per_class in (_SAMPLES_PER_CLASS, 5, 2, 0):
        page = template.render(
            report=report,
            splits=[split for split in SPLITS if any(report["counts"][split].values())],
            samples=_samples(facts, per_class),
            rejected=report["rejected"][:_MAX_REJECTED],
            most_of_a_class={split: max(report["counts"][split].values()) for split in SPLITS},
        )
        if len(page.encode()) < _MAX_HTML_BYTES:
            break
    return page


def _samples(facts: DataFacts, per_class: int) -> dict[str, list[_Thumbnail]]:
    """Return class -> evenly spaced training images, for the first 20 classes."""
    train = facts.manifest.indices("train")
    labels = facts.manifest.labels[train]
    grid = {}
    for label, name in enumerate(facts.manifest.classes[:_MAX_CLASSES]):
        members = train[labels == label]
        chosen = members[np.linspace(0, len(members) - 1, min(per_class, len(members))).astype(int)]
        grid[name] = [_Thumbnail(_data_uri(facts.pixels[index]), f"{name}, image {index}") for index in chosen]
    return grid


def _data_uri(pixels: Pixels) -> str:
    image = _image(pixels)
    image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
    return "data:image/png;base64," + base64.b64encode(_encode(image)).decode()


def to_png(pixels: Pixels) -> bytes:
    """Return uint8 [H,W,C], C 1 or 3, as a PNG file."""
    return _encode(_image(pixels))


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
