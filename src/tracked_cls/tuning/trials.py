"""What a trial is: a configuration drawn from the space, trained in a run of its own, and pruned where it lags behind."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from optuna import TrialPruned
from optuna.trial import Trial

from tracked_cls import anatomy, checkpoint, durable, models
from tracked_cls.config import PromoteSection, TrainConfig, override
from tracked_cls.config.tree import show
from tracked_cls.console import say
from tracked_cls.errors import Interrupted, StopRun
from tracked_cls.experiment import Trained
from tracked_cls.job import shape_of
from tracked_cls.state import TrainState
from tracked_cls.tracking import Tracker
from tracked_cls.tuning.claims import counted
from tracked_cls.tuning.queue import Failed, Queue, note_error, train
from tracked_cls.tuning.study import TRIALS, Search
from tracked_cls.tuning.table import ranked

OPTIONS = "options"  # what a trial sets, by option: the space may change when a study is extended
_COSTS = {"parameters": "num_parameters", "flops": "flops", "latency_ms": "latency_ms"}


class Pruned(StopRun):
    """A trial ends early: it lags behind, or its network is beyond a limit."""

    def __init__(self, reason: str) -> None:
        super().__init__("KILLED", reason)


@dataclass(frozen=True, eq=False)
class TrialObjective:
    """Trains one trial. `tracker` opens runs nested in that of the study; `is_orphan` says that nobody waits any more.

    Errors in a row are counted from trial `first_number` on.
    """

    search: Search
    queue: Queue
    tracker: Tracker
    is_orphan: Callable[[], bool]
    first_number: int
    started: float = field(default_factory=time.monotonic)

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """Return the value of a trial, with its cost where that is to be low too."""
        if sum(other.number < trial.number for other in counted(self.search.study)) >= self.search.cfg.tune.trials:
            trial.set_user_attr("void", True)  # workers of two machines took the last slot at once
            raise Failed
        try:
            return self._value(trial)
        except Pruned as stop:
            trial.set_user_attr("reason", stop.reason)
            self._tag(trial, {"optuna.state": "PRUNED"})
            self._say(trial, stop.reason)
            raise TrialPruned(stop.reason) from None
        except Exception as error:  # one bad trial never ends the search
            note_error(f"trial {trial.number}", trial, self.tracker, error)
            raise Failed from None

    def check(self) -> None:
        """Stop as if told to where nobody waits any more."""
        if self.is_orphan():
            raise Interrupted(signal.SIGTERM)

    def between(self) -> None:
        """Do what is due between two trials: stop, or lose weights that are needed no more."""
        self.check()
        self.search.stop_if_due(self.first_number, time.monotonic() - self.started)
        sweep(self.search, self.queue)

    def _value(self, trial: Trial) -> float | tuple[float, float]:
        search, tune = self.search, self.search.cfg.tune
        trial.set_user_attr("data.digest", search.prepared.manifest.digest)
        options = search.space.overrides(search.space.suggest(trial))
        trial.set_user_attr(OPTIONS, options)
        cfg = override(search.cfg.train, options).model_copy(update={"promote": PromoteSection()})  # a replay is like any other
        trained = train(
            self.queue,
            trial,
            cfg,
            self.tracker,
            kind="trial",
            name=f"trial {trial.number:04d}",
            on_epoch=partial(self._judge, trial, cfg),
            before=partial(self._weigh, trial, cfg),
        )
        value = value_of(search, trained)
        assert math.isfinite(value), "a training whose validation is not finite ends as diverged"
        self._tag(trial, {"optuna.state": "COMPLETE"})
        self._say(trial, f"{tune.metric} {value:.4f} after {trained.epochs} epochs{self._compared(value)}")
        return value if tune.minimize is None else (value, float(trial.user_attrs[tune.minimize]))

    def _judge(self, trial: Trial, cfg: TrainConfig, state: TrainState) -> None:
        """Report an epoch, and end the trial where the pruner says so."""
        self.check()
        if self.search.cfg.tune.minimize is not None:  # Optuna prunes by one value
            return
        metric = self.search.cfg.tune.metric
        value = state.best_score if metric == "val_accuracy" else state.best_loss
        trial.report(value, state.epoch)
        if state.epoch < cfg.epochs and trial.should_prune():
            reason = f"pruned after epoch {state.epoch} of {cfg.epochs}, {metric} {value:.4f}"
            trial.set_user_attr("reason", reason)  # at once: asked a second time, after a stop, Optuna answers otherwise
            self._tag(trial, {"pruned_at_epoch": state.epoch})
            raise Pruned(reason)

    def _weigh(self, trial: Trial, cfg: TrainConfig) -> None:
        """End a trial before it trains: one that was pruned before a stop, or whose network is beyond a limit."""
        if "reason" in trial.user_attrs:  # it was stopped between the decision and its end
            raise Pruned(trial.user_attrs["reason"])
        tune = self.search.cfg.tune
        limits = {name: limit for name in _COSTS if (limit := getattr(tune, f"max_{name}")) is not None}
        if not limits and tune.minimize is None:
            return
        shape = shape_of(self.search.prepared)
        found = anatomy.describe(models.make_model(cfg.model, shape).eval(), shape).metrics
        for name in {*limits, *([tune.minimize] if tune.minimize else [])}:
            trial.set_user_attr(name, found[_COSTS[name]])
        for name, limit in limits.items():
            trial.set_constraint(name, found[_COSTS[name]] - limit)
        for name, limit in limits.items():
            if found[_COSTS[name]] > limit:
                raise Pruned(f"not trained: {found[_COSTS[name]]:,g} {name}, tune.max_{name}={limit:,g}")

    def _tag(self, trial: Trial, tags: dict[str, object]) -> None:
        with self.tracker.opened(trial.user_attrs["mlflow_run_id"]) as run:
            run.set_tags(tags)

    def _compared(self, value: float) -> str:
        best = self.search.best
        sign = 1 if self.search.direction == "maximize" else -1
        if best is None or sign * value > sign * best.values[0]:
            return ", the best so far"
        return f" (best {best.values[0]:.4f}, trial {best.number})"

    def _say(self, trial: Trial, what: str) -> None:
        """Print one line for a trial that has ended."""
        options = " ".join(f"{name}={_brief(value)}" for name, value in trial.params.items())
        say(f"trial {trial.number}: {what}   [{_progress(self.search)}]   {options}")


def queue_of(search: Search) -> Queue:
    """Return the trials of a search as a queue."""
    tune = search.cfg.tune
    return Queue(search.study, search.storage, search.folder / TRIALS, search.prepared, tune.max_restarts, tune.lost_host)


def value_of(search: Search, trained: Trained) -> float:
    """Return what the search improves, of the weights that a training kept."""
    return trained.val.accuracy if search.cfg.tune.metric == "val_accuracy" else trained.val.loss


def sweep(search: Search, queue: Queue) -> None:
    """Delete the weights of all trials that have ended but the best ``tune.keep``."""
    with durable.locked(queue.folder / "sweep.lock"):
        _sweep(search, queue)


def _sweep(search: Search, queue: Queue) -> None:
    best = {trial.number for trial in ranked(search.study, search.prepared.manifest.digest)[: search.cfg.tune.keep]}
    for trial in search.study.get_trials(deepcopy=False):
        store = queue.store(trial.number)
        if not trial.state.is_finished() or not store.exists():
            continue
        if trial.number in best:
            checkpoint.keep_epoch(store, int(trial.user_attrs["best_epoch"]))
        else:
            shutil.rmtree(store)


def _progress(search: Search) -> str:
    """Return how many trials have ended, with the one that is about to, and when the rest may have."""
    tune = search.cfg.tune
    took = [trial.duration for trial in counted(search.study) if trial.state.is_finished() and trial.duration]
    ended = len(took) + 1
    if not took or ended >= tune.trials:
        return f"{ended} of {tune.trials}"
    seconds = sum(took, timedelta()).total_seconds() / len(took) * (tune.trials - ended) / tune.workers
    return f"{ended} of {tune.trials}, about {math.ceil(seconds / 60)} min left"


def _brief(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else show(value)
