"""Several machines search in one study: network namespaces with host names of their own, one server, one PostgreSQL.

One machine is lost while it trains, and another comes late. No process of the others can see whether the lost one lives, so
only the heartbeat frees its trial, after three minutes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import psycopg
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from tests.faults.harness import ROOT
from tests.faults.tracking_server import Deployed
from tests.postgres_server import PASSWORD, database
from tracked_cls.tuning.claims import counted

NETWORK = "10.231.77"
HUB = f"{NETWORK}.1"
TRIALS, EPOCHS = 9, 60
LOGIN = "correct horse battery"


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def hub():
    """Give a bridge that machines are plugged into, with an address of this one."""
    name = f"tc{os.getpid()}"
    ip("link", "add", name, "type", "bridge")
    try:
        ip("addr", "add", f"{HUB}/24", "dev", name)
        ip("link", "set", name, "up")
        yield name
    finally:
        ip("link", "del", name)


@dataclass
class Machine:
    """A host name, an address and a folder of its own; nothing but the network leads to the others."""

    name: str
    home: Path
    process: subprocess.Popen | None = None

    def search(self, storage, uri):
        """Start the command that every machine starts."""
        home = {"HOME": str(self.home), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "PGPASSWORD": PASSWORD}
        login = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": LOGIN}
        words = {
            "params": ROOT / "params" / "train.yaml",
            "tracking.experiment": "machines",
            "model": "small_cnn",
            "model.args": "{width: 4, pairs: 2}",
            "data.image_size": 8,
            "threads": 1,
            "epochs": EPOCHS,
            "tune.study": "machines",
            "tune.storage": storage,
            "tune.trials": TRIALS,
            "tune.space": "{optimizer.lr: {low: 0.001, high: 0.1, log: true}}",
            "tune.pruner": "none",
            "tune.finalists": 1,
            "tune.finalist_seeds": 1,
        }
        line = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        inside = f'hostname {self.name}; exec {sys.executable} -m pipelines.tune "$@"'
        command = ["ip", "netns", "exec", self.name, "unshare", "--uts", "bash", "-c", inside, "tune", *line]
        with (self.home / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env={**os.environ, **home, **login}, stdout=log, stderr=log, start_new_session=True
            )

    def die(self):
        """Lose it, with all that runs there, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def said(self):
        return (self.home / "log").read_text(errors="replace")


@contextmanager
def plugged(name, number, bridge, home):
    """Give a machine on the bridge."""
    outside = f"tcv{os.getpid()}{number}"[-15:]
    ip("netns", "add", name)
    try:
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outside, "master", bridge, "up")
        ip("-n", name, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        home.mkdir()
        machine = Machine(name, home)
        yield machine
        if machine.process is not None and machine.process.poll() is None:
            machine.die()
    finally:
        ip("netns", "del", name)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """What three machines left, one lost and one late: (machines, study, client, number of the lost trial)."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, iproute2 and unshare")
    home = tmp_path_factory.mktemp("machines")
    with ExitStack() as stack:
        try:
            bridge = stack.enter_context(hub())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        postgres = stack.enter_context(database(address=HUB, network=f"{NETWORK}.0/24"))
        storage, server = _prepare(home, postgres)
        server.start()
        stack.callback(server.kill)
        server.add_user("ada", LOGIN)
        names = [f"tc{os.getpid()}{letter}" for letter in "abc"]
        machines = [stack.enter_context(plugged(name, number, bridge, home / name)) for number, name in enumerate(names)]
        first, lost, late = machines
        study = _Study(f"{postgres.url.removesuffix('/postgres')}/studies")
        first.search(storage, server.uri)
        study.wait_for_trial_of(first)
        lost.search(storage, server.uri)
        number = study.wait_for_trial_of(lost)
        lost.die()
        late.search(storage, server.uri)
        for machine in (first, late):
            machine.process.wait(timeout=900)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN)
            yield machines, study.load(), MlflowClient(server.uri), number


def _prepare(home, postgres):
    with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
        for name in ("mlflow", "studies"):
            connection.execute(f"CREATE DATABASE {name}")
    folder = home / "server"
    (folder / "secrets").mkdir(parents=True)
    (folder / "secrets" / "database").write_text(PASSWORD)
    address = f"postgresql+psycopg://postgres@{HUB}:{postgres.port}"
    return f"{address}/studies", Deployed(folder, host=HUB, database=f"{address}/mlflow")


class _Study:
    def __init__(self, url):
        self.storage = optuna.storages.RDBStorage(url)  # the tables, before anybody else makes them

    def load(self):
        return optuna.load_study(study_name="machines", storage=self.storage)

    def wait_for_trial_of(self, machine):
        """Wait until a machine trains; return the number of its trial."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            assert machine.process.poll() is None, machine.said
            try:
                for trial in self.load().get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    if str(trial.user_attrs.get("owner")).startswith(f"{machine.name} ") and trial.intermediate_values:
                        return trial.number
            except KeyError:  # there is no study yet
                pass
            time.sleep(0.2)
        raise AssertionError(f"{machine.name} trains nothing:\n{machine.said}")


@pytest.mark.slow
def test_the_budget_is_exact_though_a_machine_is_lost_and_one_comes_late(searched):
    machines, study, _, lost = searched
    trials = study.get_trials(deepcopy=False)
    made_anew = [trial for trial in trials if lost in trial.system_attrs.get("retry_history", [])]

    assert [machine.process.returncode for machine in machines] == [0, -signal.SIGKILL, 0], machines[0].said
    assert len(counted(study)) == TRIALS
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: TRIALS, TrialState.FAIL: 1}
    assert trials[lost].state is TrialState.FAIL
    assert [trial.user_attrs["restarts"] for trial in made_anew] == [1]


@pytest.mark.slow
def test_machines_that_live_share_the_work(searched):
    machines, study, _, lost = searched
    hosts = {trial.user_attrs["owner"].split(" ")[0] for trial in counted(study)}

    assert {machines[0].name, machines[2].name} <= hosts
    assert {str(study.trials[lost].user_attrs["owner"]).split(" ")[0]} == {machines[1].name}


@pytest.mark.slow
def test_each_trial_has_one_run_that_ended_and_there_is_one_winner(searched):
    _, _, client, _ = searched
    experiment = client.get_experiment_by_name("machines").experiment_id
    runs = client.search_runs([experiment])
    kinds = Counter(run.data.tags["kind"] for run in runs)

    assert {run.info.status for run in runs if run.data.tags["kind"] in ("study", "trial", "final")} == {"FINISHED"}
    assert (kinds["study"], kinds["trial"]) == (1, TRIALS)
    assert len(client.search_model_versions("name='digits-classifier'")) == 1
