"""What processes that are gone have left is delivered by the next command, and nothing else is touched."""

import os
import socket
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from tests.faults.outages import cut_line
from tracked_cls import delivery, journal, provenance, release, tracking
from tracked_cls.config import SyncConfig, TrackingConfig
from tracked_cls.delivery import Delivered
from tracked_cls.errors import UserError
from tracked_cls.journal import Journal
from tracked_cls.processes import Process


@pytest.fixture
def line():
    """The line to the store, whole at first; nobody waits for seconds."""
    with cut_line() as line:
        yield line


@pytest.fixture
def cfg(home, tmp_path, line):
    """The session's store, with an experiment and a journal of the test's own."""
    return TrackingConfig(uri=f"sqlite:///{home / 'mlflow.db'}", journal=str(tmp_path / "journal"), experiment=tmp_path.name)


@pytest.fixture
def journals(tmp_path):
    """The folder of the journals."""
    return tmp_path / "journal"


def _sync(cfg, patience=0.2):
    return delivery.sync(SyncConfig(patience_seconds=patience, tracking=cfg)).delivered


def _runs(cfg):
    client = MlflowClient(cfg.uri)
    return client.search_runs([client.get_experiment_by_name(cfg.experiment).experiment_id])


def _left(cfg, journals, *kinds, store=None, **opening):
    """Leave a journal as a process does that is gone."""
    left = Journal.create(journals)
    home = {"name": cfg.experiment, "id": None}
    for kind in kinds:
        content = {
            "open": {"name": "left", "home": home, "tags": {"kind": "train"}, "store": store or cfg.uri, **opening},
            "attach": {"store": store or cfg.uri, **opening},
            "tags": {"values": {"note": "left"}},
            "end": {"status": "FINISHED", "final": True},
        }.get(kind, opening)
        left.add(kind, **content)
    left.close()
    return left


# ---- journals --------------------------------------------------------------------------------------------------------


def test_a_run_that_nobody_ended_ends_killed_and_can_still_be_continued(cfg, journals):
    left = _left(cfg, journals, "open", "tags")
    with delivery.open_tracker(cfg) as tracker:
        pass
    (found,) = _runs(cfg)
    assert (found.info.status, found.data.tags["note"]) == ("KILLED", "left")
    assert "reaped" in found.data.tags
    assert left.folder.exists()
    with delivery.open_tracker(cfg) as tracker, tracker.begin("train", "x", continue_id=found.info.run_id):
        pass
    (found,) = _runs(cfg)
    assert (found.info.status, found.data.tags.get("reaped")) == ("FINISHED", None)
    assert not left.folder.exists()


def test_a_run_that_a_process_was_only_attached_to_keeps_its_status(cfg, journals):
    with delivery.open_tracker(cfg) as tracker, tracker.begin("train", "x") as run:
        pass
    _left(cfg, journals, "attach", "tags", run_id=run.run_id)
    assert [(one.run, one.waiting) for one in _sync(cfg)] == [(run.run_id, 0)]
    (found,) = _runs(cfg)
    assert (found.info.status, found.data.tags["note"], found.data.tags.get("reaped")) == ("FINISHED", "left", None)
    assert list(journal.journals(journals)) == []


def test_a_journal_that_another_process_writes_is_left_to_it(cfg, journals):
    left = _left(cfg, journals, "open", "tags")
    held = Journal.hold(left.folder)
    assert _sync(cfg) == []
    assert len(held.pending) == 2
    held.close()


@pytest.mark.parametrize("days", [1, 400])
def test_what_waits_for_another_store_waits_on(cfg, journals, monkeypatch, days):
    left = _left(cfg, journals, "open", "tags", "end", store="http://elsewhere:5000")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + days * 24 * 3600)
    assert _sync(cfg) == []
    assert len(Journal.hold(left.folder).pending) == 3


@pytest.mark.parametrize(("days", "stays"), [(1, True), (400, False)])
def test_the_journal_of_a_killed_run_is_kept_for_a_month(cfg, journals, monkeypatch, days, stays):
    left = _left(cfg, journals, "open")
    with delivery.open_tracker(cfg):
        pass
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + days * 24 * 3600)
    assert _sync(cfg) == []
    assert left.folder.exists() == stays


def test_sync_counts_what_arrived_and_what_waits_and_says_why(cfg, journals):
    _left(cfg, journals, "open", "tags", "end")
    (one,) = _sync(cfg)
    (found,) = _runs(cfg)
    assert (one.run, one.arrived, one.waiting) == (found.info.run_id, 3, 0)
    assert _sync(cfg) == []
    _left(cfg, journals, "attach", "tags", run_id="journal:nobody")
    (one,) = _sync(cfg)
    assert (one.arrived, one.waiting) == (0, 2)


@pytest.mark.parametrize(
    ("delivered", "said"),
    [
        ([], "nothing waits"),
        ([Delivered("f", "r", 3, 0, "")], "run r: 3 entries delivered"),
        ([Delivered("f", "r", 1, 2, "away")], "2 still waiting in f (away)"),
    ],
)
def test_sync_says_what_it_did(delivered, said):
    assert said in "\n".join(delivery.lines(delivery.Synced("the store", delivered, Counter(), 0)))


def test_sync_under_mlflow_run_takes_the_run_that_was_opened_for_it(cfg, journals, monkeypatch):
    client = MlflowClient(cfg.uri)
    opened = client.create_run("0").info.run_id
    _left(cfg, journals, "open", "end")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    plain = cfg.model_copy(update={"experiment": None})
    assert len(_sync(plain)) == 1
    assert (client.get_run(opened).info.status, client.get_run(opened).data.tags["kind"]) == ("FINISHED", "sync")


# ---- models that wait ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [UserError("a champion without a score"), FileNotFoundError("weights")])
def test_a_model_that_cannot_be_logged_does_not_keep_its_run_from_ending(cfg, journals, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(release, "settle", fail)
    _left(cfg, journals, "open", journal.RELEASE, "end")
    assert [one.waiting for one in _sync(cfg)] == [0]
    (found,) = _runs(cfg)
    assert (found.info.status, found.data.tags["promotion.verdict"]) == ("FINISHED", "failed")
    assert str(error) in found.data.tags["promotion.reason"]


def test_a_model_waits_on_where_the_store_goes_away_again(cfg, journals, line, monkeypatch):
    tries = []

    def settle(*_):
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise tracking.StoreError("API request failed: connection refused")
        return SimpleNamespace(model_uri="m", promotion=SimpleNamespace(verdict="promoted", reason="first"))

    monkeypatch.setattr(release, "settle", settle)
    _left(cfg, journals, "open", journal.RELEASE, "end")
    assert [one.waiting for one in _sync(cfg, patience=30)] == [0]
    assert len(tries) == 3


# ---- runs without a journal ------------------------------------------------------------------------------------------


def _gone():
    """Return a process of this host that has ended."""
    with subprocess.Popen(["true"]) as process:
        gone = Process.here(process.pid)
    return Process(gone.host, gone.pid, max(1, gone.started), gone.boot)


@pytest.mark.parametrize(
    ("process", "silent_seconds", "status"),
    [
        ("gone", 300, "KILLED"),
        ("gone", 30, "RUNNING"),
        ("gone", None, "RUNNING"),
        ("me", 300, "RUNNING"),
        ("elsewhere", 7200, "KILLED"),
        ("elsewhere", 300, "RUNNING"),
        ("elsewhere", None, "RUNNING"),
        (None, 7200, "RUNNING"),
    ],
    ids=["gone", "gone?", "begun now", "alive", "silent elsewhere", "heard elsewhere", "begun elsewhere", "not ours"],
)
def test_a_run_left_running_is_ended_where_its_process_is_known_to_be_gone(cfg, process, silent_seconds, status):
    with delivery.open_tracker(cfg) as tracker:
        experiment_id = tracker.experiment_id
    known = {"gone": _gone, "me": Process.me, "elsewhere": lambda: Process("elsewhere", 1, 1)}
    tags = {"process": str(known[process]())} if process else {}
    if silent_seconds is not None:
        tags["heartbeat"] = (datetime.now(UTC) - timedelta(seconds=silent_seconds)).isoformat(timespec="seconds")
    run_id = MlflowClient(cfg.uri).create_run(experiment_id, tags=tags).info.run_id
    with delivery.open_tracker(cfg):
        pass
    assert MlflowClient(cfg.uri).get_run(run_id).info.status == status


def test_a_run_whose_journal_is_held_is_not_reaped_by_its_old_process(cfg, journals):
    with delivery.open_tracker(cfg) as ours, ours.begin("train", "x") as run:
        assert run.flush(30)
        for key, value in {"process": str(_gone()), "heartbeat": "2020-01-01T00:00:00+00:00"}.items():
            MlflowClient(cfg.uri).set_tag(run.run_id, key, value)
        with delivery.open_tracker(cfg):
            pass
        assert MlflowClient(cfg.uri).get_run(run.run_id).info.status == "RUNNING"


# ---- stores that are half there --------------------------------------------------------------------------------------


def test_a_store_that_takes_connections_and_does_not_work_is_as_one_that_is_away(cfg, line, monkeypatch, capsys):
    line.away = True
    monkeypatch.setattr(tracking.store.Store, "absence", lambda _: None)
    with delivery.open_tracker(cfg) as tracker, tracker.begin("train", "x") as run:
        run.log_metrics({"loss": 1.0}, 1)
    assert "waits in" in capsys.readouterr().out
    with pytest.raises(UserError, match="tracking.uri"), delivery.open_tracker(cfg, must_answer=True):
        pass
    line.away = False
    _sync(cfg)
    assert [found.info.status for found in _runs(cfg)] == ["FINISHED"]


def test_the_process_of_a_run_is_named_in_it():
    assert provenance.origin()["process"] == str(Process.me())
    assert (Process.me().host, Process.me().pid) == (socket.gethostname(), os.getpid())
