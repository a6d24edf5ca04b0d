"""The finals: the best trials trained anew on fresh seeds, and the one whose mean is best.

The best of many trials owes its value to luck in part (the winner's curse): a mean over seeds that no trial had does not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tracked_cls import checkpoint, experiment
from tracked_cls.config import TrainConfig, override
from tracked_cls.console import say
from tracked_cls.errors import StopRun, UserError
from tracked_cls.experiment import Outcome
from tracked_cls.job import Given
from tracked_cls.tracking import Tracker
from tracked_cls.tuning.claims import locked
from tracked_cls.tuning.queue import Failed, Queue, note_error, train
from tracked_cls.tuning.study import Search
from tracked_cls.tuning.table import ranked
from tracked_cls.tuning.trials import OPTIONS, value_of

_PLAN_SECONDS = 10.0


@dataclass(frozen=True)
class Finalist:
    """One configuration in the finals: the trial it comes from, and its re-trainings, by seed."""

    trial: FrozenTrial
    trainings: tuple[FrozenTrial, ...]
    mean: float
    std: float
    mean_loss: float

    @property
    def median(self) -> FrozenTrial:
        """The re-training of median value, of equal ones that of the lowest seed."""
        by_value = sorted(self.trainings, key=lambda training: (training.values[0], seed_of(training)))
        median = by_value[(len(by_value) - 1) // 2].values[0]
        return next(training for training in by_value if training.values[0] == median)


def open_finals(search: Search) -> Queue:
    """Return the queue of all re-trainings, made by whoever comes first once all trials have ended."""
    name = f"{search.name}.finals-{search.cfg.tune.trials}"
    with locked(search.folder / "open.lock"):
        try:
            study = optuna.create_study(storage=search.storage, study_name=name, direction=search.direction)
        except DuplicatedStudyError:
            study = optuna.load_study(storage=search.storage, study_name=name)
            _wait_for_plan(study)
        if not study.user_attrs.get("planned"):
            _plan(search, study)
    tune = search.cfg.tune
    return Queue(study, search.storage, search.folder / name, search.prepared, tune.max_restarts, tune.lost_host)


def _wait_for_plan(finals: Study) -> None:
    """Give another machine the time to finish the plan it has begun."""
    until = time.monotonic() + _PLAN_SECONDS
    while not finals.user_attrs.get("planned") and time.monotonic() < until:
        time.sleep(0.5)


def _plan(search: Search, finals: Study) -> None:
    """Enqueue each finalist with each seed; what is there from a start that was killed is not doubled."""
    tune = search.cfg.tune
    there = {(trial.user_attrs["trial"], seed_of(trial)) for trial in finals.get_trials(deepcopy=False)}
    for seed in range(search.cfg.seed + 1, search.cfg.seed + 1 + tune.finalist_seeds):
        for trial in candidates(search):
            if (trial.number, seed) not in there:
                finals.enqueue_trial({}, user_attrs={"trial": trial.number, "seed": seed})
    finals.set_user_attr("planned", True)


def candidates(search: Search) -> list[FrozenTrial]:
    """Return the trials that are trained anew: the best ones with different options; of a Pareto front, those near the top."""
    tune, complete = search.cfg.tune, ranked(search.study, search.prepared.manifest.digest)
    if tune.minimize is not None and complete:
        front = {trial.number for trial in search.study.best_trials}
        near = [trial for trial in complete if abs(trial.values[0] - complete[0].values[0]) <= tune.within]
        complete = [trial for trial in near if trial.number in front]
    different = {str(sorted(trial.params.items())): trial for trial in reversed(complete)}
    return sorted(different.values(), key=complete.index)[: tune.finalists]


@dataclass(frozen=True, eq=False)
class FinalObjective:
    """Trains one finalist on one seed."""

    search: Search
    queue: Queue
    tracker: Tracker

    def __call__(self, trial: Trial) -> float:
        """Return the value of a re-training."""
        try:
            trained = train(
                self.queue, trial, configured(self.search, trial), self.tracker,
                kind="train", name=title(trial), on_epoch=lambda state: None,
            )  # fmt: skip
        except Exception as error:  # a seed that diverges leaves the others
            note_error(title(trial), trial, self.tracker, error)
            raise Failed from None
        value = value_of(self.search, trained)
        trainings = self.queue.study.get_trials(deepcopy=False)
        ended = sum(training.state.is_finished() for training in trainings) + 1
        say(f"{title(trial)}: {self.search.cfg.tune.metric} {value:.4f}   [{ended} of {len(trainings)}]")
        return value


def configured(search: Search, training: Trial | FrozenTrial) -> TrainConfig:
    """Return what a re-training trains: the options of its trial, on its own seed."""
    trial = search.study.get_trials(deepcopy=False)[training.user_attrs["trial"]]
    return override(search.cfg.train, {**trial.user_attrs[OPTIONS], "seed": seed_of(training)})


def judge(search: Search, finals: Queue) -> list[Finalist]:
    """Return the finalists, the best mean first; where a cost counts, the cheapest of those near the best mean comes first.

    Raises `StopRun` where nothing could be trained.
    """
    trials = {trial.number: trial for trial in search.study.get_trials(deepcopy=False)}
    done: dict[int, list[FrozenTrial]] = {}
    for training in finals.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        done.setdefault(training.user_attrs["trial"], []).append(training)
    if not done:
        raise StopRun("FAILED", "no trial could be trained to the end; see trials.csv of the study's run for the reasons")
    sign = -1.0 if search.direction == "maximize" else 1.0
    found = [_finalist(trials[number], trainings) for number, trainings in done.items()]
    found.sort(key=lambda finalist: (sign * finalist.mean, finalist.mean_loss, finalist.trial.number))
    if search.cfg.tune.minimize is None:
        return found
    near = [finalist for finalist in found if abs(finalist.mean - found[0].mean) <= search.cfg.tune.within]
    cheapest = min(near, key=lambda finalist: finalist.trial.values[1])
    return [cheapest, *(finalist for finalist in found if finalist is not cheapest)]


def _finalist(trial: FrozenTrial, trainings: Sequence[FrozenTrial]) -> Finalist:
    values = [training.values[0] for training in trainings]
    losses = [training.user_attrs["val_loss"] for training in trainings]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Finalist(trial, tuple(trainings), float(np.mean(values)), spread, float(np.mean(losses)))


def release(search: Search, finals: Queue, winner: FrozenTrial, tracker: Tracker) -> Outcome:
    """Test, log and register the weights of one re-training: they are those that were measured, by digest."""
    cfg, store = configured(search, winner), finals.store(winner.number)
    run_id = str(winner.user_attrs["mlflow_run_id"])
    if not checkpoint.has_checkpoints(store):
        _repeat(search, finals, winner, tracker)
    with tracker.begin("train", title(winner), continue_id=run_id) as run:
        return experiment.run(cfg, tracker, Given(search.prepared, run, store), title(winner))


def _repeat(search: Search, finals: Queue, winner: FrozenTrial, tracker: Tracker) -> None:
    """Train the winner once more where its weights are gone; raises `UserError` unless the same weights come out."""
    say(f"{title(winner)}: its weights are not on this machine, so it is trained again")
    with tracker.begin("train", title(winner), continue_id=str(winner.user_attrs["mlflow_run_id"])) as run:
        given = Given(search.prepared, run, finals.store(winner.number))
        trained = experiment.learn(configured(search, winner), tracker, kind="train", name=title(winner), given=given)
    if trained.weights_digest != winner.user_attrs["weights.digest"]:
        shutil.rmtree(finals.store(winner.number))
        raise UserError(
            f"{title(winner)}: trained again, other weights come out ({trained.weights_digest[:12]} instead of "
            f"{winner.user_attrs['weights.digest'][:12]}): not registered; go on where {finals.store(winner.number)} was kept"
        )


def sweep(finals: Queue, winner: FrozenTrial) -> None:
    """Delete the weights of all re-trainings but the winner's."""
    for training in finals.study.get_trials(deepcopy=False):
        store = finals.store(training.number)
        if training.number == winner.number:
            checkpoint.keep_epoch(store, int(training.user_attrs["best_epoch"]))
        elif store.exists():
            shutil.rmtree(store)


def seed_of(training: Trial | FrozenTrial) -> int:
    """Return the seed of a re-training."""
    return int(training.user_attrs["seed"])


def title(training: Trial | FrozenTrial) -> str:
    """Return the name of a re-training."""
    return f"final of trial {training.user_attrs['trial']:04d}, seed {seed_of(training)}"
