"""Runs are opened as they should be, written to without collisions, and end with a status that tells the truth."""

import multiprocessing
import os
import sqlite3
import time

import pytest
from mlflow import MlflowClient

from tracked_cls import tracking
from tracked_cls.config import PrepareConfig, TrackingConfig
from tracked_cls.errors import Interrupted, StopRun, UserError


@pytest.fixture
def open_(store, trained, monkeypatch):
    """Open a tracker on the session's store, as `mlflow run` would start it where `env` says so."""

    def go(env=None, **options):
        for key, value in (env or {}).items():
            monkeypatch.setenv(key, value)
        return tracking.open_tracker(TrackingConfig(uri=store[1], **options))

    return go


def _tags(client, run_id):
    return client.get_run(run_id).data.tags


def test_a_run_ends_finished(open_, client):
    with open_() as tracker, tracker.begin("train", "a name") as run:
        assert client.get_run(run.run_id).info.status == "RUNNING"
    found = client.get_run(run.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a name")
    assert found.data.tags["kind"] == "train"
    assert found.data.tags["pid"] == str(os.getpid())


@pytest.mark.parametrize(
    ("error", "status", "tag", "text"),
    [
        (Interrupted(15), "KILLED", None, None),
        (KeyboardInterrupt(), "KILLED", None, None),
        (StopRun("KILLED", "pruned"), "KILLED", "stopped", "pruned"),
        (StopRun("FAILED", "nan"), "FAILED", "stopped", "nan"),
        (ZeroDivisionError("by zero"), "FAILED", "error", "ZeroDivisionError: by zero"),
    ],
    ids=["signal", "ctrl-c", "stopped", "stopped failed", "error"],
)
def test_a_run_that_does_not_finish_says_how_it_ended(open_, client, error, status, tag, text):
    with open_() as tracker, pytest.raises(type(error)), tracker.begin("train", "a name") as run:
        raise error
    found = client.get_run(run.run_id)
    assert found.info.status == status
    assert tag is None or found.data.tags[tag] == text


def test_the_load_of_the_machine_is_logged_when_asked_for(open_, client):
    with open_(system_metrics_seconds=1) as tracker, tracker.begin("train", "watched") as run:
        time.sleep(1.3)
    with open_() as tracker, tracker.begin("train", "not watched") as other:
        pass
    found = client.get_run(run.run_id).data.metrics
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert 0 < found["system/system_memory_usage_percentage"] <= 100
    assert {name.partition("/")[0] for name in found} == {"system"}
    assert client.get_run(other.run_id).data.metrics == {}


def test_the_run_that_mlflow_run_opened_is_adopted_once(open_, client):
    opened = client.create_run("0")
    with open_(env={"MLFLOW_RUN_ID": opened.info.run_id, "MLFLOW_EXPERIMENT_ID": "0"}) as tracker:
        assert "MLFLOW_RUN_ID" not in os.environ, "a child process must not attach to it"
        with tracker.begin("train", "ours") as run:
            assert run.run_id == opened.info.run_id
        with tracker.beside().begin("prepare", "beside") as other:
            assert other.run_id != opened.info.run_id
    assert client.get_run(opened.info.run_id).info.run_name == "ours", "a name that MLflow made up gives way"


def test_a_name_the_user_gave_stays(open_, client):
    opened = client.create_run("0", run_name="My run")
    with open_(env={"MLFLOW_RUN_ID": opened.info.run_id, "MLFLOW_EXPERIMENT_ID": "0"}) as tracker:
        with tracker.begin("train", "ours"):
            pass
    assert client.get_run(opened.info.run_id).info.run_name == "My run"


def test_params_that_mlflow_run_logged_are_left_alone(open_, client):
    opened = client.create_run("0")
    client.log_param(opened.info.run_id, "data.store", "'quoted by mlflow run'")
    with open_(env={"MLFLOW_RUN_ID": opened.info.run_id, "MLFLOW_EXPERIMENT_ID": "0"}) as tracker:
        with tracker.begin("prepare", "ours") as run:
            run.log_config(PrepareConfig())
    params = client.get_run(opened.info.run_id).data.params
    assert params["data.store"] == "'quoted by mlflow run'"
    assert params["data.download"] == "true"


def test_nested_runs_name_their_parent(open_, client):
    with open_(run_name="outer") as tracker, tracker.begin("pipeline", "x") as parent:
        with tracker.within(parent).begin("train", "inner") as child:
            pass
    assert client.get_run(parent.run_id).info.run_name == "outer"
    assert client.get_run(child.run_id).info.run_name == "inner"
    assert _tags(client, child.run_id)["mlflow.parentRunId"] == parent.run_id


def test_a_continued_run_keeps_the_metrics_it_has(open_, client):
    with open_() as tracker:
        with pytest.raises(Interrupted), tracker.begin("train", "x") as run:
            run.log_metrics({"val_loss": 1.0}, step=1)
            raise Interrupted(15)
        with tracker.begin("train", "x", continue_id=run.run_id) as again:
            again.log_metrics({"val_loss": 9.0, "lr": 0.1}, step=1)
            again.log_metrics({"val_loss": 0.5}, step=2)
            assert again.history(["val_loss", "lr"]) == {"val_loss": [1.0, 0.5], "lr": [0.1]}
    assert again.run_id == run.run_id
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_continued_run_loses_the_marks_of_its_earlier_end(open_, client):
    with open_() as tracker:
        with pytest.raises(ZeroDivisionError), tracker.begin("train", "x") as run:
            raise ZeroDivisionError
        with tracker.begin("train", "x", continue_id=run.run_id):
            pass
    assert "error" not in _tags(client, run.run_id)


def test_artifacts_lie_beside_the_store_wherever_the_command_was_typed(client, home):
    assert client.get_experiment("0").artifact_location == (home / "mlruns" / "0").as_uri()


def test_under_mlflow_run_the_new_run_points_to_the_one_that_goes_on(open_, client):
    with open_() as tracker, pytest.raises(Interrupted), tracker.begin("train", "x") as run:
        raise Interrupted(15)
    opened = client.create_run("0")
    with open_(env={"MLFLOW_RUN_ID": opened.info.run_id, "MLFLOW_EXPERIMENT_ID": "0"}) as tracker:
        with tracker.begin("train", "x", continue_id=run.run_id) as again:
            assert again.run_id == run.run_id
    pointer = client.get_run(opened.info.run_id)
    assert (pointer.data.tags["kind"], pointer.data.tags["continues"]) == ("resume", run.run_id)
    assert pointer.info.status == "FINISHED"


@pytest.mark.parametrize("gone", ["deleted", "unknown"])
def test_a_run_that_cannot_be_continued_gives_way_to_a_new_one(open_, client, gone):
    run_id = "0" * 32
    if gone == "deleted":
        run_id = client.create_run("0").info.run_id
        client.delete_run(run_id)
    with open_() as tracker, tracker.begin("train", "x", continue_id=run_id) as run:
        assert run.run_id != run_id


def test_an_experiment_is_made_beside_the_store_and_found_again(open_, client, home):
    with open_(experiment="mine") as tracker:
        first = tracker.experiment_id
    with open_(env={"MLFLOW_EXPERIMENT_NAME": "mine"}) as tracker:
        assert tracker.experiment_id == first
    assert client.get_experiment(first).artifact_location == (home / "mlruns" / "mine").as_uri()


def test_another_experiment_than_that_of_mlflow_run_is_refused(open_, client):
    opened = client.create_run("0")
    env = {"MLFLOW_RUN_ID": opened.info.run_id, "MLFLOW_EXPERIMENT_ID": "0"}
    with pytest.raises(UserError, match="use mlflow run --experiment-name other"), open_(env=env, experiment="other"):
        pass


def test_a_deleted_experiment_is_refused(open_, client):
    with open_(experiment="gone") as tracker:
        client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match="'gone' was deleted"), open_(experiment="gone"):
        pass


def _create(path):
    with tracking.open_tracker(TrackingConfig(uri=f"sqlite:///{path}")) as tracker, tracker.begin("train", "x"):
        pass


def test_processes_that_start_together_on_no_store_all_succeed(tmp_path):
    """MLflow alone crashes all but one of them."""
    path = tmp_path / "new" / "mlflow.db"
    half_made = path.with_name(".new-mlflow.db")  # by a process that was killed over it
    path.parent.mkdir()
    with sqlite3.connect(half_made) as connection:
        connection.execute("CREATE TABLE experiments (x INT)")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_create, args=(path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not half_made.exists()
    assert len(MlflowClient(f"sqlite:///{path}").search_runs(["0"])) == 3
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
