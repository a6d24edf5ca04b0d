"""What does it cost to check every image? `prepare` of MNIST as pictures against no more than decoding the same files.

Ours: list, read, check, hash, decode and measure each file, look for copies, split, and write pixels, manifest and ledger to
disk. Imports, the start of the decoding processes, and the report (its search for near copies, and its augmented images, for
which PyTorch is imported) are left out. Theirs: the paths are known already; two processes open each file with Pillow and
make an array of its pixels, which is thrown away.

    python -m benchmarks --only prepare --mnist FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child
from tracked_cls.console import say

PROCESSES = 2
_CHUNK = 256  # files that a process of theirs is given at a time, as many as ours


# ---- MNIST as the other rows use it ----------------------------------------------------------------------------------


def words(terms: Terms) -> list[str]:
    """Return the options that name the pictures of MNIST, and a store below the scratch folder."""
    return [
        *("--data.source", "folder", "--data.root", str(terms.needed("mnist").resolve()), "--data.name", "mnist"),
        *("--data.near_duplicates", "off", "--tracking.uri", f"sqlite:///{terms.scratch.resolve()}/mnist/mlflow.db"),
    ]


def once(terms: Terms) -> list[str]:
    """Return `words` and the size of the pictures, and prepare them before that if no row has done so."""
    options = [*words(terms), "--data.image_size", "28"]
    if not (terms.scratch / "mnist" / "data" / "mnist" / "current").exists():
        child("benchmarks.preparing", "set", *options)
    return options


def prepared_set(options: list[str]) -> dict[str, Any]:
    """Prepare what the options name; return the folder."""
    from tracked_cls import delivery, preparation
    from tracked_cls.config import PrepareConfig, load

    cfg = load(PrepareConfig, options)
    with delivery.open_tracker(cfg.tracking) as tracker:
        done = preparation.run(cfg, tracker)
    return {"folder": str(done.prepared.folder), "images": len(done.prepared.manifest)}


# ---- the two sides ---------------------------------------------------------------------------------------------------


def ours(root: str) -> dict[str, Any]:
    """Prepare as `python -m pipelines.prepare` does; return the seconds of scan and build, without those of the report."""
    import pyarrow.parquet  # noqa: F401 - start-up

    from tracked_cls import assembly, inspection, preparation

    scan_input, work, report = preparation.scan_input, Clock(), Clock()

    def scan(*args: Any) -> Any:
        source = scan_input(*args)
        assert len(source.samples)  # put in order when they are asked for first, elsewhere
        return source

    with ExitStack() as stack:
        stack.enter_context(patch.object(preparation, "scan_input", work.counting(scan)))
        stack.enter_context(patch.object(preparation, "build", work.counting(assembly.build)))
        for module, name in ((assembly, "_report"), (inspection, "augmented"), (assembly, "render_data_report")):
            stack.enter_context(patch.object(module, name, report.counting(getattr(module, name))))
        scratch = stack.enter_context(TemporaryDirectory())
        _start_decoders(root)
        uri = f"sqlite:///{scratch}/mlflow.db"
        options = ["--data.source", "folder", "--data.root", root, "--data.workers", str(PROCESSES), "--tracking.uri", uri]
        images = prepared_set(options)["images"]
    return {"seconds": work.seconds - report.seconds, "report": report.seconds, "images": images}


def _start_decoders(root: str) -> None:
    """Have the server of decoding processes up, with its imports made: it outlives those who ask for it."""
    from tracked_cls.data.decoders import Decoders, Limits
    from tracked_cls.data.ingest import header_shapes

    first = next(path for path in sorted(Path(root).rglob("*")) if path.is_file())
    with Decoders(header_shapes, 1, Limits()) as decoders:
        decoders.submit([str(first)])()


class Clock:
    """Seconds of some calls together, those of one inside another counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same call, which is counted."""

        def counted(*args: Any, **options: Any) -> Any:
            with self._running():
                return call(*args, **options)

        return counted

    @contextmanager
    def _running(self) -> Iterator[None]:
        started = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self.seconds += 0 if self._depth else time.perf_counter() - started


def theirs(root: str) -> dict[str, Any]:
    """Decode the same files in two processes that are up already; return the seconds of that."""
    from PIL import Image

    Image.init()  # before the fork: start-up
    paths = [str(path) for path in sorted(Path(root).rglob("*")) if path.is_file()]
    with get_context("fork").Pool(PROCESSES) as pool:
        pool.map(decode, paths[:PROCESSES], chunksize=1)
        started = time.perf_counter()
        num_pixels = sum(pool.imap(decode, paths, chunksize=_CHUNK))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "images": len(paths), "pixels": num_pixels}


def decode(path: str) -> int:
    """Decode a file plainly; return how many values its pixels have."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image).size


# ---- the row ---------------------------------------------------------------------------------------------------------


def measure(terms: Terms) -> Found:
    """Return ours / theirs in seconds of the clock; the first pass over the files warms the page cache."""
    root = str(terms.needed("mnist").resolve())
    child("benchmarks.preparing", "theirs", root, threads=1)
    reports: list[float] = []

    def prepare() -> float:
        found = child("benchmarks.preparing", "ours", root, threads=1)
        reports.append(found["report"])
        return float(found["seconds"])

    found = alternating(
        prepare,
        lambda: float(child("benchmarks.preparing", "theirs", root, threads=1)["seconds"]),
        terms.rounds,
        names=("prepare", "plain decode"),
    )
    found.details["report with near copies and augmented images, left out"] = f"{min(reports):.1f} to {max(reports):.1f} s"
    return found


ROWS = [
    Row(
        name="prepare",
        what="prepare 70,000 PNGs: scan, decode, validate, hash, cache (start-up and report aside)",
        baseline="plain decode of the same files with Pillow on 2 processes",
        goal=Goal(2.0, at_least=False),
        measure=measure,
        minutes=3,
        note="An image takes no longer in a decoding process, with both digests and all checks, than a plain decode does (45 "
        "to 60 us). What is above that runs on one core: 0.5 s to list and sort the files before, 1 s for the cache, the "
        "manifest and the ledger after, and taking in what the processes send. What would help: to list, and to "
        "write the ledger, while files are decoded.",
    )
]


def main() -> None:
    """Be a child process of the benchmark: do what the first word says, and print what came of it."""
    kind, *rest = sys.argv[1:]
    found = prepared_set(rest) if kind == "set" else {"ours": ours, "theirs": theirs}[kind](*rest)
    say(json.dumps(found))


if __name__ == "__main__":
    main()
