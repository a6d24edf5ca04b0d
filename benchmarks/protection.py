"""What does it cost that nothing gets lost? Trains with and without checkpoints, journal, delivery and signals, in turns.

The same network on the same images in the same thread: the loop of `train` as it is, which saves, writes what it logs to a
journal and delivers that to an sqlite store in the background, and `fit` alone, which takes a step after each of its steps. So
both see the same moods of the machine; whole trainings in turns differed by 6 % where nothing differed. One training first to
warm up; then the ratios of the others. `--control` compares `fit` with itself: what it says instead of 1 is noise.

    python -m benchmarks.protection --case digits       a quarter of an hour on two quiet cores
    python -m benchmarks.protection --case mnist --root FOLDER_OF_MNIST
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tracked_cls import delivery, experiment, job, saving, signals, training  # noqa: E402 - of this checkout
from tracked_cls.config import TrainConfig, load  # noqa: E402
from tracked_cls.console import say  # noqa: E402
from tracked_cls.job import Job  # noqa: E402
from tracked_cls.saving import Saver  # noqa: E402
from tracked_cls.state import TrainState  # noqa: E402
from tracked_cls.tracking import Run  # noqa: E402

CASES = {
    "digits": "params/train.yaml as it is, mobilenetv3 at 32 px",
    "mnist": "small_cnn at 28 px",
}


@dataclass
class Clock:
    """Wall seconds, and CPU seconds of the thread that trains, while it runs."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of a block."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.thread_time() - cpu


@dataclass
class Cost:
    """What a training cost in all, what its bare twin of it, and the parts of its protection."""

    all: Clock = field(default_factory=Clock)
    bare: Clock = field(default_factory=Clock)
    parts: dict[str, list[Clock]] = field(default_factory=dict)
    others: float = 0.0
    epochs: int = 0

    @property
    def ratios(self) -> tuple[float, float]:
        """Protected / bare: by the wall clock, and CPU of the thread that trains."""
        return self.all.wall / self.bare.wall - 1, self.all.cpu / self.bare.cpu - 1


def _timed(name: str, call: Callable[..., Any], cost: Cost, *args: Any, **options: Any) -> Any:
    clock = Clock()
    cost.parts.setdefault(name, []).append(clock)
    with clock.running():
        return call(*args, **options)


def _timed_method(name: str, method: Callable[[Any], None], cost: Cost) -> Callable[[Any], None]:
    return lambda self: _timed(name, method, cost, self)


def _with_twin(work: Job, cost: Cost) -> Callable[..., Iterator[Any]]:
    """Return `training.fit` with another training of the same kind, of which a step is taken after each of its own."""
    fit = training.fit

    def both(state: TrainState, *args: Any, **options: Any) -> Iterator[Any]:
        twin_state = TrainState.create(work.cfg, work.shape, train_images=len(work.train), compute=work.feed.compute)
        twin = fit(twin_state, work.cfg, train=work.train, val=work.val)
        for step in fit(state, *args, **options):
            yield step
            with cost.bare.running():
                next(twin)

    return both


def _run(work: Job, cost: Cost, *, control: bool) -> None:
    """Train as `train` does, or (`control`) with no more than its twin has."""
    state = TrainState.create(work.cfg, work.shape, train_images=len(work.train), compute=work.feed.compute)
    log = Run.log_metrics
    with ExitStack() as stack:
        stack.enter_context(patch.object(training, "fit", _with_twin(work, cost)))
        alone = SimpleNamespace(monotonic=lambda: time.monotonic() - cost.bare.wall)  # saves come as often as without the twin
        stack.enter_context(patch.object(saving, "time", alone))
        for name in ("save", "save_best"):
            stack.enter_context(patch.object(Saver, name, _timed_method(name, getattr(Saver, name), cost)))
        stack.enter_context(
            patch.object(Run, "log_metrics", lambda *args, **options: _timed("log", log, cost, *args, **options))
        )
        everything = time.process_time()
        with cost.all.running(), signals.deferred() as interrupted:
            if control:
                for _ in training.fit(state, work.cfg, train=work.train, val=work.val):
                    pass
            else:
                experiment._loop(work, state, None, interrupted, experiment._go_on)
    cost.others = time.process_time() - everything - cost.all.cpu
    cost.epochs = state.epoch


def train(cfg: TrainConfig, *, control: bool) -> Cost:
    """Train a network and its twin in turns, and return what each took."""
    cost = Cost()
    with delivery.open_tracker(cfg.tracking) as tracker, job.begun(cfg, tracker, "train", None) as work:
        _run(work, cost, control=control)
    return cost


def words_of(case: str, root: str | None, epochs: int | None, threads: int = 1) -> list[str]:
    """Return the options of the training of a case: digits, or mnist below `root`."""
    common = ["--params", str(ROOT / "params" / "train.yaml"), "--threads", str(threads), "--resume", "never"]
    if case == "mnist":
        common += ["--data.source", "folder", "--data.root", str(root), "--data.image_size", "28", "--model", "small_cnn"]
    return [*common, "--epochs", str(epochs or (12 if case == "digits" else 3))]


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="digits")
    parser.add_argument("--root", help="folder of MNIST as pictures, with train/ and test/")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--control", action="store_true", help="compare training with itself")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="protection-") as home:
        os.chdir(home)
        cfg = load(
            TrainConfig, [*words_of(options.case, options.root, options.epochs), "--tracking.uri", f"sqlite:///{home}/m.db"]
        )
        costs = []
        for number in range(options.runs + 1):
            costs.append(train(cfg, control=options.control))
            say(_line(number, costs[-1]))
    for line in _summary(CASES[options.case], costs[1:]):
        say(line)


def _line(number: int, cost: Cost) -> str:
    wall, cpu = cost.ratios
    return (
        f"run {number}: {cost.epochs} epochs, bare {cost.bare.wall:.1f} s, protected / bare: wall {wall:.4f}, CPU {cpu:.4f}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def _summary(case: str, costs: list[Cost]) -> list[str]:
    walls, cpus = zip(*(cost.ratios for cost in costs), strict=True)
    others = statistics.median(cost.others / cost.bare.cpu for cost in costs)
    return [
        f"{case}: protected / bare, median of {len(costs)} runs: {_spread('wall', walls)}, {_spread('CPU', cpus)}",
        *(_part(name, costs) for name in sorted({name for cost in costs for name in cost.parts})),
        f"  other threads (delivery): {100 * others:.2f}% of the bare CPU time, on another core where there is one",
    ]


def _spread(name: str, values: Sequence[float]) -> str:
    return f"{name} {statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _part(name: str, costs: list[Cost]) -> str:
    """Say how often a part came, what it took each time, and of the whole."""
    clocks = [clock for cost in costs for clock in cost.parts[name]]
    wall, cpu = (statistics.median(getattr(clock, kind) for clock in clocks) for kind in ("wall", "cpu"))
    share = statistics.median(sum(clock.cpu for clock in cost.parts[name]) / cost.bare.cpu for cost in costs)
    often = len(clocks) / len(costs)
    return (
        f"  {name}: {often:.0f} times {1000 * wall:.1f} ms (CPU {1000 * cpu:.1f} ms), {100 * share:.2f}% of the bare CPU time"
    )


if __name__ == "__main__":
    main()
