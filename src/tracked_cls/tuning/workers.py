"""The processes that train: this one, or several on this machine."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from tracked_cls import console, signals
from tracked_cls.config import TuneConfig
from tracked_cls.console import say
from tracked_cls.errors import Interrupted, StopRun, UserError
from tracked_cls.processes import without_main
from tracked_cls.tracking import Tracker, open_tracker
from tracked_cls.tuning import finals, trials
from tracked_cls.tuning.study import Search, open_search

_POLL_SECONDS = 0.2
_REPLACEMENTS_PER_WORKER = 3
_SIGNALLED = 128  # exit codes above it: ended by a signal that it was told of


def work(
    search: Search,
    tracker: Tracker,
    first_number: int,
    *,
    is_orphan: Callable[[], bool] = lambda: False,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Train trials until there are enough, and then the finals, hand in hand with all other workers of the study.

    `watch` is called before each.
    """
    queue = trials.queue_of(search)
    objective = trials.TrialObjective(search, queue, tracker, is_orphan, first_number)

    def between() -> None:
        objective.between()
        watch()

    queue.work_off(objective, may_start=lambda: search.open_slots > 0, between=between)
    if search.failed:
        raise StopRun("FAILED", why_failed(search))
    last = finals.open_finals(search)

    def between_finals() -> None:
        objective.check()
        watch()

    last.work_off(finals.FinalObjective(search, last, tracker, objective.check), between=between_finals)


def why_failed(search: Search) -> str:
    """Return why a study that errors stopped has stopped."""
    return f"study {search.name!r} stopped: {search.stopped}; the same command tries again"


def work_in_processes(search: Search, run_id: str, first_number: int, watch: Callable[[], None]) -> None:
    """Let ``tune.workers`` processes work on a study; one that is killed is replaced. `watch` is called in between.

    Interrupted, they are told to stop, and waited for. Raises `StopRun` where one of them failed.
    """
    cfg = search.cfg
    team: list[BaseProcess] = []
    replacements = _REPLACEMENTS_PER_WORKER * cfg.tune.workers
    try:
        team += (_start(cfg, run_id, first_number) for _ in range(cfg.tune.workers))
        while team:
            time.sleep(_POLL_SECONDS)
            watch()
            for worker in [worker for worker in team if worker.exitcode is not None]:
                team.remove(worker)
                if worker.exitcode == 0:
                    continue
                code = worker.exitcode or 0
                was_killed = code < 0 or code > _SIGNALLED
                if not was_killed:
                    raise StopRun("FAILED", why_failed(search) if search.failed else "a worker failed; the lines above say why")
                if not replacements:
                    raise StopRun("FAILED", f"workers are killed again and again (signal {_signal(code)}): too little memory?")
                replacements -= 1
                say(f"a worker was killed (signal {_signal(code)}); another one takes its place")
                team.append(_start(cfg, run_id, first_number))
    finally:
        for worker in team:
            worker.terminate()
        for worker in team:
            worker.join()


def _signal(code: int) -> int:
    return -code if code < 0 else code - _SIGNALLED


def _start(cfg: TuneConfig, run_id: str, first_number: int) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=_worker, args=(cfg, run_id, first_number, os.getpid()))
    with without_main():
        process.start()
    return process


def _worker(cfg: TuneConfig, run_id: str, first_number: int, launcher: int) -> None:
    """Be one worker; without its launcher, which waits for it, it stops as if told to."""
    signals.install(once=True)
    console.draw_no_bars()
    try:
        with open_tracker(cfg.tracking) as tracker:
            search = open_search(cfg, tracker)
            nested = tracker.within_id(run_id)
            work(search, nested, first_number, is_orphan=lambda: os.getppid() != launcher)
    except (UserError, StopRun) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
