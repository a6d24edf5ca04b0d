"""Does a training need more memory where there are more data? The peak of RssAnon at 60,000 images and at ten times as many.

Anonymous memory is what the process itself holds; pages of the memory-mapped cache are not in it, and the kernel takes them
back where it needs them. Both trainings are whole ones (`train` from begin to end: run, validation, test, export, report) with
as many steps, drawn from all images; the images are noise, written as IDX files and prepared once. Validation and test split
stay as they are: with ten times as many images to score, there would be ten times as many scores to report on.

    python -m benchmarks --only memory
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import trained
from benchmarks.measuring import Found, Goal, LeftOut, Row, Terms, alternating, child
from benchmarks.preparing import prepared_set
from tracked_cls.console import say

IMAGES, TIMES = 60_000, 10
HELD_OUT = 2_000  # in each of val and test
TRAINING = ["--model", "small_cnn", "--training.max_steps", "200", "--threads", "2", "--resume", "never"]
_SIDE, _CLASSES = 28, 10
_STATUS = Path("/proc/self/status")
_EVERY_SECONDS = 0.02


def words(scratch: Path, times: int) -> list[str]:
    """Return the options that name so many times the images, and a store."""
    home = scratch.resolve() / f"memory-{times}"
    return [
        *("--data.source", "idx", "--data.root", str(home / "idx"), "--data.name", "noise", "--data.near_duplicates", "off"),
        *("--tracking.uri", f"sqlite:///{home}/mlflow.db"),
    ]


def write_noise(folder: Path, times: int) -> None:
    """Write IDX files of random images: so many times 60,000 to train on, and as many as always to validate and to test on."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(times)
    for split, count in (("train", IMAGES * times), ("val", HELD_OUT), ("test", HELD_OUT)):
        with (folder / f"{split}-images-idx3-ubyte").open("wb") as file:
            file.write(_header(count, _SIDE, _SIDE))
            for start in range(0, count, IMAGES):
                file.write(random.bytes(min(IMAGES, count - start) * _SIDE**2))
        labels = (np.arange(count) % _CLASSES).astype(np.uint8)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(_header(count) + labels.tobytes())


def _header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">u4").tobytes()


# ---- one training, watched -------------------------------------------------------------------------------------------


class Peak:
    """The most that some fields of /proc/self/status reached, in MiB."""

    def __init__(self) -> None:
        self.mib = {"RssAnon": 0.0, "RssFile": 0.0}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look fifty times a second while the block runs."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_EVERY_SECONDS):
            self.look()

    def look(self) -> None:
        """Look once."""
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in self.mib:
                self.mib[name] = max(self.mib[name], int(rest.split()[0]) / 1024)


def watched(options: list[str]) -> dict[str, float]:
    """Train, and return what the process held at most."""
    peak = Peak()
    with peak.watched():
        trained(options)
    return peak.mib


# ---- the row ---------------------------------------------------------------------------------------------------------


def measure(terms: Terms) -> Found:
    """Return the peak at ten times the images / that at one times."""
    if not _STATUS.exists():
        raise LeftOut("needs Linux, whose kernel tells anonymous memory from mapped files")
    for times in (1, TIMES):
        if not (terms.scratch / f"memory-{times}").exists():
            write_noise(terms.scratch / f"memory-{times}" / "idx", times)
            child("benchmarks.memory", "prepare", *words(terms.scratch, times))
    mapped: list[float] = []

    def peak(times: int) -> float:
        found = child("benchmarks.memory", "train", *TRAINING, *words(terms.scratch, times))
        mapped.append(found["RssFile"])
        return float(found["RssAnon"])

    found = alternating(
        lambda: peak(TIMES),
        lambda: peak(1),
        terms.rounds,
        "MiB",
        names=(f"{IMAGES * TIMES:,} images", f"{IMAGES:,} images"),
    )
    found.details["mapped files, not counted"] = f"{min(mapped):,.0f} to {max(mapped):,.0f} MiB"
    return found


ROWS = [
    Row(
        name="memory",
        what="resident anonymous memory at 10 times the data (cache made 10 times larger)",
        baseline="the same run on 1 times",
        goal=Goal(1.05, at_least=False),
        measure=measure,
        minutes=10,
    )
]


def main() -> None:
    """Be a child process of the benchmark: prepare, or train and say what the process held."""
    kind, *options = sys.argv[1:]
    found: dict[str, Any] = prepared_set(options) if kind == "prepare" else dict(watched(options))
    say(json.dumps(found))


if __name__ == "__main__":
    main()
