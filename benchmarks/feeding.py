"""What does an image cost on its way into the network? CPU microseconds, with one thread, of ours and of ImageFolder.

Ours: the batches of `Split.train_batches` out of a prepared set, shuffled, normalised, float32: plain, and with a crop and an
affine map drawn anew for every image. Theirs: torchvision's ImageFolder with Grayscale, ToTensor and Normalize in a DataLoader
without workers, plain, or with RandomCrop and RandomAffine before them. The goal is on our microseconds, not on the ratio.

    python -m benchmarks --only input,input_augmented --mnist FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import preparing
from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child, spread
from tracked_cls.console import say

BATCH = 128
IMAGES = 25_600  # looked at in each pass of ours
IMAGES_THEIRS = 6_400
PASSES = 5
AUGMENTED: list[dict[str, dict[str, Any]]] = [
    {"RandomCrop": {"size": 28, "padding": 2}},
    {"RandomAffine": {"degrees": 10, "translate": [0.08, 0.08], "scale": [0.9, 1.1]}},
]
_MICRO = 1e6


def ours(folder: str, kind: str) -> dict[str, Any]:
    """Return the CPU microseconds that an image of a prepared set takes, with or without augmentation."""

    from tracked_cls.compute import make_compute
    from tracked_cls.config import LoaderConfig, TransformsConfig
    from tracked_cls.data.cache import open_prepared
    from tracked_cls.data.loaders import Feed, open_split

    transforms = TransformsConfig(train=AUGMENTED if kind == "augmented" else [])
    compute = make_compute("cpu", 1)  # as `train` does
    split = open_split(Feed.create(open_prepared(Path(folder)), compute, transforms, LoaderConfig()), "train")
    epoch = partial(split.train_batches, batch_size=BATCH, seed=0, start=0)
    return {"us": _microseconds(lambda number: (batch.images for batch in epoch(epoch=number)), IMAGES)}


def theirs(root: str, kind: str) -> dict[str, Any]:
    """Return the same of torchvision's ImageFolder."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    drawn = [getattr(transforms, name)(**arguments) for spec in AUGMENTED for name, arguments in spec.items()]
    always = [transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)]
    steps = [transforms.Grayscale(), *(drawn if kind == "augmented" else []), *always]
    images = ImageFolder(str(Path(root) / "train"), transforms.Compose(steps))
    loader = DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=0)
    return {"us": _microseconds(lambda number: (batch for batch, _ in loader), IMAGES_THEIRS)}


def _microseconds(batches: Callable[[int], Iterable[Any]], images: int) -> float:
    """Return the median over passes of the CPU time per image; a first pass warms up and does not count."""
    found = []
    for number in range(PASSES + 1):
        started, seen = time.process_time(), 0
        for batch in islice(batches(number), images // BATCH):
            seen += len(batch)
        found.append(_MICRO * (time.process_time() - started) / seen)
    return median(found[1:])


def measure(kind: str, terms: Terms) -> Found:
    """Return our microseconds; both sides are among the details, with how many times theirs are ours."""
    root = str(terms.needed("mnist").resolve())
    folder = child("benchmarks.preparing", "set", *preparing.once(terms))["folder"]
    values: list[float] = []

    def fed() -> float:
        values.append(float(child("benchmarks.feeding", "ours", folder, kind, threads=1)["us"]))
        return values[-1]

    ratio = alternating(
        fed,
        lambda: float(child("benchmarks.feeding", "theirs", root, kind, threads=1)["us"]),
        terms.rounds,
        "us",
        names=("ours", "ImageFolder"),
    )
    details = {**ratio.details, "ImageFolder / ours": spread([1 / end for end in (ratio.low, ratio.value, ratio.high)], "x")}
    return Found.of(values, "us", **details)


ROWS = [
    Row(
        name="input",
        what="input per image, plain (CPU time, one thread)",
        baseline="ImageFolder with Grayscale, ToTensor, Normalize, no workers",
        goal=Goal(3.0, at_least=False, unit="us"),
        measure=partial(measure, "plain"),
        minutes=3,
    ),
    Row(
        name="input_augmented",
        what="input per image, with a crop and an affine map drawn for each (CPU time, one thread)",
        baseline="ImageFolder with RandomCrop and RandomAffine before these, no workers",
        goal=Goal(15.0, at_least=False, unit="us"),
        measure=partial(measure, "augmented"),
        minutes=4,
    ),
]


def main() -> None:
    """Be a child process of the benchmark: measure one side, and print what came of it."""
    side, *rest = sys.argv[1:]
    say(json.dumps({"ours": ours, "theirs": theirs}[side](*rest)))


if __name__ == "__main__":
    main()
