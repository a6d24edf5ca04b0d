"""Any number of workers, two of them killed: exactly as many trials as asked for, none lost, none twice."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from tests.conftest import ROOT
from tests.postgres_server import postgres, postgres_server  # noqa: F401
from tests.test_tuning import study_of, words
from tracked_cls.config import TuneConfig
from tracked_cls.tuning.claims import open_slots
from tracked_cls.tuning.queue import Queue
from tracked_cls.tuning.storage import open_storage

BUDGET = 24


@pytest.fixture(params=["journal", "postgres"])
def cfg(request, tmp_path):
    """A search whose trials lie in a file, or in a real PostgreSQL."""
    url = request.getfixturevalue("postgres") if request.param == "postgres" else f"journal:///{tmp_path / 's.journal'}"
    return TuneConfig.model_validate({"tune": {"storage": url, "trials": BUDGET, "max_restarts": 5}})


def work(cfg, folder):
    """Be a worker whose trainings take no time worth speaking of, and are noted when they begin and when they have ended."""
    storage = open_storage(cfg, "kills")
    study = optuna.load_study(study_name="kills", storage=storage, sampler=optuna.samplers.RandomSampler())
    queue = Queue(study, storage, folder, None, cfg.tune.max_restarts, None)

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        note(folder / "begun", trial.number)
        time.sleep(random.uniform(0.05, 0.2))
        trial.report(x, 1)
        note(folder / "ended", trial.number)
        if x < 0.4:
            raise optuna.TrialPruned
        return x

    queue.work_off(objective, may_start=lambda: open_slots(study, BUDGET) > 0)


def note(path, number):
    with path.open("a") as file:
        file.write(f"{number}\n")


def numbers(path):
    return [int(line) for line in path.read_text().split()]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_budget_is_exact_though_workers_are_killed(cfg, tmp_path, count):
    study = optuna.create_study(study_name="kills", storage=open_storage(cfg, "kills"), direction="maximize")
    start = multiprocessing.get_context("fork").Process
    team = [start(target=work, args=(cfg, tmp_path)) for _ in range(count)]
    for worker in team:
        worker.start()
    for _ in range(2):
        wait_for_some(tmp_path / "begun", 3)
        victim = random.choice([worker for worker in team if worker.is_alive()])
        os.kill(victim.pid, signal.SIGKILL)
        team.append(start(target=work, args=(cfg, tmp_path)))
        team[-1].start()
    for worker in team:
        worker.join(60)

    left = Counter(worker.exitcode for worker in team)
    assert left[-signal.SIGKILL] >= 1, "of many workers one may have come to its end in the moment it was chosen"
    assert left == {0: count + 2 - left[-signal.SIGKILL], -signal.SIGKILL: left[-signal.SIGKILL]}
    trials = study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(BUDGET))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    ended = Counter(numbers(tmp_path / "ended"))
    restarts = sum(trial.user_attrs.get("restarts", 0) for trial in trials)
    assert set(ended) == set(range(BUDGET))
    assert restarts <= 2
    assert sum(ended.values()) <= BUDGET + restarts  # a kill between the last line of a training and its end in the study


def wait_for_some(path, more):
    """Wait until so many more trainings have begun."""
    there = len(numbers(path)) if path.exists() else 0
    until = time.monotonic() + 30
    while (len(numbers(path)) if path.exists() else 0) < min(there + more, BUDGET - 2) and time.monotonic() < until:
        time.sleep(0.01)


# ---- the same with real trainings and MLflow, in processes of their own -----------------------------------------------


def launched(home, *extra):
    """Start a search by command."""
    command = [sys.executable, "-m", "pipelines.tune", *words(home, epochs=2, tune__trials=6, tune__finalist_seeds=1), *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(processes, home):
    """Wait for commands; return what they said and left."""
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return SimpleNamespace(printed=printed, client=MlflowClient(f"sqlite:///{home / 'mlflow.db'}"), study=study_of(home))


@pytest.fixture(scope="module")
def bereft(tmp_path_factory):
    """A search by two workers, of which one was killed while it trained."""
    home = tmp_path_factory.mktemp("bereft")
    launcher = launched(home, "--tune.workers", "2")
    assert kill_a_worker(launcher.pid, home / "runs/studies/digits.journal"), launcher.communicate()
    return ended([launcher], home)


def kill_a_worker(launcher, journal):
    """Kill a process of a launcher's that has taken a trial."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        time.sleep(0.02)
        owners = set(re.findall(r'"owner": ?"\S+ (\d+) ', journal.read_text() if journal.exists() else ""))
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            if child in owners:
                os.kill(int(child), signal.SIGKILL)
                return True
    return False


@pytest.mark.slow
def test_with_a_worker_killed_all_trials_end_once(bereft):
    trials = bereft.study.get_trials(deepcopy=False)

    assert [trial.number for trial in trials] == list(range(6))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert "a worker was killed" in bereft.printed[0]


@pytest.mark.slow
def test_with_a_worker_killed_no_run_is_left_running(bereft):
    runs = bereft.client.search_runs(["0"])
    by_kind = Counter(run.data.tags["kind"] for run in runs)

    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    assert (by_kind["study"], by_kind["trial"]) == (1, 6)


def test_two_launchers_at_once_share_the_work_and_register_one_version(tmp_path):
    both = ended([launched(tmp_path), launched(tmp_path)], tmp_path)

    assert [trial.number for trial in both.study.get_trials(deepcopy=False)] == list(range(6))
    assert len(both.client.search_model_versions("name='digits-classifier'")) == 1
    assert len(both.client.search_runs(["0"], "tags.kind = 'study'")) == 1
    assert sum("is under way already" in text for text in both.printed) == 1
    winner = [next(line for line in text.splitlines() if "registry:" in line) for text in both.printed]
    assert winner[0] == winner[1]
