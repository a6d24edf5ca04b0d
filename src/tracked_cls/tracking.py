"""Runs in MLflow: opened, written to and ended with a status that tells the truth.

Everything goes through `MlflowClient` by run id, so that several runs can be open in one process and none is picked up by
accident.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlsplit

from tracked_cls import provenance
from tracked_cls.config import Section, TrackingConfig, flatten, to_yaml, tracking_uri
from tracked_cls.config.tree import show
from tracked_cls.data.cache import Prepared
from tracked_cls.errors import Interrupted, StopRun, UserError

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402 - reads its settings while it is imported
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: E402
from mlflow.tracking.context.registry import resolve_tags  # noqa: E402

# what they say below these levels is about themselves, not about the run
_LOG_LEVELS = {"alembic": logging.WARNING, "mlflow": logging.WARNING, "mlflow.utils.environment": logging.ERROR}
_TRAININGS = ("train", "trial", "fold", "pipeline")
_PARAMS_PER_CALL = 100
_LONGEST_PARAM = 6000
_CONNECT_SECONDS = 5.0


@dataclass
class Run:
    """One run, open for writing. A metric is keyed by (name, step) and the first value wins."""

    client: MlflowClient
    experiment_id: str
    run_id: str
    uri: str
    continued: bool = False
    _seen: set[tuple[str, int]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where `mlflow ui` (or the server) shows this run."""
        base = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{base}/#/experiments/{self.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"

    def ranked_url(self, metric: str) -> str:
        """Where `mlflow ui` shows the curves of the trials nested in this run, the best first."""
        base = self.url.partition("/#/")[0]
        wanted = quote(f"tags.kind = 'trial' and tags.mlflow.parentRunId = '{self.run_id}'")
        ascending = str(metric == "val_loss").lower()
        return (
            f"{base}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning&searchFilter={wanted}"
            f"&orderByKey={quote(f'metrics.`{metric}_best`')}&orderByAsc={ascending}&compareRunsMode=CHART"
        )

    def log_config(self, config: Section) -> None:
        """Log the typed truth as ``config.yaml``, and each option as a param unless `mlflow run` has logged that key."""
        self.log_params(flatten(config))
        self.log_text(to_yaml(config), "config.yaml")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params that the run does not have yet."""
        known = self.client.get_run(self.run_id).data.params
        new = [Param(key, show(value)[:_LONGEST_PARAM]) for key, value in params.items() if key not in known]
        for start in range(0, len(new), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=new[start : start + _PARAMS_PER_CALL])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics in one call; what a continued run has at this step already is left as it is."""
        now = time.time_ns() // 1_000_000
        new = [Metric(key, float(value), now, step) for key, value in metrics.items() if (key, step) not in self._seen]
        self._seen.update((metric.key, step) for metric in new)
        if new:
            self.client.log_batch(self.run_id, metrics=new)

    def history(self, keys: Sequence[str]) -> dict[str, list[float]]:
        """Return the values of metrics in the order of their steps."""
        by_key = {key: self.client.get_metric_history(self.run_id, key) for key in keys}
        return {key: [metric.value for metric in sorted(found, key=_step)] for key, found in by_key.items()}

    def log_dataset(self, prepared: Prepared, splits: Sequence[str]) -> None:
        """Record the data set as the run's input, once per split, with the digest of its manifest."""
        manifest = prepared.manifest
        source = json.dumps({"folder": str(prepared.folder), "source": prepared.info["source"]})
        schema = json.dumps({"mlflow_colspec": [{"name": "image", "type": "binary"}, {"name": "label", "type": "string"}]})
        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{manifest.name}-{split}",  # MLflow keeps one input per name and digest
                    digest=manifest.digest,
                    source_type="tracked_cls",
                    source=source,
                    schema=schema,
                    profile=json.dumps({"num_images": len(manifest.indices(split)), "classes": list(manifest.classes)}),
                ),
                [InputTag("mlflow.data.context", {"train": "training", "val": "validation"}.get(split, split))],
            )
            for split in splits
        ]
        self.client.log_inputs(self.run_id, datasets=inputs)
        self.set_tags({"data.name": manifest.name, "data.digest": manifest.digest, "content.digest": manifest.content_digest})

    def log_environment(self) -> None:
        """Store the versions that the numbers came from."""
        self.client.log_dict(self.run_id, provenance.environment(), "environment.json")

    def log_text(self, text: str, name: str) -> None:
        """Store a text as a file of the run's artifacts."""
        self.client.log_text(self.run_id, text, name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Upload one file, into a folder of the run's artifacts."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, folder: Path, to: str | None = None) -> None:
        """Upload everything in a local folder, keeping its layout, into a folder of the run's artifacts."""
        self.client.log_artifacts(self.run_id, str(folder), to)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; every value becomes text, as servers want it."""
        self.client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def describe(self, text: str) -> None:
        """Set the description that `mlflow ui` shows on the run's page (Markdown)."""
        self.set_tags({"mlflow.note.content": text})

    def drop_tags(self, prefix: str) -> None:
        """Delete the tags whose names begin with a prefix."""
        for name in self.client.get_run(self.run_id).data.tags:
            if name.startswith(prefix):
                self.client.delete_tag(self.run_id, name)

    def end(self, status: str) -> None:
        """End the run FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


@dataclass(frozen=True)
class Tracker:
    """A connection to the tracking store that opens runs in one experiment."""

    client: MlflowClient
    experiment_id: str
    uri: str
    run_name: str | None = None
    adoptable: str | None = None
    parent: str | None = None

    def within(self, run: Run) -> Tracker:
        """Return a tracker whose runs are nested in `run`."""
        return replace(self, parent=run.run_id, adoptable=None, run_name=None)

    def beside(self) -> Tracker:
        """Return a tracker whose runs never adopt the one that `mlflow run` opened."""
        return replace(self, adoptable=None, run_name=None)

    def open(self, run_id: str) -> Run:
        """Return a run for writing, leaving its status as it is."""
        found = self.client.get_run(run_id)
        return Run(self.client, found.info.experiment_id, run_id, self.uri)

    def has(self, run_id: str) -> bool:
        """Whether this store has a run."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def is_running(self, run_id: str) -> bool:
        """Whether a run is there and has not ended."""
        return self.has(run_id) and self.client.get_run(run_id).info.status == "RUNNING"

    def find(self, tags: Mapping[str, str]) -> str | None:
        """Return the oldest run of the experiment that has all of the tags."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.client.search_runs([self.experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        return str(found[0].info.run_id) if found else None

    def create(self, name: str, tags: Mapping[str, str]) -> str:
        """Make a run that `begin` continues."""
        return self._create(name, tags).run_id

    def follow(self, run_id: str) -> Run:
        """Return a run that another process leads; the one that `mlflow run` opened ends as a pointer to it."""
        if self.adoptable not in (None, run_id):
            self._point_to(run_id)
        return self.open(run_id)

    @contextmanager
    def begin(self, kind: str, name: str, *, continue_id: str | None = None) -> Iterator[Run]:
        """Open a run: the one to continue, else the one `mlflow run` opened, else a new one; end it with what happened.

        FINISHED after the block, KILLED when a signal interrupts it, FAILED on an error, as told by `StopRun`.
        """
        run = self._reopen(continue_id) or self._adopt(name) or self._create(name)
        try:
            run.set_tags({"kind": kind, **provenance.origin()})
            yield run
        except StopRun as stop:
            run.set_tags({"stopped": stop.reason})
            run.end(stop.status)
            raise
        except (Interrupted, KeyboardInterrupt):
            run.end("KILLED")
            raise
        except BaseException as error:
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
            run.end("FAILED")
            raise
        run.end("FINISHED")

    def _reopen(self, run_id: str | None) -> Run | None:
        if run_id is None:
            return None
        try:
            found = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # another store, or deleted for good: the local state goes on in a new run
        if found.info.lifecycle_stage != "active":
            return None
        self.client.update_run(run_id, status="RUNNING")
        for tag in {"error", "stopped"} & set(found.data.tags):
            self.client.delete_tag(run_id, tag)
        if self.adoptable not in (None, run_id):
            self._point_to(run_id)
        run = Run(self.client, found.info.experiment_id, run_id, self.uri, continued=True)
        for key in found.data.metrics:
            run._seen.update((key, metric.step) for metric in self.client.get_metric_history(run_id, key))
        return run

    def _point_to(self, run_id: str) -> None:
        """End the run that `mlflow run` opened as a pointer to the one that goes on."""
        pointer = Run(self.client, self.experiment_id, str(self.adoptable), self.uri)
        pointer.set_tags({"kind": "resume", "continues": run_id})
        pointer.end("FINISHED")

    def _adopt(self, name: str) -> Run | None:
        if self.adoptable is None:
            return None
        found = self.client.get_run(self.adoptable)
        if self.run_name or _is_generated(found.info.run_name):
            self.client.update_run(self.adoptable, name=self.run_name or name)
        return Run(self.client, found.info.experiment_id, self.adoptable, self.uri)

    def _create(self, name: str, tags: Mapping[str, str] | None = None) -> Run:
        nested = {"mlflow.parentRunId": self.parent} if self.parent else {}
        tags = resolve_tags({**nested, **(tags or {})})
        run = self.client.create_run(self.experiment_id, run_name=self.run_name or name, tags=tags)
        return Run(self.client, self.experiment_id, run.info.run_id, self.uri)


@contextmanager
def open_tracker(cfg: TrackingConfig) -> Iterator[Tracker]:
    """Connect to the tracking store, creating an sqlite store where there is none.

    Raises `UserError` within seconds where a server does not answer.
    """
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    uri = tracking_uri(cfg)
    if uri.startswith("sqlite:///"):
        _create_sqlite(Path(uri.removeprefix("sqlite:///")))
    elif uri.startswith("http"):
        _reach(uri)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    adoptable = os.environ.pop("MLFLOW_RUN_ID", None)
    yield Tracker(client, _experiment(client, cfg, uri, adoptable), uri, cfg.run_name, adoptable)


def config_of_run(run_id: str, cfg: TrackingConfig) -> str:
    """Return the ``config.yaml`` of a run; raises `UserError` where there is no such run, or none of ours."""
    uri = tracking_uri(cfg)
    if uri.startswith("http"):
        _reach(uri)
    client = MlflowClient(uri)
    try:
        kind = client.get_run(run_id).data.tags.get("kind")
    except MlflowException:
        raise UserError(f"from_run: there is no run {run_id} in {uri}") from None
    if kind not in _TRAININGS:
        raise UserError(f"from_run: run {run_id} is no training ({kind or 'not one of ours'}); give one of train, or a trial")
    with TemporaryDirectory() as scratch:
        try:
            return Path(client.download_artifacts(run_id, "config.yaml", scratch)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            raise UserError(f"from_run: run {run_id} holds no config.yaml: it was killed before it trained") from None


def _create_sqlite(path: Path) -> None:
    """Create the database once, in one process: several that start together on none crash each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():  # with the artifacts beside it, wherever the command was typed
            SqlAlchemyStore(f"sqlite:///{path}", (path.parent / "mlruns").as_uri())
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # writers and readers in parallel: a tenth of the longest wait


def _reach(uri: str) -> None:
    parts = urlsplit(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"tracking.uri: the tracking server at {parts.hostname}:{port} does not answer ({error.strerror or error}); "
            "start it, or set another tracking.uri"
        ) from None


def _experiment(client: MlflowClient, cfg: TrackingConfig, uri: str, adoptable: str | None) -> str:
    """Return the experiment's id by MLflow's own rules: environment by id, then by name, else Default."""
    by_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = cfg.experiment or (None if by_id else os.environ.get("MLFLOW_EXPERIMENT_NAME"))
    if name is None:
        return by_id or "0"
    found = client.get_experiment_by_name(name)
    if adoptable is not None and (found is None or found.experiment_id != by_id):
        raise UserError(
            f"tracking.experiment={name} has no effect under mlflow run, which opened its run in another experiment; "
            f"use mlflow run --experiment-name {name}"
        )
    if found is not None and found.lifecycle_stage != "active":
        raise UserError(f"tracking.experiment: {name!r} was deleted; restore it, or use another name")
    if found is not None:
        return str(found.experiment_id)
    is_local = uri.startswith("sqlite:///")
    location = (Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / name).as_uri() if is_local else None
    return str(client.create_experiment(name, artifact_location=location))


def _is_generated(name: str | None) -> bool:
    """Whether MLflow made a run's name up (``gifted-deer-113``), so that ours may replace it."""
    return name is None or re.fullmatch(r"[a-z]+-[a-z]+-\d{1,4}", name) is not None


def _step(metric: Metric) -> int:
    return int(metric.step)
