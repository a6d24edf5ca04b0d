"""Trainings that the workers of all machines take one by one: the trials of a search, and those of its finalists."""

from __future__ import annotations

import gc
import hashlib
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState

from tracked_cls import durable, experiment, failpoints, signals
from tracked_cls.config import TrainConfig
from tracked_cls.console import say
from tracked_cls.data.cache import Prepared
from tracked_cls.errors import Interrupted, StopRun
from tracked_cls.experiment import OnEpoch, Trained
from tracked_cls.job import Given
from tracked_cls.processes import Process
from tracked_cls.tracking import Tracker
from tracked_cls.tuning.claims import elsewhere, hand_back, take_over

_POLL_SECONDS = 1.0
_TELL_SECONDS = 60.0

# a continued trial repeats what it has reported: with the same values
warnings.filterwarnings("ignore", message="The reported value is ignored because")


class Failed(Exception):  # noqa: N818 - tells Optuna that a training is over, and was said to be
    """A training ended without a value."""


Objective = Callable[[Trial], float | tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Queue:
    """The trainings of a study, taken by one worker at a time; `folder` holds their local state, one folder each."""

    study: Study
    storage: BaseStorage
    folder: Path
    prepared: Prepared
    max_restarts: int
    lost_host: str | None

    def work_off(
        self, objective: Objective, *, may_start: Callable[[], bool] = lambda: False, between: Callable[[], None] = lambda: None
    ) -> None:
        """Run what waits, and new ones while they may start, until all have ended, those of other workers too.

        `between` is called before each.
        """
        gc.freeze()  # what is there now stays: looking through it after every training would take a fifth of a second
        try:
            self._work_off(objective, may_start, between)
        finally:
            gc.unfreeze()

    def _work_off(self, objective: Objective, may_start: Callable[[], bool], between: Callable[[], None]) -> None:
        told = time.monotonic()
        while True:
            between()
            if self._take(objective, may_start):
                told = time.monotonic()
                continue
            if not self._of_state(TrialState.RUNNING):
                return
            time.sleep(_POLL_SECONDS)  # another worker may die yet, and its training is to be continued
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                self._say_what_is_waited_for()

    def store(self, number: int) -> Path:
        """Return the folder of one training's checkpoints."""
        return self.folder / f"{number:04d}"

    def _take(self, objective: Objective, may_start: Callable[[], bool]) -> bool:
        """Run the next training; False where there is none for now. Taking one goes on under a lock, running it does not."""
        with ExitStack() as claim:
            claim.enter_context(signals.deferred())  # a trial that is taken gets its owner's name, whatever happens
            claim.enter_context(durable.locked(self.folder / "claim.lock"))
            take_over(self.study, self.storage, lock=self.folder / "owners.lock", max_restarts=self.max_restarts,
                      lost_host=self.lost_host, alone=True)  # fmt: skip
            if not self._of_state(TrialState.WAITING) and not may_start():
                return False
            self._run_one(partial(self._run, objective, claim))
        return True

    def _run_one(self, objective: Objective) -> None:
        try:
            self.study.optimize(objective, n_trials=1, catch=(Failed,))
        except (UpdateFinishedTrialError, ValueError) as error:
            if isinstance(error, ValueError) and not str(error).startswith("Cannot tell a"):
                raise  # else: this process slept, and lost its trial to another machine
            say(f"warning: the result of a training is dropped: {error}")
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _run(self, objective: Objective, claim: ExitStack, trial: Trial) -> float | tuple[float, float]:
        trial.set_user_attr("owner", str(Process.me()))
        failpoints.reach("tune.after_claim")
        try:
            claim.close()
            return objective(trial)
        except Interrupted:
            with signals.deferred():
                hand_back(self.study, self.storage, trial.number)
            raise

    def _of_state(self, state: TrialState) -> int:
        return len(self.study.get_trials(deepcopy=False, states=(state,)))

    def _say_what_is_waited_for(self) -> None:
        hosts = elsewhere(self.study)
        there = f", some on {', '.join(hosts)} (gone for good? tune.lost_host={hosts[0]})" if hosts else ""
        say(f"waiting for {self._of_state(TrialState.RUNNING)} trainings of other workers{there}")


def train(
    queue: Queue,
    trial: Trial,
    cfg: TrainConfig,
    tracker: Tracker,
    *,
    kind: str,
    name: str,
    on_epoch: OnEpoch,
    before: Callable[[], None] = lambda: None,
) -> Trained:
    """Train in the trial's own run, a continued one in the run it had, and note in the study what came of it.

    `before` may end it untrained. An error ends the run FAILED and is raised: it is the objective's to note (`note_error`).
    """
    started = time.monotonic()
    with tracker.begin(kind, name, continue_id=trial.user_attrs.get("mlflow_run_id"), **_identity(trial, tracker)) as run:
        trial.set_user_attr("mlflow_run_id", run.run_id)
        before()
        given = Given(queue.prepared, run, queue.store(trial.number))
        trained = experiment.learn(cfg, tracker, kind=kind, name=name, given=given, on_epoch=on_epoch)
    failpoints.reach("tune.before_tell")
    reached = {
        "val_accuracy": trained.val.accuracy,
        "val_accuracy_upper": trained.upper_accuracy,
        "val_loss": trained.val.loss,
        "best_epoch": trained.best_epoch,
        "epochs": trained.epochs,
        "weights.digest": trained.weights_digest,
    }
    trial.set_user_attr("mlflow_run_id", run.run_id)  # begun while MLflow was away, it had none
    for key, value in {**reached, "seconds": round(time.monotonic() - started, 2)}.items():
        trial.set_user_attr(key, value)
    return trained


def end_lost_runs(study: Study, tracker: Tracker) -> None:
    """End the runs of trainings that failed without their process, which was killed too often, as what they are: FAILED."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        run_id, error = trial.user_attrs.get("mlflow_run_id"), trial.user_attrs.get("error")
        if run_id is not None and error is not None and tracker.status(run_id) == "RUNNING":
            with tracker.opened(run_id) as run:
                run.set_tags({"optuna.state": "FAIL", "error": error})
                run.end("FAILED")


def note_error(name: str, trial: Trial, tracker: Tracker, error: Exception) -> None:
    """Keep an error that ended a training: a line in the study, all of it in the run."""
    text = f"{type(error).__name__}: {error}" if not isinstance(error, StopRun) else error.reason
    trial.set_user_attr("error", text[:500])
    say(f"{name} failed: {text.splitlines()[0][:300]}")
    run_id = trial.user_attrs.get("mlflow_run_id")
    if run_id is not None:
        with tracker.opened(run_id) as run:
            run.set_tags({"optuna.state": "FAIL"})
            run.log_text("".join(traceback.format_exception(error)), "error.txt")


def _identity(trial: Trial, tracker: Tracker) -> dict[str, Any]:
    """Return what marks the run of a training, and a key, by which there is one even if the process is killed then."""
    number, study = str(trial.number), trial.study.study_name
    key = hashlib.sha256(f"{tracker.parent} {study} {number}".encode()).hexdigest()[:32]
    return {"key": key, "tags": {"optuna.study": study, "optuna.trial_number": number}}
