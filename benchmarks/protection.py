"""What does it cost that nothing gets lost? Trains with and without checkpoints, journal, delivery and signals, in turns.

The same network on the same images in the same process, on one thread: `fit` drained, and the loop of `train` as it is, which
saves after every epoch and at least every so many seconds, writes what it logs to a journal and delivers that to an sqlite
store in the background. One pair first to warm up; then the medians of the pairs' ratios. CPU seconds are those of all threads.

    python -m benchmarks.protection --case digits       a quarter of an hour on two quiet cores
    python -m benchmarks.protection --case mnist --root FOLDER_OF_MNIST
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls import checkpoint, delivery, experiment, job, signals, training  # noqa: E402 - of this checkout
from tracked_cls.config import TrainConfig, load  # noqa: E402
from tracked_cls.console import say  # noqa: E402
from tracked_cls.job import Job  # noqa: E402
from tracked_cls.state import TrainState  # noqa: E402
from tracked_cls.tracking import Run  # noqa: E402

CASES = {
    "digits": "params/train.yaml as it is, mobilenetv3 at 32 px",
    "mnist": "small_cnn at 28 px",
}


@dataclass
class Cost:
    """Wall and CPU seconds of a training (`own`: of the thread that trains), and those of the parts of its protection."""

    wall: float = 0.0
    cpu: float = 0.0
    own: float = 0.0
    epochs: int = 0
    parts: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


@contextmanager
def _measured(cost: Cost) -> Iterator[None]:
    wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
    yield
    cost.wall, cost.cpu, cost.own = time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - own


def _timed(name: str, call: Callable[..., Any], cost: Cost, *args: Any, **options: Any) -> Any:
    wall, own = time.perf_counter(), time.thread_time()
    try:
        return call(*args, **options)
    finally:
        cost.parts.setdefault(name, []).append((time.perf_counter() - wall, time.thread_time() - own))


def _bare(work: Job, state: TrainState, cost: Cost) -> None:
    """Train, and keep nothing."""
    with _measured(cost):
        for step in training.fit(state, work.cfg, train=work.train, val=work.val):
            cost.epochs += isinstance(step, training.EpochResult)


def _protected(work: Job, state: TrainState, cost: Cost) -> None:
    """Train as `train` does."""
    save, log = checkpoint.save, Run.log_metrics
    with ExitStack() as stack:
        stack.enter_context(patch.object(checkpoint, "save", partial(_timed, "save", save, cost)))
        stack.enter_context(
            patch.object(Run, "log_metrics", lambda *args, **options: _timed("log", log, cost, *args, **options))
        )
        with _measured(cost), signals.deferred() as interrupted:
            experiment._loop(work, state, None, interrupted, experiment._go_on)
    cost.epochs = state.epoch


def _train(cfg: TrainConfig, how: Callable[[Job, TrainState, Cost], None]) -> Cost:
    cost = Cost()
    with delivery.open_tracker(cfg.tracking) as tracker, job.begun(cfg, tracker, "train", None) as work:
        state = TrainState.create(work.cfg, work.shape, train_images=len(work.train), compute=work.feed.compute)
        how(work, state, cost)
    return cost


def _words(case: str, root: str | None, epochs: int | None) -> list[str]:
    common = ["--params", str(ROOT / "params" / "train.yaml"), "--threads", "1", "--resume", "never"]
    if case == "mnist":
        common += ["--data.source", "folder", "--data.root", str(root), "--data.image_size", "28", "--model", "small_cnn"]
    return [*common, "--epochs", str(epochs or (12 if case == "digits" else 3))]


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="digits")
    parser.add_argument("--root", help="folder of MNIST as pictures, with train/ and test/")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="protection-") as home:
        os.chdir(home)
        cfg = load(
            TrainConfig, [*_words(options.case, options.root, options.epochs), "--tracking.uri", f"sqlite:///{home}/m.db"]
        )
        pairs = []
        for number in range(options.pairs + 1):
            order = (_bare, _protected) if number % 2 else (_protected, _bare)
            costs = {how: _train(cfg, how) for how in order}
            say(_line(number, costs[_bare], costs[_protected]))
            pairs.append((costs[_bare], costs[_protected]))
    for line in _summary(CASES[options.case], pairs[1:]):
        say(line)


def _line(number: int, bare: Cost, protected: Cost) -> str:
    return (
        f"pair {number}: {bare.epochs} epochs, bare {bare.wall:.1f} s (CPU {bare.cpu:.1f}), protected {protected.wall:.1f} s "
        f"(CPU {protected.cpu:.1f}), load {os.getloadavg()[0]:.1f}"
    )


def _summary(case: str, pairs: list[tuple[Cost, Cost]]) -> list[str]:
    ratios = {
        "wall": [protected.wall / bare.wall for bare, protected in pairs],
        "CPU": [protected.cpu / bare.cpu for bare, protected in pairs],
        "CPU of the thread that trains": [protected.own / bare.own for bare, protected in pairs],
    }
    spread = [
        f"{name} {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})" for name, values in ratios.items()
    ]
    others = statistics.median((protected.cpu - protected.own) / protected.epochs for _, protected in pairs)
    return [
        f"{case}: protected / bare, median of {len(pairs)} pairs: {', '.join(spread)}",
        *(_part(name, pairs) for name in ("save", "log")),
        f"  CPU of other threads (delivery): {1000 * others:.0f} ms an epoch",
    ]


def _part(name: str, pairs: list[tuple[Cost, Cost]]) -> str:
    """Say what a part takes each time, and of the whole."""
    walls, owns = zip(*(times for _, protected in pairs for times in protected.parts[name]), strict=True)
    shares = [sum(own for _, own in protected.parts[name]) / protected.own for _, protected in pairs]
    return (
        f"  {name}: {1000 * statistics.median(walls):.1f} ms (CPU {1000 * statistics.median(owns):.1f} ms), "
        f"{100 * statistics.median(shares):.2f}% of the CPU of its thread"
    )


if __name__ == "__main__":
    main()
