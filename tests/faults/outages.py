"""A tracking store that comes and goes: real behind a line that can be cut, and a run that holds something of everything."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import tracked_cls.tracking.run
import tracked_cls.tracking.sender
import tracked_cls.tracking.store
import tracked_cls.tracking.tracker
from tracked_cls import delivery
from tracked_cls.config import SyncConfig, TrackingConfig
from tracked_cls.journal import Entry, Journal

AWAY = "the tracking server at nowhere:1 does not answer (cut)"
_OWN = ("journal.key", "process", "pid", "host", "heartbeat", "mlflow.user", "mlflow.source", "mlflow.runName", "reaped")


class Line:
    """What lies between us and the store: `away` cuts it, `flickers` lets the answer of every first try get lost."""

    def __init__(self) -> None:
        self.away = False
        self.flickers = False
        self.lost: set[str] = set()
        self.calls: list[tuple[str, str]] = []  # name, thread
        self.entries: list[Entry] = []

    def call(self, name: str, method: Any, /, *args: Any, **options: Any) -> Any:
        """Pass a call on, as the line allows."""
        self.calls.append((name, threading.current_thread().name))
        if self.away:
            raise MlflowException(f"API request to {name} failed: connection refused")
        answer = method(*args, **options)
        what = f"{name}{args}"
        if self.flickers and name.split("_")[0] in ("create", "log", "set", "update", "delete") and what not in self.lost:
            self.lost.add(what)
            raise MlflowException(f"{name}: read timed out")
        return answer


class Client:
    """MLflow's client at the end of a line."""

    def __init__(self, line: Line, *args: Any, **options: Any) -> None:
        self._line, self._client = line, MlflowClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return (lambda *args, **options: self._line.call(name, found, *args, **options)) if callable(found) else found


@contextmanager
def cut_line() -> Iterator[Line]:
    """Put a line between the product and its stores, and have nobody wait for seconds."""
    line, add, absence = Line(), Journal.add, tracked_cls.tracking.store.Store.absence

    def noting(journal: Journal, kind: str, **options: Any) -> Entry:
        line.entries.append(add(journal, kind, **options))
        return line.entries[-1]

    with (
        patch.object(mlflow, "MlflowClient", lambda *args, **options: Client(line, *args, **options)),
        patch.object(tracked_cls.tracking.store, "MlflowClient", lambda *args, **options: Client(line, *args, **options)),
        patch.object(tracked_cls.tracking.store.Store, "absence", lambda store: AWAY if line.away else absence(store)),
        patch.object(tracked_cls.tracking.tracker, "PATIENCE_SECONDS", 0.1),
        patch.object(tracked_cls.tracking.tracker, "_BRIEF_SECONDS", 0.1),
        patch.object(tracked_cls.tracking.run.Run.flush, "__defaults__", (0.1,)),
        patch.object(tracked_cls.tracking.sender, "_FIRST_PAUSE_SECONDS", 0.02),
        patch.object(tracked_cls.tracking.sender, "_LONGEST_PAUSE_SECONDS", 0.04),
        patch.object(Journal, "add", noting),
    ):
        yield line


# ---- a run that holds something of everything ------------------------------------------------------------------------


def log_half(run: Any, half: int) -> None:
    """Log params, metrics, tags, inputs and artifacts; the second half has other names and later steps."""
    run.log_params({f"option{half}.{number}": number for number in range(130)})
    run.set_tags({"half": half, f"tag{half}": "ä\u2028"})
    run.journal.add("inputs", datasets=[_dataset(f"set{half}")])
    run.log_text(f"text {half}", f"half{half}.txt")
    with TemporaryDirectory() as scratch:
        (Path(scratch) / "deep").mkdir()
        (Path(scratch) / "deep" / "table.csv").write_text(f"a,b\n{half},2\n")
        run.log_folder(Path(scratch), "tables")
    for step in range(10 * half, 10 * half + 10):
        run.log_metrics({"loss": 1 / (step + 1), "lr": 0.1 + step, "odd": float("nan")}, step)
        run.log_metrics({"loss": 9.0}, step)  # the first stays


def _dataset(name: str) -> dict[str, Any]:
    return {"dataset": {"name": name, "digest": "d", "source_type": "t", "source": "{}"}, "context": "training"}


def stored(uri: str, run_id: str) -> dict[str, Any]:
    """Return all that MLflow holds of a run but ids, processes and times."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    with TemporaryDirectory() as scratch:
        folder = Path(client.download_artifacts(run_id, "", scratch))
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith(_OWN)},
        "inputs": sorted(given.dataset.name for given in run.inputs.dataset_inputs),
        "points": [point[:3] for point in points(uri, run_id)],
        "files": files,
    }


def points(uri: str, run_id: str) -> list[tuple[str, int, str, int]]:
    """Return (name, step, value, time in ms) of every point of a run, each as often as it is there."""
    client = MlflowClient(uri)
    found = [point for key in client.get_run(run_id).data.metrics for point in client.get_metric_history(run_id, key)]
    return sorted((point.key, point.step, float(point.value).hex(), point.timestamp) for point in found)


def expected_points(entries: list[Entry]) -> list[tuple[str, int, str, int]]:
    """Return the points of a journal's entries, with the times of the entries."""
    metrics = [entry for entry in entries if entry.kind == "metrics"]
    return sorted(
        (key, entry.content["step"], float(value).hex(), entry.time_ms)
        for entry in metrics
        for key, value in entry.content["values"].items()
    )


def run_and_be_killed(uri: str, journal: str) -> None:
    """Begin a run with the store away, log half of it, and be killed."""
    with cut_line() as line:
        line.away = True
        with delivery.open_tracker(TrackingConfig(uri=uri, journal=journal)) as tracker, tracker.begin("train", "x") as run:
            log_half(run, 0)
            os.kill(os.getpid(), signal.SIGKILL)


def sync(uri: str, journal: Path) -> list[delivery.Delivered]:
    """Deliver what waits."""
    return delivery.sync(SyncConfig(patience_seconds=1, tracking=TrackingConfig(uri=uri, journal=str(journal)))).delivered
