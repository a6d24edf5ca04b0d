"""One search from the first trial to the registered winner, begun, continued or joined by the same command."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from tracked_cls import checkpoint, durable, failpoints
from tracked_cls.config import TuneConfig
from tracked_cls.console import say
from tracked_cls.errors import StopRun, UserError
from tracked_cls.processes import Process
from tracked_cls.report import own
from tracked_cls.tracking import Run, Tracker
from tracked_cls.tuning import finals, results, workers
from tracked_cls.tuning.queue import Queue, end_lost_runs
from tracked_cls.tuning.results import Found
from tracked_cls.tuning.storage import masked
from tracked_cls.tuning.study import Search, open_search

_REFRESH_SECONDS = 300.0
_POLL_SECONDS = 2.0


def run(cfg: TuneConfig, tracker: Tracker) -> Found:
    """Search, hold the finals and register the winner; what was interrupted goes on, what is done is not done again.

    Started a second time, here or on another machine with the same storage, it helps the first.
    """
    search = open_search(cfg, tracker)
    done = _kept(search)
    if done is not None:
        return _repeat(done, tracker)
    with _leading(search) as leads:
        if not leads:
            return _help(search, tracker)
        with tracker.begin("study", f"tune {search.name}", continue_id=search.run_id) as tracked:
            return _lead(search, tracker, tracked)


def _repeat(done: Found, tracker: Tracker) -> Found:
    """Give the answer of a study that has come to its end."""
    if not tracker.has(done.run_id):
        raise UserError(f"study {done.study!r} is complete, but its run {done.run_id} is not in this tracking store; another "
                        "tune.study begins anew")  # fmt: skip
    tracker.follow(done.run_id)
    if tracker.status(done.run_id) in ("RUNNING", "KILLED"):  # its leader was killed at the very end
        with tracker.opened(done.run_id) as tracked:
            tracked.end("FINISHED")
    say(f"study {done.study!r} is complete; tune.extend=true with more tune.trials goes on, another tune.study begins anew")
    return done


def _lead(search: Search, tracker: Tracker, tracked: Run) -> Found:
    search.go_on_after_errors()
    finals.try_again(search)
    first_number = search.num_trials
    _enqueue_baseline(search)
    search.adopt(tracked.run_id)  # from here on others help
    tracked.log_config(_without_password(search.cfg))
    tracked.log_dataset(search.prepared, ("train", "val"))
    tracked.log_environment()
    tracked.set_tags({"optuna.study": search.name})
    say(results.headline(search, tracked))
    try:
        _let_work(search, tracker.within(tracked), tracked, first_number)
        return _conclude(search, tracker.within(tracked), tracked)
    except StopRun:
        end_lost_runs(search.study, tracker)
        results.log(search, tracked)
        raise


def _without_password(cfg: TuneConfig) -> TuneConfig:
    storage = None if cfg.tune.storage is None else masked(cfg.tune.storage)
    return cfg.model_copy(update={"tune": cfg.tune.model_copy(update={"storage": storage})})


def _help(search: Search, tracker: Tracker) -> Found:
    """Work on a study that another process leads."""
    run_id = _run_of_leader(search)
    if not tracker.has(run_id):
        raise UserError(f"study {search.name!r}: its run {run_id} is not in this tracking store; all machines of a study need "
                        "the same tracking.uri")  # fmt: skip
    tracker.follow(run_id)
    say(f"study {search.name!r} is under way already: helping with it")
    with tracker.opened(run_id) as tracked:
        _let_work(search, tracker.within(tracked), tracked, search.num_trials)
        return _conclude(search, tracker.within(tracked), tracked)


def _let_work(search: Search, nested: Tracker, tracked: Run, first_number: int) -> None:
    """Let this process or several work to the end of the finals; errors in a row count from trial `first_number` on."""
    watch = _refresher(search, tracked)
    if search.cfg.tune.workers == 1:
        workers.work(search, nested, first_number, watch=watch)
    else:
        workers.work_in_processes(search, tracked.run_id, first_number, watch)


def _enqueue_baseline(search: Search) -> None:
    """Let the options outside of ``tune`` be the first trial; a second start finds it there."""
    given = search.cfg.tune.baseline
    if given is not None and search.open_slots:
        baseline = search.space.baseline(search.cfg.train, given)
        search.study.enqueue_trial(baseline, user_attrs={"source": "baseline"}, skip_if_exists=True)


def _refresher(search: Search, tracked: Run) -> Callable[[], None]:
    """Return what logs table and pictures every few minutes where trials have ended since."""
    shown = {"at": time.monotonic(), "ended": 0}

    def refresh() -> None:
        if time.monotonic() - shown["at"] < _REFRESH_SECONDS:
            return
        ended = sum(trial.state.is_finished() for trial in search.study.get_trials(deepcopy=False))
        if ended != shown["ended"]:
            results.log(search, tracked)
        shown.update(at=time.monotonic(), ended=ended)

    return refresh


# ---- who leads -------------------------------------------------------------------------------------------------------


@contextmanager
def _leading(search: Search) -> Iterator[bool]:
    """Say whether this process leads the study: opens its run, and ends it with what happened."""
    leads = False
    with (search.folder / "leader.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            leads = _take_the_lead(search)
            yield leads
        finally:
            if leads:
                search.study.set_user_attr("leader", "")
            fcntl.flock(lock, fcntl.LOCK_UN)


def _take_the_lead(search: Search) -> bool:
    me, leader = Process.me(), Process.parse(search.study.user_attrs.get("leader"))
    if leader is not None and leader.host not in (me.host, search.cfg.tune.lost_host):
        return False
    search.study.set_user_attr("leader", str(me))
    return True


def _run_of_leader(search: Search) -> str:
    """Return the run of the study, which its leader opens within seconds."""
    until = time.monotonic() + 60
    while search.run_id is None:
        if time.monotonic() > until:
            raise UserError(f"study {search.name!r}: its leader {search.study.user_attrs.get('leader')} opened no run; "
                            "if that machine is gone for good, name it in tune.lost_host")  # fmt: skip
        time.sleep(0.5)
    return search.run_id


# ---- the end ---------------------------------------------------------------------------------------------------------


def _kept(search: Search) -> Found | None:
    """Return the end of a study that has come to it."""
    kept = search.outcome
    return None if kept is None else Found(**kept)


def _conclude(search: Search, nested: Tracker, tracked: Run) -> Found:
    """Release the winner, once: whoever comes second finds it done."""
    queue = finals.open_finals(search)
    ranking = finals.judge(search, queue)
    winner = ranking[0].median
    host = Process.parse(winner.user_attrs.get("owner"))
    is_here = checkpoint.has_checkpoints(queue.store(winner.number))
    if not is_here and host is not None and host.host not in (Process.me().host, search.cfg.tune.lost_host):
        return _await_end(search, host.host)
    with durable.locked(search.folder / "end.lock"):
        done = _kept(search)
        if done is not None:
            return done
        failpoints.reach("tune.before_release")
        found = _release(search, queue, ranking, nested, tracked)
        failpoints.reach("tune.before_conclude")
        search.conclude(asdict(found))
        finals.sweep(queue, winner)
    end_lost_runs(search.study, nested)
    tracked.end("FINISHED")  # by whoever comes to it: the leader may be gone
    return found


def _release(search: Search, queue: Queue, ranking: list[finals.Finalist], nested: Tracker, tracked: Run) -> Found:
    winner = ranking[0].median
    say(f"winner: {finals.title(winner)}")
    outcome = finals.release(search, queue, winner, nested)
    found = results.found(search, tracked, ranking, outcome)
    results.log_end(search, tracked, ranking, found)
    own.leave(nested, tracked)
    return found


def _await_end(search: Search, host: str) -> Found:
    """Wait for the machine that has the winner's weights."""
    say(f"waiting for {host}, which has the winner's weights, to register them (gone for good? tune.lost_host={host})")
    while (done := _kept(search)) is None:
        time.sleep(_POLL_SECONDS)
    return done
