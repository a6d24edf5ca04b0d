"""Runs opened in one experiment, with the journals that they are written to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from tracked_cls import failpoints, provenance, signals
from tracked_cls.config import TrackingConfig, workspace
from tracked_cls.console import say
from tracked_cls.errors import Interrupted, StopRun, UserError
from tracked_cls.journal import REF, Held, Journal, journals, run_of
from tracked_cls.redaction import reason_of, redacted
from tracked_cls.tracking import telemetry
from tracked_cls.tracking.clerk import KEY_TAG, Clerk
from tracked_cls.tracking.run import PATIENCE_SECONDS, Run
from tracked_cls.tracking.sender import Sender
from tracked_cls.tracking.store import Home, Store, StoreError, connect, home_of, is_missing, is_refusal

_TRAININGS = ("train", "trial", "fold", "pipeline")
_BRIEF_SECONDS = 2.0  # for a store that does not answer, while work is to go on
_HELD_SECONDS = 10.0


@dataclass(frozen=True)
class Tracker:
    """A connection to the tracking store that opens runs in one experiment; `journals` is the folder of their journals."""

    store: Store
    home: Home
    journals: Path
    clerk: Clerk
    sender: Sender
    system_metrics_seconds: float | None = None
    run_name: str | None = None
    adoptable: str | None = None
    parent: str | None = None

    @property
    def client(self) -> MlflowClient:
        """What reads the store; it raises where the store is away."""
        return self.store.client

    @property
    def experiment_id(self) -> str:
        """The experiment's id; reads the store."""
        return self.store.experiment_id(self.home)

    @property
    def store_name(self) -> str:
        """What the journals call the store."""
        return self.store.name_in(self.journals)

    def within(self, run: Run) -> Tracker:
        """Return a tracker whose runs are nested in `run`."""
        return self.within_id(run.run_id)

    def within_id(self, run_id: str) -> Tracker:
        """Return a tracker whose runs are nested in the run of an id."""
        return replace(self, parent=run_id, adoptable=None, run_name=None)

    def beside(self) -> Tracker:
        """Return a tracker whose runs never adopt the one that `mlflow run` opened."""
        return replace(self, adoptable=None, run_name=None)

    @contextmanager
    def opened(self, run_id: str) -> Iterator[Run]:
        """Give a run for writing, leaving its status as it is; what is written has arrived, or waits, after the block."""
        run_id = self.resolve(run_id)
        own = self._own(run_id)
        journal = own or _patiently(lambda: Journal.create(self.journals))
        if own is None:
            journal.add("attach", run_id=run_id, home=asdict(self.home), store=self.store_name)
            self.sender.take(journal)
        run = self._run(journal)
        try:
            yield run
        finally:
            if own is None and run.flush(_BRIEF_SECONDS):
                self.sender.release(journal)

    def resolve(self, run_id: str) -> str:
        """Return the id of the run that a reference stands for, as soon as it has one."""
        if not run_id.startswith(REF):
            return run_id
        key = run_id.removeprefix(REF)
        folder = self.journals / key
        if folder.exists():
            return run_of(folder) or run_id
        try:  # it has arrived, and its journal is gone
            experiment = self.store.experiment_id(self.home)
            found = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        except MlflowException:
            return run_id
        return str(found[0].info.run_id) if found else run_id

    def has(self, run_id: str) -> bool:
        """Whether this store has a run; of a store that is away it is believed."""
        run_id = self.resolve(run_id)
        if run_id.startswith(REF):
            return (self.journals / run_id.removeprefix(REF)).exists()
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            return not is_missing(error) and not is_refusal(error)

    def status(self, run_id: str) -> str | None:
        """Return RUNNING, FINISHED, FAILED or KILLED; None for a run that cannot be found now."""
        try:
            return str(self.client.get_run(self.resolve(run_id)).info.status)
        except MlflowException:
            return None

    def follow(self, run_id: str) -> None:
        """Leave a run to another process that leads it; the one that `mlflow run` opened ends as a pointer to it."""
        if self.adoptable not in (None, run_id):
            self.clerk.point(str(self.adoptable), run_id)

    @contextmanager
    def begin(
        self,
        kind: str,
        name: str,
        *,
        continue_id: str | None = None,
        key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Run]:
        """Open a run: the one to continue, else the one `mlflow run` opened, else a new one; end it with what happened.

        FINISHED after the block, KILLED when a signal interrupts it, FAILED on an error, as told by `StopRun`. Where the store
        does not answer the run begins in its journal, and `continue_id` may be what stood for it. A `key` names the journal: of
        two runs with one key there is one.
        """
        run = self._start(name, continue_id, key, tags or {})
        try:
            if self.store.absence() is None:
                run.flush(_BRIEF_SECONDS)
            run.set_tags({"kind": kind, **provenance.origin()})
            with telemetry.measured(run, self.system_metrics_seconds):
                yield run
        except StopRun as stop:
            run.set_tags({"stopped": stop.reason})
            self._end(run, stop.status)
            raise
        except (Interrupted, KeyboardInterrupt):
            self._end(run, "KILLED", final=False)
            raise
        except BaseException as error:
            run.set_tags({"error": redacted(f"{type(error).__name__}: {error}")[:500]})
            self._end(run, "FAILED", final=False)
            raise
        failpoints.reach("run.before_end")
        with signals.deferred():  # what has come to its end is not left RUNNING
            self._end(run, "FINISHED")
        failpoints.reach("run.after_end")

    def _end(self, run: Run, status: str, *, final: bool = True) -> None:
        run.end(status, final=final)
        is_away = bool(self.sender.trouble(run.journal))
        if run.flush(_BRIEF_SECONDS if is_away or self.parent is not None else PATIENCE_SECONDS):  # the rest is close's
            self.sender.release(run.journal)
        else:
            self.sender.leave(run.journal)

    def _start(self, name: str, continue_id: str | None, key: str | None, tags: Mapping[str, str]) -> Run:
        continue_id = None if continue_id is None else self.resolve(continue_id)
        held = self.sender.journal(key or "") if continue_id is None else self._held(continue_id)
        journal = held or _patiently(lambda: Journal.create(self.journals, key))
        asked: dict[str, Any] = {
            "run_id": None if continue_id is None or continue_id.startswith(REF) else continue_id,
            "adopt": self.adoptable,
            "name": name,
            "run_name": self.run_name,
            "parent": self.parent,
            "tags": resolve_tags(dict(tags)),
            "home": asdict(self.home),
            "store": self.store_name,
        }
        journal.add("open", **asked)
        self.sender.take(journal)
        return self._run(journal)

    def _own(self, run_id: str) -> Journal | None:
        """Return the journal of a run that this process writes."""
        return self.sender.journal(run_id.removeprefix(REF)) if run_id.startswith(REF) else self.sender.journal_of(run_id)

    def _held(self, run_id: str) -> Journal | None:
        """Return the journal of a run, if it is here; raises `UserError` where another process writes it."""
        own = self._own(run_id)
        if own is not None:
            return own
        if run_id.startswith(REF):
            folder = self.journals / run_id.removeprefix(REF)
        else:
            found = next((path for path in journals(self.journals) if run_of(path) == run_id), None)
            if found is None:
                return None
            folder = found
        return _patiently(lambda: Journal.hold(folder)) if folder.exists() else None

    def _run(self, journal: Journal) -> Run:
        return Run(self.store, journal, self.sender, self.clerk.history)


@contextmanager
def open_tracker(cfg: TrackingConfig, *, must_answer: bool = False) -> Iterator[Tracker]:
    """Connect to the tracking store, creating an sqlite store where there is none.

    A server that does not answer is worked without: what is logged waits in the journal. Where it `must_answer`, `UserError` is
    raised within seconds.
    """
    store = connect(cfg)
    absence = store.absence()
    if must_answer:
        store.require()
    adoptable = os.environ.pop("MLFLOW_RUN_ID", None)
    home = home_of(cfg, store, adoptable)
    try:
        home = Home(home.name, store.experiment_id(home)) if absence is None else home
    except StoreError as error:
        if must_answer or is_refusal(error):
            raise UserError(f"tracking.uri: {store.label}: {reason_of(error)}") from None
        absence = f"the tracking store at {store.label} does not work ({reason_of(error, 200)})"
    if absence is not None:
        say(f"warning: {absence}; what is logged waits in {journal_store(cfg)}, and work goes on")
    clerk = Clerk(store)
    sender = Sender(clerk, store, has_warned=absence is not None)
    tracker = Tracker(store, home, journal_store(cfg), clerk, sender, cfg.system_metrics_seconds, cfg.run_name, adoptable)
    try:
        yield tracker
    finally:
        left = sender.close(PATIENCE_SECONDS)
        if left:
            what = "1 run waits" if len(left) == 1 else f"{len(left)} runs wait"
            say(f"{what} in {tracker.journals} for the tracking store; the next command delivers it, or pipelines.sync"
                f" --tracking.uri {store.label}")  # fmt: skip


def _patiently(hold: Callable[[], Journal]) -> Journal:
    """Hold a journal; workers of a process that was just killed may keep it for a moment."""
    until = time.monotonic() + _HELD_SECONDS
    while True:
        try:
            return hold()
        except Held as held:
            if time.monotonic() > until:
                raise UserError(f"another process is writing this run (it holds {held})") from None
            time.sleep(0.2)


def journal_store(cfg: TrackingConfig) -> Path:
    """Return the folder of the journals."""
    return workspace(cfg) / cfg.journal


def config_of_run(run_id: str, cfg: TrackingConfig) -> str:
    """Return the ``config.yaml`` of a run; raises `UserError` where there is no such run, or none of ours."""
    store = connect(cfg)
    store.require()
    try:
        kind = store.client.get_run(run_id).data.tags.get("kind")
    except MlflowException:
        raise UserError(f"from_run: there is no run {run_id} in {store.label}") from None
    if kind not in _TRAININGS:
        raise UserError(f"from_run: run {run_id} is no training ({kind or 'not one of ours'}); give one of train, or a trial")
    with TemporaryDirectory() as scratch:
        try:
            return Path(store.client.download_artifacts(run_id, "config.yaml", scratch)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            raise UserError(f"from_run: run {run_id} holds no config.yaml: it was killed before it trained") from None
