"""How many trials an hour? `tune` with 2 workers of 1 thread, against the same trainings one after another with 2 threads.

Ours: 20 short trials of `python -m pipelines.tune`, none pruned, from the moment the search begins (the start of its workers
and their imports included) to the end of the last trial; the finals and the release come after. Theirs: 20 trainings of the
same configuration, each tracked in a run of its own as a trial is, in one process that has imported all it needs.

    python -m benchmarks --only trials --mnist FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Any
from unittest.mock import patch

from benchmarks import preparing
from benchmarks.measuring import Found, Goal, Row, Terms, alternating, child
from tracked_cls.console import say

TRIALS = 20
SPACE = {"loss.smoothing": {"low": 0.0, "high": 0.1}}  # options that change no training's cost
RECIPE = [
    *("--model", "mobilenetv3_small", "--limit", "4000", "--epochs", "2", "--batch_size", "128"),
    *("--optimizer", "adamw", "--optimizer.lr", "0.004", "--transforms.train", "[]"),
]
_HOUR = 3600.0


def ours(options: list[str]) -> dict[str, float]:
    """Search, and return the trials per hour up to the end of the last one."""
    from tracked_cls import delivery
    from tracked_cls.config import TuneConfig, load
    from tracked_cls.tuning import campaign, workers
    from tracked_cls.tuning.study import Search

    searches: list[Search] = []
    work = workers.work_in_processes

    def noted(search: Search, *rest: Any) -> None:
        searches.append(search)
        work(search, *rest)

    cfg = load(TuneConfig, options)
    with delivery.open_tracker(cfg.tracking, must_answer=True) as tracker, patch.object(workers, "work_in_processes", noted):
        started = datetime.now()  # as Optuna notes the time of a trial
        campaign.run(cfg, tracker)
    ended = [trial.datetime_complete for trial in searches[0].study.get_trials(deepcopy=False)]
    last = max(time for time in ended if time is not None)
    return {"rate": _HOUR * len(ended) / (last - started).total_seconds(), "trials": len(ended)}


def theirs(options: list[str], count: int) -> dict[str, float]:
    """Train so many times, one after another, and return the trainings per hour; a short one before that warms up."""
    from tracked_cls import delivery, experiment
    from tracked_cls.config import TrainConfig, load, override

    cfg = load(TrainConfig, options)
    with delivery.open_tracker(cfg.tracking) as tracker:
        warming = override(cfg, {"limit": 512, "epochs": 1})
        experiment.learn(warming, tracker, kind="trial", name="warm")
        started = time.perf_counter()
        for number in range(count):
            one = override(cfg, {"loss.smoothing": number / count / 10})
            experiment.learn(one, tracker, kind="trial", name=f"training {number}")
        return {"rate": _HOUR * count / (time.perf_counter() - started)}


def tune_words(name: str, count: int) -> list[str]:
    """Return the options of a search of so many trials, and of the shortest finals there are."""
    search = {"trials": count, "workers": 2, "study": name, "pruner": "none", "finalists": 1, "finalist_seeds": 1}
    return [
        *(part for key, value in search.items() for part in (f"--tune.{key}", str(value))),
        *("--tune.space", json.dumps(SPACE), "--threads", "1", "--promote.auto", "never", "--tracking.pictures", "false"),
    ]


def measure(terms: Terms, count: int = TRIALS) -> Found:
    """Return ours / theirs in trials per hour."""
    common = [*RECIPE, *preparing.once(terms)]
    names = iter(f"round-{number}" for number in range(terms.rounds))
    alone = ("--threads", "2", "--resume", "never", "--tracking.pictures", "false")
    return alternating(
        lambda: float(child("benchmarks.trials", "ours", *common, *tune_words(next(names), count), threads=1)["rate"]),
        lambda: float(child("benchmarks.trials", str(count), *common, *alone, threads=2)["rate"]),
        terms.rounds,
        "trials/h",
        names=("2 workers of 1 thread", "one process of 2 threads"),
    )


ROWS = [
    Row(
        name="trials",
        what="trials per hour in tune, 20 short trials, 2 workers of 1 thread",
        baseline="the same trainings one after another in one process of 2 threads",
        goal=Goal(1.3, at_least=True),
        measure=measure,
        minutes=25,
        note="The start of both workers, some 5 s of imports, is counted against 20 trials of 75 s in all; the baseline has "
        "its imports behind it. What would help: longer searches.",
    )
]


def main() -> None:
    """Be a child process of the benchmark: search, or train so many times as the first word says."""
    side, *options = sys.argv[1:]
    say(json.dumps(ours(options) if side == "ours" else theirs(options, int(side))))


if __name__ == "__main__":
    main()
