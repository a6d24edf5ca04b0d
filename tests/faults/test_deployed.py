"""The server of `deploy/`, as a user has it: the whole pipeline behind a login, and what happens when it fails in part."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from mlflow import MlflowClient
from PIL import Image
from psycopg import sql

from tests.faults.harness import LOG, ROOT, STEPS, Command, attempt, tail
from tests.faults.tracking_server import Deployed
from tests.postgres_server import database
from tracked_cls.errors import UserError

PASSWORD, DATABASE_PASSWORD = "correct horse battery", "p%40ss:w/rd"  # what an address would have to escape
EXPERIMENT, MODEL = "team", "digits-classifier"
SIZE = ("--data.image_size", "8")
SMALL = (*SIZE, "--model", "small_cnn", "--model.args", "{width: 4, pairs: 2}", "--threads", "1")
UNREGISTERED = ("--promote.auto", "never")  # a version is tried in a process of its own, which takes as long as all the rest


@pytest.fixture(scope="module")
def postgres():
    """A PostgreSQL that may be stopped and started, with a role and a database for the server."""
    with database() as server:
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE mlflow LOGIN PASSWORD {}").format(sql.Literal(DATABASE_PASSWORD)))
            connection.execute("CREATE DATABASE mlflow OWNER mlflow")
        yield server


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    """The server, with its artifacts on a small disk of their own where this user may mount one."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "secrets").mkdir(mode=0o700)
    (folder / "secrets" / "database").write_text(DATABASE_PASSWORD)
    (folder / "artifacts").mkdir()
    mounted = os.geteuid() == 0 and _mount(folder / "artifacts")
    server = Deployed(folder, database=f"postgresql+psycopg://mlflow@127.0.0.1:{postgres.port}/mlflow")
    try:
        server.start()
        server.add_user("ada", PASSWORD)
        yield server
    finally:
        server.kill()
        if mounted:
            subprocess.run(["umount", folder / "artifacts"], check=True)


def _mount(folder):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode == 0


class Client:
    """A working folder of somebody who has an address, a name and a password, and nothing else of the server."""

    def __init__(self, home, uri, password=PASSWORD):
        self.home, self.uri, self.password = home, uri, password

    @property
    def variables(self):
        login = {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": self.password}
        return {"MLFLOW_TRACKING_URI": self.uri, **login}

    def command(self, verb, *words):
        params = ("--params", str(ROOT / "params" / "train.yaml"), "--tracking.experiment", EXPERIMENT)
        return Command(verb, (*params, *words), self.home, self.variables)

    def do(self, verb, *words):
        """Run a command; return its exit code and what it said."""
        log = self.home / LOG
        before = log.stat().st_size if log.exists() else 0
        code = attempt(self.command(verb, *words), None)
        return code, log.read_bytes()[before:].decode()

    def done(self, verb, *words):
        code, said = self.do(verb, *words)
        assert code == 0, said
        return said

    def train(self, name, *words):
        return self.done("train", *SMALL, "--epochs", "2", "--tracking.run_name", name, *words)

    def here(self, verb, *words):
        """Run a command in this process, which has imported everything, and raise what it raises; return what it said."""
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
            patch.chdir(self.home)
            for name, value in self.variables.items():
                patch.setenv(name, value)
            import_module(f"pipelines.{verb}").main(self.command(verb, *words).words)
        return said.getvalue()

    @property
    def waiting(self):
        folder = self.home / "runs" / "journal"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []

    def runs(self):
        with self.store() as store:
            return _runs(store)

    @contextmanager
    def store(self):
        """Give MLflow's own client, logged in."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables.items():
                patch.setenv(name, value)
            yield MlflowClient(self.uri)


def _runs(client):
    found = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "kind": run.data.tags["kind"],
            "status": run.info.status,
            "artifacts": run.info.artifact_uri,
            "verdict": run.data.tags.get("promotion.verdict"),
            "losses": [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")],
        }
        for run in found
    ]


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(tmp_path_factory.mktemp("client"), server.uri)


@pytest.fixture(scope="module")
def pipeline(client):
    """What every command of the pipeline said, one after the other."""
    said = {"prepare": client.here("prepare", *SIZE)}
    said["train"] = client.here("train", *SMALL, "--epochs", "2", "--tracking.run_name", "first", "--promote.auto", "always")
    said["evaluate"] = client.here("evaluate", *SIZE, "--threads", "1")
    (client.home / "images").mkdir()
    Image.new("L", (8, 8), 200).save(client.home / "images" / "one.png")
    said["predict"] = client.here("predict", "--input", "images", "--output", "labels.csv")
    said["promote"] = client.here("promote", *SIZE, "--threads", "1")
    first, second = (run["id"] for run in client.runs() if run["kind"] in ("train", "evaluate"))
    said["report"] = client.here("report", "--runs", f"{first},{second}")
    return said


def _of(runs, name):
    (found,) = (run for run in runs if run["name"] == name)
    return found


# ---- all is well -----------------------------------------------------------------------------------------------------


def test_every_command_of_the_pipeline_runs_behind_the_login(client, pipeline):
    runs = client.runs()
    kinds = sorted(run["kind"] for run in runs)

    assert kinds == ["evaluate", "predict", "prepare", "promote", "report", "train"]
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert _of(runs, "first")["losses"] == [1, 2]
    with client.store() as store:
        champion = store.get_model_version_by_alias(MODEL, "champion")
    assert (str(champion.version), champion.run_id) == ("1", _of(runs, "first")["id"])
    assert f"champion: models:/{MODEL}/1" in pipeline["promote"]
    assert (client.home / "labels.csv").read_text().count("one.png") == 1
    assert client.waiting == []


def test_artifacts_take_the_way_through_the_server(client, pipeline, server):
    addresses = {run["artifacts"].split("/")[0] for run in client.runs()}
    log = (server.folder / "server.log").read_text()

    assert addresses == {"mlflow-artifacts:"}
    assert "PUT /api/2.0/mlflow-artifacts/artifacts/" in log
    assert list((server.folder / "artifacts").rglob("report.html"))


def test_nobody_reads_a_password_off_the_list_of_processes(server):
    lines = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in server.pids)
    secrets = [DATABASE_PASSWORD, server.secret("admin"), server.secret("cookies")]

    assert b"mlflow" in lines
    assert [secret for secret in secrets if secret.encode() in lines] == []
    assert {path.stat().st_mode & 0o077 for path in (server.folder / "secrets").iterdir() if path.name != "database"} == {0}


def test_a_stranger_reads_nothing(server):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60)


# ---- a login that is refused -----------------------------------------------------------------------------------------


@pytest.fixture
def stranger(client):
    """Somebody in the same folder who has the wrong password."""
    return Client(client.home, client.uri, "not the password")


@pytest.mark.parametrize("verb", ["evaluate", "sync"])
def test_a_command_that_must_read_the_server_says_in_one_line_that_the_login_is_refused(verb, stranger):
    with pytest.raises(UserError) as error:  # which `command` turns into exit code 2
        stranger.here(verb)

    (line,) = str(error.value).splitlines()
    assert line.startswith("tracking.uri: ")
    assert "401" in line
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert stranger.password not in line


@pytest.mark.slow
def test_a_training_whose_login_is_refused_keeps_what_it_has_until_sync(client, stranger):
    said = stranger.train("refused", "--seed", "5", *UNREGISTERED)
    assert "warning: the tracking store at" in said
    assert "401" in said
    assert client.waiting

    client.done("sync")

    run = _of(client.runs(), "refused")
    assert (run["status"], run["losses"], client.waiting) == ("FINISHED", [1, 2], [])


# ---- parts of the server that fail -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_database_that_goes_away_costs_nothing_but_time(client, postgres):
    epochs = 40
    (client.home / STEPS).touch()
    steps = (client.home / STEPS).stat().st_size
    command = client.command("train", *SMALL, "--epochs", str(epochs), "--tracking.run_name", "bereft", *UNREGISTERED)
    codes = []
    training = threading.Thread(target=lambda: codes.append(attempt(command, None)), daemon=True)
    training.start()
    try:
        until = time.monotonic() + 120
        while (client.home / STEPS).stat().st_size < steps + 30 and time.monotonic() < until:
            time.sleep(0.01)
        postgres.stop(signal.SIGQUIT)  # it closes nothing in order
        code, said = client.do("sync")
        training.join()
    finally:
        postgres.start()

    (line,) = (line for line in said.splitlines() if line.startswith("error"))
    assert code == 2
    assert "503" in line
    assert "is its database there?" in line
    assert codes == [0], tail(command)
    client.done("sync")
    run = _of(client.runs(), "bereft")
    assert (run["status"], run["losses"], client.waiting) == ("FINISHED", list(range(1, epochs + 1)), [])


@pytest.mark.slow
def test_artifacts_that_find_no_room_wait_and_arrive_once_there_is_some(client, server):
    disk = server.folder / "artifacts"
    if not disk.is_mount():
        pytest.skip("this user may not mount a small disk")
    ballast = disk / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1 << 20))
            file.flush()

    said = client.train("no room", "--seed", "7")
    assert said.count("warning") >= 1
    assert "Traceback" not in said
    assert client.waiting

    ballast.unlink()
    client.done("sync")

    run = _of(client.runs(), "no room")
    assert (run["status"], run["losses"], client.waiting) == ("FINISHED", [1, 2], [])
    assert run["verdict"] is not None


def test_told_to_stop_the_server_leaves_no_process_behind(server):
    server.stop()

    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{server.uri}/health", timeout=60)
