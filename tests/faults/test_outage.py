"""A tracking store that is away loses nothing, doubles nothing and stops nobody; `benchmarks/outages.py` kills a server."""

from __future__ import annotations

import json
import socket
import threading
import time
from importlib import import_module

import pytest
from mlflow import MlflowClient

from tests.faults import outages
from tests.faults.harness import ROOT, ask
from tests.faults.outages import expected_points, log_half, points, stored
from tracked_cls import delivery
from tracked_cls.config import TrackingConfig
from tracked_cls.errors import Interrupted, UserError
from tracked_cls.journal import REF, journals


@pytest.fixture
def line():
    """The line to the store, whole at first."""
    with outages.cut_line() as line:
        yield line


@pytest.fixture
def site(home, tmp_path):
    """The session's store with an experiment and a journal of the test's own."""
    return Site(f"sqlite:///{home / 'mlflow.db'}", tmp_path)


class Site:
    def __init__(self, uri, folder):
        self.uri, self.journal, self.name = uri, folder / "journal", folder.name

    def tracker(self, **options):
        return delivery.open_tracker(TrackingConfig(uri=self.uri, journal=str(self.journal), experiment=self.name, **options))

    def sync(self):
        return outages.sync(self.uri, self.journal)

    @property
    def client(self):
        return MlflowClient(self.uri)

    @property
    def runs(self):
        found = self.client.get_experiment_by_name(self.name)
        return self.client.search_runs([found.experiment_id]) if found else []

    @property
    def waiting(self):
        return [folder.name for folder in journals(self.journal)]


def _arrive(run, seconds=20):
    """Wait for the sender."""
    until = time.monotonic() + seconds
    while run.journal.pending and time.monotonic() < until:
        time.sleep(0.01)
    assert not run.journal.pending


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory):
    """What MLflow holds of a run that nothing disturbed."""
    site = Site(f"sqlite:///{home / 'mlflow.db'}", tmp_path_factory.mktemp("undisturbed"))
    with outages.cut_line(), site.tracker() as tracker, tracker.begin("train", "x") as run:
        log_half(run, 0)
        log_half(run, 1)
    return stored(site.uri, run.run_id)


OUTAGES = {  # what happens before the start, before the second half, before the end
    "at the start": ("away", "back", None),
    "in the middle": (None, "away", "back"),
    "until after the end": (None, "away", None),
    "all along": ("away", None, None),
    "answers lost": ("flickers", None, None),
}


@pytest.mark.parametrize("moments", OUTAGES.values(), ids=OUTAGES)
def test_an_outage_loses_nothing_and_doubles_nothing(site, line, undisturbed, moments):
    def let(what):
        line.away = what == "away" or (line.away and what is None)
        line.flickers = line.flickers or what == "flickers"

    let(moments[0])
    with site.tracker() as tracker:
        with tracker.begin("train", "x") as run:
            log_half(run, 0)
            let(moments[1])
            log_half(run, 1)
            let(moments[2])
    assert run.run_id.startswith(REF) or moments != OUTAGES["all along"]
    let("back")
    site.sync()
    (found,) = site.runs
    assert stored(site.uri, found.info.run_id) == undisturbed
    assert points(site.uri, found.info.run_id) == expected_points(line.entries)
    opened, *_, ended = (entry for entry in line.entries if entry.kind in ("open", "end"))
    assert (found.info.start_time, found.info.end_time) == (opened.time_ms, ended.time_ms)
    assert site.waiting == []
    assert site.sync() == []


def test_nobody_who_logs_talks_to_the_store(site, line):
    with site.tracker() as tracker, tracker.begin("train", "x") as run:
        line.calls.clear()
        log_half(run, 0)
        line.away = True
        log_half(run, 1)
        assert run.history(["loss"])["loss"][:2] == [1.0, 0.5]
        run.end("FINISHED")
        own = threading.current_thread().name
        assert [name for name, thread in line.calls if thread == own] == []
    line.away = False


def test_what_is_sent_is_on_the_disk_and_what_is_noted_as_delivered_has_been_sent(site, line, monkeypatch):
    sent, log_batch = [], MlflowClient.log_batch
    with site.tracker() as tracker, tracker.begin("train", "x") as run:
        _arrive(run)

        def look(client, run_id, metrics=(), **options):
            written = (run.journal.folder / "entries.jsonl").read_text()
            count = json.loads((run.journal.folder / "delivered.json").read_text())["count"]
            noted = [json.loads(entry) for entry in written.splitlines()[:count]]
            sent.extend((metric.step, f'"step": {metric.step}' in written, metric.step in _steps(noted)) for metric in metrics)
            return log_batch(client, run_id, metrics, **options)

        monkeypatch.setattr(MlflowClient, "log_batch", look)
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step)
        _arrive(run)
    assert sent == [(step, True, False) for step in range(5)]


def _steps(noted):
    return [entry["step"] for entry in noted if entry["kind"] == "metrics"]


# ---- ends of processes -----------------------------------------------------------------------------------------------


def test_a_process_killed_in_an_outage_has_lost_nothing_and_its_run_ends_killed(site, line, undisturbed):
    with pytest.raises(AssertionError, match="gave no answer"):
        ask(outages.run_and_be_killed, site.uri, str(site.journal))
    before = {run.info.run_id for run in site.client.search_runs(["0"])}
    with delivery.open_tracker(TrackingConfig(uri=site.uri, journal=str(site.journal))):
        pass  # the next command, whatever it is
    (found,) = (run for run in site.client.search_runs(["0"]) if run.info.run_id not in before)
    half = [point for point in undisturbed["points"] if point[1] < 10]
    assert [point[:3] for point in points(site.uri, found.info.run_id)] == half
    assert (found.info.status, found.info.run_name) == ("KILLED", "x")
    assert "reaped" in found.data.tags
    assert found.data.params == {key: value for key, value in undisturbed["params"].items() if key.startswith("option0")}


def test_an_interrupted_run_goes_on_in_the_same_run_though_it_had_no_id(site, line):
    line.away = True
    with site.tracker() as tracker, pytest.raises(Interrupted), tracker.begin("train", "x") as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise Interrupted(15)
    with site.tracker() as tracker, tracker.begin("train", "x", continue_id=run.run_id) as again:
        again.log_metrics({"loss": 9.0}, 1)
        again.log_metrics({"loss": 0.5}, 2)
        assert again.history(["loss"]) == {"loss": [1.0, 0.5]}
    assert again.run_id == run.run_id
    line.away = False
    site.sync()
    (found,) = site.runs
    assert [point[1:3] for point in points(site.uri, found.info.run_id)] == [(1, (1.0).hex()), (2, (0.5).hex())]
    assert found.info.status == "FINISHED"
    with site.tracker() as tracker:
        assert tracker.resolve(run.run_id) == found.info.run_id


def test_a_run_that_was_there_before_an_outage_is_continued_in_it(site, line):
    with site.tracker() as tracker, pytest.raises(Interrupted), tracker.begin("train", "x") as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise Interrupted(15)
    line.away = True
    with site.tracker() as tracker, tracker.begin("train", "x", continue_id=run.run_id) as again:
        again.log_metrics({"loss": 9.0}, 1)
        again.log_metrics({"loss": 0.5}, 2)
    line.away = False
    site.sync()
    (found,) = site.runs
    assert [point[1:3] for point in points(site.uri, found.info.run_id)] == [(1, (1.0).hex()), (2, (0.5).hex())]
    assert found.info.status == "FINISHED"


def test_a_run_of_one_key_that_is_begun_again_in_an_outage_stays_one(site, line):
    line.away = True
    with site.tracker() as tracker:
        for value in (1.0, 9.0):
            with tracker.begin("trial", "x", key="k" * 32) as run:
                run.log_metrics({"loss": value}, 1)
        line.away = False
        _arrive(run)
    (found,) = site.runs
    assert found.data.metrics == {"loss": 1.0}


def test_history_of_a_run_that_mlflow_run_opened_needs_no_store(site, line, monkeypatch):
    opened = site.client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    with delivery.open_tracker(TrackingConfig(uri=site.uri, journal=str(site.journal))) as tracker:
        with tracker.begin("train", "x") as run:
            run.log_metrics({"loss": 1.0}, 1)
            _arrive(run)
            line.away = True
            assert run.history(["loss"]) == {"loss": [1.0]}
            line.away = False
    assert site.client.get_run(opened).info.status == "FINISHED"


# ---- runs in runs ----------------------------------------------------------------------------------------------------


def test_runs_begun_in_an_outage_find_their_parents(site, line):
    line.away = True
    with site.tracker() as tracker, tracker.begin("study", "parent") as parent:
        with tracker.within(parent).begin("trial", "child") as child, tracker.within(child).begin("fold", "grandchild"):
            pass
    line.away = False
    site.sync()
    runs = {run.info.run_name: run for run in site.runs}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {"parent": None, "child": runs["parent"].info.run_id, "grandchild": runs["child"].info.run_id}
    assert site.waiting == []


def test_a_child_finds_a_parent_whose_journal_is_gone(site, line):
    line.away = True
    with site.tracker() as ours, site.tracker() as theirs, ours.begin("study", "parent") as parent:
        with theirs.within_id(parent.run_id).begin("trial", "child") as child:
            line.away = False
            _arrive(parent)
            line.away = True
            parent.journal.folder.rename(parent.journal.folder.with_name("moved"))
            line.away = False
            assert child.flush(30)
            (site.journal / "moved").rename(parent.journal.folder)
    runs = {run.info.run_name: run for run in site.runs}
    assert runs["child"].data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id


# ---- what the store refuses ------------------------------------------------------------------------------------------


def test_what_the_store_refuses_is_named_and_blocks_nothing(site, line, capsys):
    line.away = True
    with site.tracker() as tracker:
        with tracker.begin("train", "x") as run:
            run.log_metrics({"before": 1.0}, 1)
            run.log_metrics({"bad\nname": 1.0}, 1)
            run.log_metrics({"after": 1.0}, 1)
            run.log_params({"": "no name"})
            run.log_params({"good": 1})
        line.away = False
        _arrive(run)
        assert run.journal.fact("refused") == 2
    (found,) = site.runs
    assert found.data.metrics == {"before": 1.0, "after": 1.0}
    assert (found.data.params, found.info.status) == ({"good": "1"}, "FINISHED")
    said = capsys.readouterr().out
    assert said.count("refuses metrics") == said.count("refuses params") == 1


def test_a_run_that_cannot_be_opened_keeps_what_it_has(site, line, monkeypatch):
    with monkeypatch.context() as wrong:
        wrong.setenv("MLFLOW_EXPERIMENT_ID", "987654")
        with delivery.open_tracker(TrackingConfig(uri=site.uri, journal=str(site.journal))) as tracker:
            with tracker.begin("train", "x") as run:
                run.log_metrics({"loss": 1.0}, 1)
            assert "987654" in tracker.sender.trouble(run.journal)
    assert site.waiting == [run.journal.key]
    assert run.journal.fact("refused") is None


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody():
    """The address of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("verb", ["evaluate", "predict", "main", "tune", "sync"])
def test_a_command_that_must_read_the_server_says_in_one_line_which_one_is_away(verb, nobody, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--params", str(ROOT / "params" / f"{'tune' if verb == 'tune' else 'train'}.yaml")]
    words += ["--predict.input", "."] if verb == "predict" else []
    with pytest.raises(UserError) as error:  # which `command` turns into exit code 2
        import_module(f"pipelines.{verb}").main([*words, "--tracking.uri", nobody])
    (only,) = str(error.value).splitlines()
    assert nobody.removeprefix("http://") in only
    assert not (tmp_path / "runs").exists()


def test_a_training_without_its_store_ends_well_and_sync_logs_and_registers_its_model_once(site, line, capsys, tmp_path):
    line.away = True
    data = ["--params", str(ROOT / "params" / "train.yaml"), "--data.name", "outage", "--seed", "77"]
    model = ["--model", "small_cnn", "--model.args", "{width: 4, pairs: 2}", "--epochs", "1", "--threads", "1"]
    own = ["--checkpoint.store", str(tmp_path / "runs"), "--tracking.journal", str(site.journal), "--promote.auto", "always"]
    import_module("pipelines.train").main([*data, *model, *own, "--tracking.uri", site.uri, "--tracking.experiment", site.name])
    said = capsys.readouterr().out
    assert outages.AWAY in said
    assert str(site.journal) in said
    assert "pipelines.sync" in said
    assert site.runs == []
    line.away = False
    assert {one.waiting for one in site.sync()} == {0}, capsys.readouterr().out
    assert site.sync() == []
    (found,) = (run for run in site.runs if run.data.tags["kind"] == "train")
    models = site.client.search_logged_models([found.info.experiment_id])
    assert [(model.source_run_id, model.status) for model in models] == [(found.info.run_id, "READY")]
    (version,) = site.client.search_model_versions("name='outage-classifier'")
    assert version.tags["weights.digest"] == found.data.tags["weights.digest"]
    assert (found.info.status, site.waiting) == ("FINISHED", [])
