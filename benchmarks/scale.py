"""Does a training notice how many images there are? 60,000 against 50 million of 28x28, of which none fits into memory.

The prepared set is written as `prepare` would write it, but that its pixels are a sparse file: all of them 0, and no disk is
read. What is measured is what grows with the number of images: the time until an epoch's first batch is there, the memory that
the process itself holds (RssAnon; the kernel takes back the pages of mapped files where it needs them), the input of an image,
and steps of small_cnn. `train` opens a set with the digest of every file first, which takes a second a gigabyte or so.

    python -m benchmarks --only scale_epoch,scale_memory,scale_images
"""

from __future__ import annotations

import json
import sys
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measuring import Found, Goal, LeftOut, Row, Terms, child, spread
from benchmarks.memory import Peak
from tracked_cls.console import say

SMALL, LARGE = 60_000, 50_000_000
HELD_OUT = 2_000  # in each of val and test
BATCH, STEPS, WARM_UP, LOOKED_AT = 128, 150, 20, 51_200
_SIDE, _CLASSES = 28, 10
_ROWS = 1 << 20  # of the table, written at a time
_STATUS = Path("/proc/self/status")


def write_set(folder: Path, images: int) -> None:
    """Write a prepared set with so many training images."""
    import pyarrow
    import pyarrow.parquet

    from tracked_cls.data.preprocess import Geometry, Preprocess

    folder.mkdir(parents=True)
    count = images + 2 * HELD_OUT
    random = np.random.default_rng(images)
    splits = np.zeros(count, np.uint8)
    splits[random.permutation(count)[: 2 * HELD_OUT]] = np.repeat([1, 2], HELD_OUT)
    columns = {
        "labels": np.arange(count) % _CLASSES,
        "splits": splits,
        "keys": random.integers(0, 2**64, count, np.uint64),
        "weights": np.ones(count, np.float32),
    }
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (count, _SIDE, _SIDE, 1))
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "sha256", "path", "group")])
    with pyarrow.parquet.ParquetWriter(folder / "manifest.parquet", schema) as table:
        for start in range(0, count, _ROWS):
            names = [f"{number:016x}" for number in range(start, min(start + _ROWS, count))]
            table.write_table(pyarrow.table([names, names, names, [""] * len(names)], schema=schema))
    preprocess = Preprocess(Geometry(_SIDE, 1), (0.5,), (0.5,))
    facts = {"name": "synthetic", "classes": [str(label) for label in range(_CLASSES)], "digest": f"{images:016x}"}
    facts |= {"content_digest": f"{images:016x}", "preprocess": preprocess.to_dict(), "terms": {}, "source": {}}
    (folder / "meta.json").write_text(json.dumps(facts), encoding="utf-8")


# ---- one process -----------------------------------------------------------------------------------------------------


def run(folder: Path, threads: int) -> dict[str, float]:
    """Train some steps on a set; return seconds to the first batch, microseconds of input, images/s and gigabytes held."""
    from tracked_cls import experiment, job, training
    from tracked_cls.compute import make_compute
    from tracked_cls.config import TrainConfig
    from tracked_cls.data.cache import open_partial
    from tracked_cls.data.loaders import Feed, open_split
    from tracked_cls.state import TrainState

    assert experiment  # a training imports it, with MLflow: what it holds counts
    peak = Peak()
    with peak.watched():
        options: dict[str, Any] = {"model": {"name": "small_cnn"}, "epochs": 1, "batch_size": BATCH, "threads": threads}
        cfg = TrainConfig.model_validate({**options, "training": {"bn_images": None, "max_steps": WARM_UP + STEPS}})
        prepared, compute = open_partial(folder), make_compute("cpu", threads)
        feed = Feed.create(prepared, compute.in_precision("float32"), cfg.transforms, cfg.loader)
        train, val = open_split(feed, "train"), open_split(feed, "val")
        started = time.perf_counter()
        batches = train.train_batches(batch_size=BATCH, seed=0, epoch=0, start=0)
        next(batches)
        first = time.perf_counter() - started
        used = time.process_time()
        for _ in range(LOOKED_AT // BATCH):
            next(batches)
        microseconds = (time.process_time() - used) / LOOKED_AT * 1e6
        state = TrainState.create(cfg, job.shape_of(prepared), train_images=len(train), compute=feed.compute)
        steps = training.fit(state, cfg, train=train, val=val)
        seconds = []
        for _ in range(WARM_UP + STEPS):
            began = time.perf_counter()
            next(steps)
            seconds.append(time.perf_counter() - began)
    rate = BATCH / median(seconds[WARM_UP:])
    return {"first_batch": first, "input": microseconds, "rate": rate, "gigabytes": peak.mib["RssAnon"] * 2**20 / 1e9}


# ---- the rows --------------------------------------------------------------------------------------------------------


@cache
def _measured(terms: Terms) -> dict[int, list[dict[str, float]]]:
    """Run both sizes in turns; the figures of a row are of the same runs."""
    if not _STATUS.exists():
        raise LeftOut("needs Linux, whose kernel tells anonymous memory from mapped files")
    found: dict[int, list[dict[str, float]]] = {SMALL: [], LARGE: []}
    for images in found:
        if not (terms.scratch / f"scale-{images}").exists():
            write_set(terms.scratch / f"scale-{images}", images)
    for number in range(terms.rounds):
        for images in ((LARGE, SMALL), (SMALL, LARGE))[number % 2]:
            own = child("benchmarks.scale", str(terms.scratch / f"scale-{images}"), str(terms.threads), threads=terms.threads)
            say(f"  round {number + 1}, {images:,} images: {_words(own)}")
            found[images].append(own)
    return found


def _words(found: dict[str, float]) -> str:
    return (
        f"first batch after {found['first_batch']:.3f} s, input {found['input']:.2f} us an image, {found['rate']:,.0f} "
        f"images/s, {found['gigabytes']:.2f} GB held"
    )


def _of(terms: Terms, name: str, unit: str) -> dict[str, list[float]]:
    return {f"{images:,} images ({unit})": [run[name] for run in runs] for images, runs in _measured(terms).items()}


def _own(terms: Terms, name: str, unit: str) -> Found:
    """Return a figure of the large set, with that of the small one beside it."""
    sides = _of(terms, name, unit)
    values = list(sides.values())[1]
    return Found.of(values, unit, **{side: spread(own, unit) for side, own in sides.items()})


def _compared(terms: Terms) -> Found:
    """Return images/s of the large set / those of the small one."""
    sides = _of(terms, "rate", "images/s")
    small, large = sides.values()
    details = {side: spread(own, "images/s") for side, own in sides.items()}
    inputs = {f"input, {side}": spread(own, "us") for side, own in _of(terms, "input", "us").items()}
    return Found.of([mine / other for mine, other in zip(large, small, strict=True)], **details, **inputs)


ROWS = [
    Row(
        name="scale_epoch",
        what="seconds until the first batch of an epoch of 50 million images of 28x28 (39 GB, a sparse file)",
        baseline="none: the goal is in seconds",
        goal=Goal(5, at_least=False, unit="s"),
        measure=lambda terms: _own(terms, "first_batch", "s"),
        minutes=8,
    ),
    Row(
        name="scale_memory",
        what="anonymous memory of a training of small_cnn on them",
        baseline="none: the goal is in gigabytes",
        goal=Goal(1.5, at_least=False, unit="GB"),
        measure=lambda terms: _own(terms, "gigabytes", "GB"),
        minutes=1,
    ),
    Row(
        name="scale_images",
        what="training images/s of small_cnn on them, and the input of an image",
        baseline="the same on 60,000 images",
        goal=Goal(0.9, at_least=True),
        measure=_compared,
        minutes=1,
    ),
]


if __name__ == "__main__":
    say(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))))
