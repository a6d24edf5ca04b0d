"""`sync` as a use case, and what every command does first: what ended processes left for MLflow is delivered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracked_cls import tracking
from tracked_cls.config import SyncConfig, TrackingConfig
from tracked_cls.console import say
from tracked_cls.journal import RELEASE, Entry, Held, Journal, journals, run_of
from tracked_cls.processes import Process
from tracked_cls.redaction import reason_of, redacted
from tracked_cls.report import own
from tracked_cls.tracking import StoreError, Tracker

_KEPT_SECONDS = 30 * 24 * 3600.0  # of the journal of a run that nobody continues
_SILENT_SECONDS = 3600.0  # a run of another machine without a heartbeat for so long has ended
_MISSED_SECONDS = 180.0  # three heartbeats
_MOST_REAPED = 1000


@dataclass(frozen=True)
class Delivered:
    """A journal whose entries were delivered, or are still waiting, with the reason."""

    folder: Path
    run: str
    arrived: int
    waiting: int
    reason: str


@dataclass(frozen=True)
class Synced:
    """What became of the journals of a store, how many are for which others, and how many running processes write."""

    store: str
    delivered: list[Delivered]
    elsewhere: Counter[str]
    under_way: int


@contextmanager
def open_tracker(cfg: TrackingConfig, *, must_answer: bool = False) -> Iterator[Tracker]:
    """Open a tracker, and have it deliver what processes that are gone have left; runs they left RUNNING end KILLED."""
    with tracking.open_tracker(cfg, must_answer=must_answer) as tracker:
        _take_over(tracker)
        yield tracker


def sync(cfg: SyncConfig) -> Synced:
    """Deliver all journals that no other process is writing; raises `UserError` where the store does not answer."""
    with tracking.open_tracker(cfg.tracking, must_answer=True) as tracker:
        left = _take_over(tracker)
        with _as_run(tracker):
            for journal, _ in left:
                tracker.sender.drain(journal, cfg.patience_seconds)
        delivered = [_account(tracker, journal, before) for journal, before in left]
        return Synced(tracker.store.label, delivered, *_others(tracker))


def _as_run(tracker: Tracker) -> AbstractContextManager[object]:
    """Take the run that `mlflow run` opened; without one there is none."""
    return nullcontext() if tracker.adoptable is None else tracker.begin("sync", "sync")


def _account(tracker: Tracker, journal: Journal, before: int) -> Delivered:
    waiting = len(journal.pending)
    return Delivered(journal.folder, journal.run_id or journal.ref, before - waiting, waiting, tracker.sender.trouble(journal))


def _others(tracker: Tracker) -> tuple[Counter[str], int]:
    """Count the journals that wait for other stores, and those that other processes are writing."""
    elsewhere: Counter[str] = Counter()
    under_way = 0
    for folder in journals(tracker.journals):
        if tracker.sender.journal(folder.name) is not None:
            continue
        try:
            journal = Journal.hold(folder)
        except Held:
            under_way += 1
            continue
        except OSError:  # said when it was to be taken over
            continue
        if journal.pending and journal.store not in (tracker.store_name, None):
            elsewhere[str(journal.store)] += 1
        journal.close()
    return elsewhere, under_way


def _release(tracker: Tracker, journal: Journal, entry: Entry) -> Mapping[str, Any]:
    """Log and register a model that was left in a journal."""
    from tracked_cls import release  # PyTorch, which most commands that deliver do without

    assert journal.run_id is not None
    try:
        released = release.settle(tracker, journal.run_id, entry.content)
    except (ValueError, FileNotFoundError, KeyError) as error:  # it would fail again: what stands behind it goes on
        say(f"warning: the model of run {journal.run_id} was not logged: {redacted(str(error))}")
        journal.add("tags", values={"promotion.verdict": "failed", "promotion.reason": redacted(str(error))[:500]})
        return {}
    say(f"run {journal.run_id}: {released.model_uri}, {released.promotion.verdict}: {released.promotion.reason}")
    return {}


# ---- what is left of processes that are gone -------------------------------------------------------------------------


def _take_over(tracker: Tracker) -> list[tuple[Journal, int]]:
    """Hand what is left to the sender; return the journals, with the number of entries that had not arrived."""
    own.teach(tracker)
    tracker.clerk.teach(RELEASE, lambda journal, entry: _release(tracker, journal, entry))
    left: list[tuple[Journal, int]] = []
    if tracker.store.absence() is None:
        try:
            left += _recover(tracker)
            _reap(tracker)
        except StoreError as error:  # away again; the next command will do
            say(f"warning: what earlier processes left was not looked through: {reason_of(error, 200)}")
    return left


def _recover(tracker: Tracker) -> Iterator[tuple[Journal, int]]:
    """Take the journals that nobody holds; a run that was not ended was killed."""
    for folder in journals(tracker.journals):
        try:
            journal = Journal.hold(folder)
        except Held:  # its process is at work
            continue
        except OSError as error:
            say(f"warning: {folder}: {error.strerror or error}; what it holds is not delivered")
            continue
        if journal.is_lost:
            say(f"warning: the beginning of a journal is damaged, nobody can tell which run it is for: {journal.set_aside()}")
            continue
        if journal.store not in (tracker.store_name, None) or not (journal.pending or journal.goes_on):
            is_old = not journal.pending and journal.age_seconds > _KEPT_SECONDS
            journal.close(remove=journal.may_go or is_old)
            continue
        if journal.goes_on:
            journal.add("reap", at=_now())
        say(f"delivering what a process that was killed, or a store that was away, left of a run: {journal.folder}")
        yield journal, len(journal.pending)
        tracker.sender.take(journal)


def _reap(tracker: Tracker) -> None:
    """End the runs whose process is gone and that left no journal here."""
    known = {run_of(folder) for folder in journals(tracker.journals)}  # their own processes speak for them
    running = tracker.client.search_runs(
        [tracker.store.experiment_id(tracker.home)], "attributes.status = 'RUNNING'", max_results=_MOST_REAPED
    )
    for run in running:
        if run.info.run_id not in known and _is_dead(run.data.tags, run.info.start_time / 1000):
            with tracker.opened(run.info.run_id) as opened:
                opened.set_tags({"reaped": _now()})
                opened.end("KILLED")
            say(f"run {run.info.run_id} was left RUNNING by a process that is gone: now KILLED")


def _is_dead(tags: Mapping[str, str], started: float) -> bool:
    """Whether the process of a run is gone, as far as can be told: containers of one machine may share its name."""
    process = Process.parse(tags.get("process"))
    if process is None:
        return False  # not one of ours
    is_here = process.host == Process.me().host
    heard = datetime.fromisoformat(tags["heartbeat"]).timestamp() if "heartbeat" in tags else started
    silence = time.time() - heard
    return process.is_gone() and silence > _MISSED_SECONDS if is_here else silence > _SILENT_SECONDS


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def lines(synced: Synced) -> list[str]:
    """Return what a person wants to know after a delivery."""
    text = [_line(one) for one in synced.delivered] or [f"sync: nothing waits for {synced.store}"]
    for store, count in synced.elsewhere.items():
        text.append(f"sync: {count} journal{'s wait' if count > 1 else ' waits'} for {store} (tracking.uri={store})")
    if synced.under_way:
        text.append(f"sync: running processes are writing {synced.under_way} more, and deliver them")
    return text


def _line(one: Delivered) -> str:
    waits = f", {one.waiting} still waiting in {one.folder} ({one.reason})" if one.waiting else ""
    return f"sync: run {one.run}: {one.arrived} entries delivered{waits}"
