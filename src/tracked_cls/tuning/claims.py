"""Who trains which trial: owners, trials of processes that died, and the arithmetic of the budget.

A trial that was interrupted goes from RUNNING back to WAITING, and whoever asks next continues it: same number, same
values, same run. Between two owners its ``owner`` says ``released <unix time>``: the dead owner's name would make a trial
that was just taken look dead for the moment until its new owner has signed it.
"""

from __future__ import annotations

import socket
import time
import warnings
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tracked_cls import durable
from tracked_cls.processes import Process

_RELEASED = "released"
_UNSIGNED_SECONDS = 60.0  # the owner signs in milliseconds
_UNSIGNED_SECONDS_ELSEWHERE = 600.0  # clocks of several machines differ, and heartbeats find the rest


def counted(study: Study, budget_from: int = 0) -> list[FrozenTrial]:
    """Return the trials from a number on that take a slot of the budget.

    All but void ones, and those that failed without an ``error``: found stale, they have a clone, which counts.
    """
    return [trial for trial in study.get_trials(deepcopy=False) if trial.number >= budget_from and _counts(trial)]


def open_slots(study: Study, trials: int) -> int:
    """Return how many of `trials` may still be started."""
    return max(0, trials - len(counted(study)))


def errors_in_a_row(study: Study, since_number: int = 0) -> int:
    """Return how many of the trials that ended last, from a number on, failed by themselves with no other between them."""
    ended = [trial for trial in counted(study, since_number) if trial.state.is_finished()]
    ended.sort(key=lambda trial: (trial.datetime_complete is not None and trial.datetime_complete.timestamp(), trial.number))
    row = 0
    for trial in ended:
        row = row + 1 if trial.state is TrialState.FAIL else 0
    return row


def elsewhere(study: Study) -> list[str]:
    """Return the other hosts whose processes own running trials."""
    owners = [Process.parse(trial.user_attrs.get("owner")) for trial in _running(study)]
    return sorted({owner.host for owner in owners if owner is not None} - {socket.gethostname()})


def take_over(
    study: Study, storage: BaseStorage, *, lock: Path, max_restarts: int, lost_host: str | None = None, alone: bool = False
) -> list[int]:
    """Put trials whose process is gone back among the waiting ones, and return their numbers.

    A trial that was put back `max_restarts` times before fails. `lock` is one file for all processes of this host that work
    on the study. `alone`: no process of this host is taking a trial at this moment; one without an owner, in a storage that
    only this host can reach, has lost its process. Call it before every trial: waiting trials get a heartbeat too, for the
    one they had may be old, and another machine would find a trial stale in the moment it starts again.
    """
    with durable.locked(lock):
        numbers = [
            trial.number
            for trial in _running(study)
            if _is_lost(trial, lost_host, storage, alone) and _put_back(study, storage, trial, max_restarts)
        ]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            _beat(storage, trial_id(study, storage, trial.number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
    return numbers


def hand_back(study: Study, storage: BaseStorage, number: int) -> None:
    """Put this process's own running trial back among the waiting ones, which is no restart: it ended cleanly.

    Nothing happens where the trial is no longer running, or another process's. Take no more trials in this process: a
    `JournalStorage` remembers the one it took last, and might believe that it won it again.
    """
    owners = {trial.number: trial.user_attrs.get("owner") for trial in _running(study)}
    if owners.get(number) == str(Process.me()):
        _release(storage, trial_id(study, storage, number))


def trial_id(study: Study, storage: BaseStorage, number: int) -> int:
    """Return the storage's own id of a trial."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_id, number)


def killed(times: int) -> str:
    """Return the error of a trial that was continued too often."""
    return f"its process was killed {times} time{'s' * (times != 1)}"


def _running(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _counts(trial: FrozenTrial) -> bool:
    is_stale = trial.state is TrialState.FAIL and "error" not in trial.user_attrs
    return not is_stale and not trial.user_attrs.get("void")


def _is_lost(trial: FrozenTrial, lost_host: str | None, storage: BaseStorage, alone: bool) -> bool:
    signature = trial.user_attrs.get("owner")
    owner = Process.parse(signature)
    if owner is None:
        if alone and isinstance(storage, JournalStorage):
            return True
        patience = _UNSIGNED_SECONDS_ELSEWHERE if _has_heartbeat(storage) else _UNSIGNED_SECONDS
        return _unsigned_seconds(trial, signature) > patience
    return owner.is_gone() or (owner.host == lost_host and owner.host != socket.gethostname())


def _unsigned_seconds(trial: FrozenTrial, signature: object) -> float:
    """Return for how long a trial has run without an owner: since it was taken, or since its owner let go of it."""
    since = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0  # naive, and local, in every storage
    words = str(signature).split(" ")
    return time.time() - max(since, float(words[1]) if words[0] == _RELEASED else 0.0)


def _put_back(study: Study, storage: BaseStorage, trial: FrozenTrial, max_restarts: int) -> bool:
    restarts = trial.user_attrs.get("restarts", 0) + 1
    identity = trial_id(study, storage, trial.number)
    with suppress(UpdateFinishedTrialError):  # another machine found it stale
        if {"error", "void"} & set(trial.user_attrs):  # it had failed already, and died before it could tell
            storage.set_trial_state_values(identity, TrialState.FAIL)
            return False
        if restarts <= max_restarts:
            _release(storage, identity)
            storage.set_trial_user_attr(identity, "restarts", restarts)  # last: killed in between, one is not counted
            return True
        storage.set_trial_user_attr(identity, "restarts", restarts)
        storage.set_trial_user_attr(identity, "error", killed(restarts))
        storage.set_trial_state_values(identity, TrialState.FAIL)
    return False


def _release(storage: BaseStorage, identity: int) -> None:
    storage.set_trial_user_attr(identity, "owner", f"{_RELEASED} {time.time():.3f}")
    _beat(storage, identity)
    storage.set_trial_state_values(identity, TrialState.WAITING)


def _has_heartbeat(storage: BaseStorage) -> bool:
    return getattr(storage, "get_heartbeat_interval", lambda: None)() is not None


def _beat(storage: BaseStorage, identity: int) -> None:
    if _has_heartbeat(storage):
        storage.record_heartbeat(identity)  # type: ignore[attr-defined]
