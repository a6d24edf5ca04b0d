"""The page of a run is put into the run: at its end, or when the store answers."""

from pathlib import Path

import pytest
import requests
from conftest import PARAMS, do

from tracked_cls import assessment, delivery, experiment, tracking
from tracked_cls.config import EvaluateConfig, TrackingConfig
from tracked_cls.report import own, publication


def page_of(client, run_id, folder):
    return Path(client.download_artifacts(run_id, "report.html", str(folder))).read_text(encoding="utf-8")


def test_a_training_has_its_page(client, trained, tmp_path):
    page = page_of(client, trained.run_id, tmp_path)
    accuracy = client.get_run(trained.run_id).data.metrics["test_accuracy"]
    assert f"{100 * accuracy:.2f} %" in page
    assert trained.prepared.manifest.digest in page
    assert "first version" in page, "the page is written after the registry has spoken"
    assert len(page.encode()) < 3_000_000
    assert f"runs/{trained.run_id}/artifacts/report.html?" in trained.page_url
    assert f"  page:  {trained.page_url}" in experiment.lines(trained)


def test_an_evaluation_has_its_page(client, trained, store, tmp_path):
    words = [*PARAMS, *store, "--threads", "1", "--tracking.pictures", "false", "--model", f"runs:/{trained.run_id}"]
    found = do(assessment.run, EvaluateConfig, [*words, "--split", "val"])
    assert f"{100 * found.report.metrics['accuracy']:.2f} %" in page_of(client, found.run_id, tmp_path)


def test_a_page_that_was_left_waiting_is_written_by_the_next_command(client, trained, store, tmp_path):
    cfg = TrackingConfig(uri=store[1])
    with tracking.open_tracker(cfg) as tracker, tracker.begin("train", "killed before its page") as run:
        run.log_metrics({"test_accuracy": 0.5})
        run.add(own.KIND)  # as `leave` does, in a process that does not live to write it
    assert not [file for file in client.list_artifacts(run.run_id) if file.path == "report.html"]
    with delivery.open_tracker(cfg):
        pass
    assert "killed before its page" in page_of(client, run.run_id, tmp_path)


def test_a_page_waits_while_the_artifacts_behind_the_store_are_away(client, trained, store, tmp_path, monkeypatch):
    gone = [requests.HTTPError("503 Server Error"), tracking.StoreError("away")]
    collect = publication.collect

    def failing(*args, **options):
        if gone:
            raise gone.pop()
        return collect(*args, **options)

    monkeypatch.setattr(publication, "collect", failing)
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as tracker, tracker.begin("train", "away for a moment") as run:
        own.leave(tracker, run)
        assert run.flush(30)
    assert "away for a moment" in page_of(client, run.run_id, tmp_path)


@pytest.mark.parametrize("kind", ["predict", "promote"])
def test_a_run_without_a_page_of_its_kind_does_not_block_what_follows(client, trained, store, kind, capsys):
    with tracking.open_tracker(TrackingConfig(uri=store[1])) as tracker, tracker.begin(kind, "no page") as run:
        own.leave(tracker, run)
        run.log_metrics({"after": 1.0})
    assert client.get_run(run.run_id).data.metrics == {"after": 1.0}
    assert "has no report.html" in capsys.readouterr().out
