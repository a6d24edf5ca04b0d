"""Who trains which trial: processes that live and die, trials that go on in place, the arithmetic of the budget."""

import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial

from tests.postgres_server import postgres, postgres_server  # noqa: F401
from tracked_cls import durable
from tracked_cls.config import TuneConfig
from tracked_cls.processes import Process
from tracked_cls.tuning.claims import (
    counted,
    elsewhere,
    errors_in_a_row,
    hand_back,
    open_slots,
    take_over,
)
from tracked_cls.tuning.storage import open_storage

pytestmark = [
    pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed"),  # of trials that are only asked for
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
HERE = socket.gethostname()
DEAD = Process(HERE, os.getpid(), 1)  # started when nothing of ours had
FAR = Process("far-away", 1, 1)


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def address(request):
    """The storage of a study: None is the journal."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres")
    return "sqlite:///studies.db" if request.param == "sqlite" else None


@pytest.fixture
def opened(tmp_path, address):
    """A study and its storage."""
    return _open(tmp_path, address)


@pytest.fixture
def plain(tmp_path):
    """A study and its storage, in a journal."""
    return _open(tmp_path, None)


def _open(home, address):
    tracking = {"uri": f"sqlite:///{home / 'mlflow.db'}"}
    storage = open_storage(TuneConfig.model_validate({"tune": {"storage": address}, "tracking": tracking}), "s")
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True), storage


def _running(study, owner, **attrs):
    """Return a trial that runs, as somebody's."""
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    for key, value in {**({} if owner is None else {"owner": str(owner)}), **attrs}.items():
        trial.set_user_attr(key, value)
    return trial


def _take_over(home, study, storage, **options):
    return take_over(study, storage, **{"lock": home / "owners.lock", "max_restarts": 2, **options})


def _states(study):
    return [trial.state.name for trial in study.trials]


# ---- owners ----------------------------------------------------------------------------------------------------------


def _sleeper():
    process = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


def _owner_of(process):
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return Process(HERE, process.pid, int(words[19]))


# ---- trials of dead processes ----------------------------------------------------------------------------------------


def test_a_trial_goes_on_in_place_with_its_number_values_and_run(tmp_path, opened):
    study, storage = opened
    first = _running(study, DEAD, mlflow_run_id="abc")
    first.report(0.25, 1)

    assert _take_over(tmp_path, study, storage) == [0]
    waiting = study.trials[0]
    assert waiting.state is TrialState.WAITING
    assert Process.parse(waiting.user_attrs["owner"]) is None, "whoever takes it does not look dead before signing"

    again = study.ask()
    assert again.number == 0
    assert study.trials[0].state is TrialState.RUNNING
    assert _take_over(tmp_path, study, storage) == [], "taken a moment ago, and not signed yet"
    assert again.suggest_float("x", 0, 1) == first.params["x"]
    assert again.user_attrs["mlflow_run_id"] == "abc"
    assert again.user_attrs["restarts"] == 1
    assert study.trials[0].intermediate_values == {1: 0.25}
    study.tell(again, 0.5)
    assert _states(study) == ["COMPLETE"]


def test_a_killed_process_leaves_a_trial_that_another_goes_on_with(tmp_path, plain):
    study, storage = plain
    process = _sleeper()
    _running(study, _owner_of(process))
    assert _take_over(tmp_path, study, storage) == []
    process.kill()
    process.wait()
    assert _take_over(tmp_path, study, storage) == [0]


def test_trials_that_live_or_may_live_are_left_alone(tmp_path, plain):
    study, storage = plain
    for owner in (Process.me(), FAR, None):
        _running(study, owner)
    assert _take_over(tmp_path, study, storage) == []
    assert _states(study) == ["RUNNING"] * 3
    assert elsewhere(study) == ["far-away"]


def test_a_trial_of_a_lost_machine_is_taken_over_when_told(tmp_path, plain):
    study, storage = plain
    for owner in (FAR, Process.me(), Process("far", 1, 1)):
        _running(study, owner)
    assert _take_over(tmp_path, study, storage, lost_host="far-away") == [0]


def test_this_machine_is_never_lost(tmp_path, plain):
    study, storage = plain
    _running(study, Process.me())
    assert _take_over(tmp_path, study, storage, lost_host=HERE) == []


@pytest.mark.parametrize("seconds", [30, 90])
@pytest.mark.parametrize("released", [None, 10, 7200], ids=["new", "just released", "released long ago"])
def test_a_trial_nobody_signed_is_taken_over_after_a_minute(tmp_path, plain, monkeypatch, seconds, released):
    study, storage = plain
    now = time.time()
    _running(study, None if released is None else f"released {now + seconds - released}")
    monkeypatch.setattr("tracked_cls.tuning.claims.time.time", lambda: now + seconds)
    is_old = seconds == 90 and released != 10
    assert _take_over(tmp_path, study, storage) == ([0] if is_old else [])


def test_the_minute_is_a_minute_in_every_time_zone(tmp_path, opened, monkeypatch):
    study, storage = opened
    _running(study, None)
    try:
        with monkeypatch.context() as patched:
            patched.setenv("TZ", "PST8")
            time.tzset()
            study, storage = _open(tmp_path, None if study._storage is storage else storage.url)
            assert _take_over(tmp_path, study, storage) == []
    finally:
        time.tzset()


def test_on_several_machines_an_unsigned_trial_is_given_more_time(tmp_path, postgres, monkeypatch):  # noqa: F811
    study, storage = _open(tmp_path, postgres)
    _running(study, None)
    now = time.time()
    monkeypatch.setattr("tracked_cls.tuning.claims.time.time", lambda: now + 300)
    assert _take_over(tmp_path, study, storage) == []
    monkeypatch.setattr("tracked_cls.tuning.claims.time.time", lambda: now + 900)
    assert _take_over(tmp_path, study, storage) == [0]


def test_a_trial_that_is_killed_again_and_again_fails_with_the_reason(tmp_path, plain):
    study, storage = plain
    _running(study, DEAD, restarts=1)
    assert _take_over(tmp_path, study, storage) == [0]
    study.ask().set_user_attr("owner", str(DEAD))
    assert _take_over(tmp_path, study, storage) == []
    trial = study.trials[0]
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["error"] == "its process was killed 3 times"
    assert len(counted(study)) == 1


@pytest.mark.parametrize("mark", ["error", "void"])
def test_a_trial_that_had_failed_before_its_process_died_is_not_tried_again(tmp_path, plain, mark):
    study, storage = plain
    _running(study, DEAD, **{mark: True})
    assert _take_over(tmp_path, study, storage) == []
    assert _states(study) == ["FAIL"]


def test_four_processes_at_once_put_each_dead_trial_back_exactly_once(tmp_path, address):
    study, storage = _open(tmp_path, address)
    for _ in range(6):
        _running(study, DEAD)
    if address is not None:
        storage.engine.dispose()  # its connections must not travel
    context = get_context("fork")
    answers = context.SimpleQueue()
    workers = [context.Process(target=_take_over_and_answer, args=(tmp_path, address, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    taken = [number for _ in workers for number in answers.get()]
    for worker in workers:
        worker.join(30)
    assert sorted(taken) == [0, 1, 2, 3, 4, 5]
    assert [trial.user_attrs["restarts"] for trial in study.trials] == [1] * 6
    assert _states(study) == ["WAITING"] * 6


def _take_over_and_answer(home, address, answers):
    study, storage = _open(home, address)
    answers.put(_take_over(home, study, storage))


def test_a_waiting_trial_gets_a_fresh_heartbeat_so_that_it_does_not_start_stale(tmp_path, postgres):  # noqa: F811
    study, storage = _open(tmp_path, postgres)
    _running(study, DEAD)
    _age(storage, 0)
    assert _take_over(tmp_path, study, storage) == [0]
    study.ask().set_user_attr("owner", str(Process.me()))
    optuna.storages.fail_stale_trials(study)
    assert _states(study) == ["RUNNING"]

    hand_back(study, storage, 0)
    _age(storage, 0)  # the one who takes it comes late
    _take_over(tmp_path, study, storage)
    study.ask()
    optuna.storages.fail_stale_trials(study)
    assert _states(study) == ["RUNNING"]


def test_a_trial_of_a_machine_that_fell_silent_is_made_anew_once(tmp_path, postgres):  # noqa: F811
    study, storage = _open(tmp_path, postgres)
    _running(study, FAR, mlflow_run_id="abc")
    _age(storage, 0)
    assert _take_over(tmp_path, study, storage) == []
    assert _take_over(tmp_path, study, storage) == []
    assert _states(study) == ["FAIL", "WAITING"]
    assert study.trials[1].user_attrs == {"mlflow_run_id": "abc", "restarts": 1}
    assert [trial.number for trial in counted(study)] == [1], "the clone counts"


# ---- a clean stop ----------------------------------------------------------------------------------------------------


def test_a_trial_that_is_handed_back_has_not_been_restarted(tmp_path, opened):
    study, storage = opened
    first = _running(study, Process.me())
    hand_back(study, storage, 0)
    assert _states(study) == ["WAITING"]
    assert "restarts" not in study.trials[0].user_attrs
    study, _ = _open(tmp_path, None if not hasattr(storage, "url") else storage.url)
    again = study.ask()
    assert (again.number, again.params) == (0, first.params)


def test_only_an_own_running_trial_is_handed_back(plain):
    study, storage = plain
    _running(study, FAR)
    study.tell(_running(study, Process.me()), 1.0)
    for number in (0, 1, 7):
        hand_back(study, storage, number)
    assert _states(study) == ["RUNNING", "COMPLETE"]


# ---- the budget ------------------------------------------------------------------------------------------------------


def _add(study, *trials):
    """Add trials as (state, attrs); each ends a second after the one before."""
    for index, (state, attrs) in enumerate(trials):
        trial = create_trial(state=state, value=1.0 if state is TrialState.COMPLETE else None, user_attrs=attrs)
        if state.is_finished():
            trial.datetime_complete = datetime.now() + timedelta(seconds=index)
        study.add_trial(trial)


COMPLETE, PRUNED = (TrialState.COMPLETE, {}), (TrialState.PRUNED, {})
ERROR, STALE = (TrialState.FAIL, {"error": "nan"}), (TrialState.FAIL, {})
VOID = (TrialState.FAIL, {"void": True, "error": "above the budget"})


def test_the_budget_counts_all_but_void_and_stale_trials():
    study = optuna.create_study()
    _add(study, COMPLETE, PRUNED, ERROR, STALE, VOID, (TrialState.WAITING, {}))
    study.ask()  # takes the one that waits
    study.ask()
    assert [trial.number for trial in counted(study)] == [0, 1, 2, 5, 6]
    assert [trial.number for trial in counted(study, budget_from=2)] == [2, 5, 6]
    assert [open_slots(study, trials) for trials in (4, 5, 7)] == [0, 0, 2]


@pytest.mark.parametrize(
    ("trials", "since", "row"),
    [
        ([], 0, 0),
        ([ERROR, ERROR], 0, 2),
        ([ERROR, ERROR], 1, 1),
        ([ERROR, COMPLETE], 0, 0),
        ([ERROR, COMPLETE, ERROR, ERROR], 0, 2),
        ([COMPLETE, ERROR, PRUNED, ERROR], 0, 1),
        ([ERROR, STALE, ERROR, VOID], 0, 2),
        ([ERROR, (TrialState.WAITING, {}), ERROR], 0, 2),
    ],
)
def test_errors_in_a_row_are_the_last_ones_that_ended(trials, since, row):
    study = optuna.create_study()
    _add(study, *trials)
    assert errors_in_a_row(study, since) == row


def test_errors_are_in_the_order_in_which_trials_ended_not_began():
    study = optuna.create_study()
    slow = study.ask()
    _add(study, ERROR)
    time.sleep(0.01)
    study.tell(slow, 1.0)
    assert errors_in_a_row(study) == 0


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    path = tmp_path / "new" / "lock"
    context = get_context("fork")
    other = context.Process(target=_enter, args=(path,))
    with durable.locked(path):
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join(10)
    assert other.exitcode == 0


def _enter(path):
    with durable.locked(path):
        pass


def _age(storage, number):
    """Let the last sign of life of a trial be ten minutes old."""
    identity = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name("s"), number)
    storage.record_heartbeat(identity)
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = heartbeat - INTERVAL '10 minutes'"))
