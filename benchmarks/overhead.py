"""Rows of what other files here measure already: the cost of protection, and of an evaluation's numbers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.measuring import Found, Goal, Row, Terms, alternating, spread  # noqa: E402

IMAGES, EPOCHS = 20_000, 3
_MODEL, _IMAGE_SIZE = "small_cnn", 28


def measure_protection(terms: Terms) -> Found:
    """Return seconds of a training with tracking, journal and checkpoints / those of its twin without, less 1, in percent."""
    from benchmarks import protection
    from tracked_cls.config import TrainConfig, load

    words = protection.words_of("mnist", str(terms.needed("mnist").resolve()), EPOCHS, terms.threads)
    store = f"sqlite:///{terms.scratch / 'mlflow.db'}"
    options = ["--limit", str(IMAGES), "--tracking.uri", store]
    cfg = load(TrainConfig, [*words, *options])
    before = Path.cwd()
    os.chdir(terms.scratch)
    try:
        costs = [protection.train(cfg, control=False) for _ in range(terms.rounds + 1)][1:]  # the first one warms up
    finally:
        os.chdir(before)
    return _protection(costs)


def _protection(costs: list) -> Found:  # type: ignore[type-arg]
    walls, computing = ([100 * (one.ratios[kind] - 1) for one in costs] for kind in (0, 1))
    epochs = [one.bare.wall / one.epochs for one in costs]
    others = [100 * one.others / one.bare.cpu for one in costs]
    return Found.of(
        walls,
        "%",
        **{
            "an epoch without": spread(epochs, "s"),
            "computing of the thread that trains": f"{spread(computing, '%')} more",
            "other threads (delivery)": f"{spread(others, '%')} of it",
        },
    )


def measure_evaluation(terms: Terms) -> Found:
    """Return seconds of scoring 10,000 images with every number and its interval / those of the bare forward pass."""
    import torch

    from benchmarks import evaluation
    from tracked_cls import assessment

    torch.set_num_threads(terms.threads)
    prepared = evaluation.prepared_of(terms.needed("mnist").resolve() / "test", terms.scratch, _IMAGE_SIZE)
    split = evaluation.split_of(prepared, terms.threads)
    network = evaluation.network_for(_MODEL, split)
    batches = [batch.images for batch in split.eval_batches(evaluation.BATCH)]
    slices = ["label"]

    def score() -> object:
        return assessment.score_split(network, split, evaluation.BATCH, temperature=1.5, slices=slices)

    for warm_up in (score, lambda: evaluation.forward(network, batches)):
        warm_up()
    bare = _seconds(lambda: evaluation.forward(network, batches))
    found = alternating(_seconds(score), bare, terms.rounds, "s", ("evaluation", "forward"))
    found.details["images"] = f"{len(split):,} of {_IMAGE_SIZE}x{_IMAGE_SIZE}, {_MODEL}"
    return found


def _seconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return what tells the median seconds of three times that a piece of work is done."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return lambda: median(once() for _ in range(3))


ROWS = (
    Row(
        "protection",
        f"cost of tracking, journal and checkpoints together: {_MODEL} on {IMAGES:,} images, {EPOCHS} epochs of 5 s or more",
        "the same steps on a twin of the network without them, in turns in one process",
        Goal(2, at_least=False, unit="%"),
        measure_protection,
        minutes=12,
    ),
    Row(
        "evaluate",
        "evaluate 10,000 images, numbers with their intervals (no tables, no pictures)",
        "bare forward pass, images in memory",
        Goal(1.3, at_least=False),
        measure_evaluation,
        minutes=2,
    ),
)
