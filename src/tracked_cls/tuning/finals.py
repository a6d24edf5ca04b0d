"""The finals: the best trials trained anew on fresh seeds, and the one whose mean is best.

The best of many trials owes its value to luck in part (the winner's curse): a mean over seeds that no trial had does not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tracked_cls import checkpoint, durable, experiment
from tracked_cls.config import TrainConfig, override
from tracked_cls.console import say
from tracked_cls.errors import StopRun
from tracked_cls.experiment import Outcome
from tracked_cls.job import Given
from tracked_cls.tracking import Tracker
from tracked_cls.tuning.queue import Failed, Queue, note_error, train
from tracked_cls.tuning.study import Search
from tracked_cls.tuning.table import ranked, upper_accuracy
from tracked_cls.tuning.trials import OPTIONS, value_of

_PLAN_SECONDS = 10.0


@dataclass(frozen=True)
class Finalist:
    """One configuration in the finals: the trial it comes from, and its re-trainings.

    `sign` is 1 where a higher value is better, else -1. `mean` and `std` are of their values, `mean_upper` of their
    `table.upper_accuracy`.
    """

    trial: FrozenTrial
    trainings: tuple[FrozenTrial, ...]
    mean: float
    std: float
    mean_upper: float
    sign: float

    @property
    def median(self) -> FrozenTrial:
        """The re-training of median value (the worse one of two in the middle), of equal ones that of the lowest seed."""
        by_value = sorted(self.trainings, key=lambda training: (self.sign * training.values[0], seed_of(training)))
        median = by_value[(len(by_value) - 1) // 2].values[0]
        return next(training for training in by_value if training.values[0] == median)


def open_finals(search: Search) -> Queue:
    """Return the queue of all re-trainings, made by whoever comes first once all trials have ended."""
    name = _name(search)
    with durable.locked(search.folder / "open.lock"):
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
    there = {(training.user_attrs["trial"], seed_of(training)) for training in _trainings(finals)}
    first = search.cfg.seed + 1
    for seed in range(first, first + search.cfg.tune.finalist_seeds):
        for trial in candidates(search):
            if (trial.number, seed) not in there:
                finals.enqueue_trial({}, user_attrs={"trial": trial.number, "seed": seed})
    finals.set_user_attr("planned", True)


def try_again(search: Search) -> None:
    """Enqueue the finals once more where every one of them failed: what was in the way may be gone."""
    finals = open_finals(search).study if _is_planned(search) else None
    trainings = _trainings(finals) if finals else []
    if finals and trainings and all(training.state is TrialState.FAIL for training in trainings):
        for trial, seed in dict.fromkeys((training.user_attrs["trial"], seed_of(training)) for training in trainings):
            finals.enqueue_trial({}, user_attrs={"trial": trial, "seed": seed})


def _is_planned(search: Search) -> bool:
    return _name(search) in optuna.get_all_study_names(search.storage)


def _name(search: Search) -> str:
    tune = search.cfg.tune
    return f"{search.name}.finals-{search.round}-{tune.finalists}x{tune.finalist_seeds}"


def _trainings(finals: Study) -> list[FrozenTrial]:
    """Return all re-trainings; two machines that take the last one at once make a void one besides."""
    return [training for training in finals.get_trials(deepcopy=False) if "trial" in training.user_attrs]


def candidates(search: Search) -> list[FrozenTrial]:
    """Return the trials that are trained anew: the best ones with different options.

    Of two objectives: the best one, and the cheapest of the Pareto front that are near to it.
    """
    tune, complete = search.cfg.tune, ranked(search.study, search.prepared.manifest.digest)
    different = list({str(sorted(trial.params.items())): trial for trial in reversed(complete)}.values())[::-1]
    different.sort(key=complete.index)
    if tune.minimize is None or not different:
        return different[: tune.finalists]
    best, *others = _front(search, different)
    near = [trial for trial in others if abs(trial.values[0] - best.values[0]) <= tune.within]
    return [best, *sorted(near, key=lambda trial: trial.values[1])][: tune.finalists]


def _front(search: Search, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials, of an order from the best metric on, that cost less than all before them."""
    front: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda trial: (-_sign(search) * trial.values[0], trial.values[1])):
        if not front or trial.values[1] < front[-1].values[1]:
            front.append(trial)
    return front


def _sign(search: Search) -> float:
    return 1.0 if search.direction == "maximize" else -1.0


@dataclass(frozen=True, eq=False)
class FinalObjective:
    """Trains one finalist on one seed; `check` raises where nobody waits for it any more."""

    search: Search
    queue: Queue
    tracker: Tracker
    check: Callable[[], None]

    def __call__(self, trial: Trial) -> float:
        """Return the value of a re-training."""
        if "trial" not in trial.user_attrs:
            trial.set_user_attr("void", True)  # two machines took the last training at once
            raise Failed
        try:
            trained = train(
                self.queue, trial, configured(self.search, trial), self.tracker,
                kind="train", name=title(trial), on_epoch=lambda state: self.check(),
            )  # fmt: skip
        except Exception as error:  # a seed that diverges leaves the others
            note_error(title(trial), trial, self.tracker, error)
            raise Failed from None
        value = value_of(self.search, trained)
        trainings = _trainings(self.queue.study)
        ended = sum(training.state.is_finished() for training in trainings) + 1
        say(f"{title(trial)}: {self.search.cfg.tune.metric} {value:.4f}   [{ended} of {len(trainings)}]")
        return value


def configured(search: Search, training: Trial | FrozenTrial) -> TrainConfig:
    """Return what a re-training trains: the options of its trial, on its own seed."""
    trial = search.study.get_trials(deepcopy=False)[training.user_attrs["trial"]]
    return override(search.cfg.train, {**trial.user_attrs[OPTIONS], "seed": seed_of(training)})


def judge(search: Search, finals: Queue) -> list[Finalist]:
    """Return the finalists, the best mean first; where a cost counts, the cheapest of those near the best mean comes first.

    One with a seed that failed comes after all others: the mean of those that did well is no mean. Raises `StopRun` where
    nothing could be trained.
    """
    trials = {trial.number: trial for trial in search.study.get_trials(deepcopy=False)}
    done: dict[int, list[FrozenTrial]] = {}
    for training in finals.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        done.setdefault(training.user_attrs["trial"], []).append(training)
    if not done:
        raise StopRun("FAILED", _why_none(search, finals))
    found = [_finalist(trials[number], trainings, _sign(search)) for number, trainings in done.items()]
    found.sort(key=lambda one: (-len(one.trainings), -_sign(search) * one.mean, -one.mean_upper, one.trial.number))
    if search.cfg.tune.minimize is None:
        return found
    whole = [finalist for finalist in found if len(finalist.trainings) == len(found[0].trainings)]
    near = [finalist for finalist in whole if abs(finalist.mean - found[0].mean) <= search.cfg.tune.within]
    cheapest = min(near, key=lambda finalist: finalist.trial.values[1])
    return [cheapest, *(finalist for finalist in found if finalist is not cheapest)]


def _why_none(search: Search, finals: Queue) -> str:
    errors = [str(training.user_attrs.get("error")) for training in _trainings(finals.study)]
    if errors:
        return f"every one of the finals failed ({errors[-1].splitlines()[0][:200]}); the same command tries them again"
    return (
        "no trial came to its end; trials.csv of the study's run has the reasons. tune.extend=true with more tune.trials goes "
        "on, another tune.study begins anew"
    )


def _finalist(trial: FrozenTrial, trainings: Sequence[FrozenTrial], sign: float) -> Finalist:
    values = [training.values[0] for training in trainings]
    upper = [upper_accuracy(training) for training in trainings]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Finalist(trial, tuple(trainings), float(np.mean(values)), spread, float(np.mean(upper)), sign)


def release(search: Search, finals: Queue, winner: FrozenTrial, tracker: Tracker) -> Outcome:
    """Test, log and register the weights of one re-training: they are those that were measured, by digest.

    Where they are no longer there, it is trained again; raises `UserError` unless the same weights come out.
    """
    store = finals.store(winner.number)
    if not checkpoint.has_checkpoints(store):
        say(f"{title(winner)}: its weights are not on this machine, so it is trained again")
    with tracker.begin("train", title(winner), continue_id=str(winner.user_attrs["mlflow_run_id"])) as run:
        given = Given(search.prepared, run, store, expected=winner.user_attrs["weights.digest"])
        return experiment.run(configured(search, winner), tracker, given, title(winner))


def sweep(finals: Queue, winner: FrozenTrial) -> None:
    """Delete the weights of all re-trainings but the winner's."""
    for training in _trainings(finals.study):
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
