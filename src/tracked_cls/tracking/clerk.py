"""What each entry of a journal becomes in MLflow. Doing it twice is as doing it once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from tracked_cls.console import say
from tracked_cls.journal import REF, Entry, Journal, run_of
from tracked_cls.tracking.store import Home, Store, is_missing

KEY_TAG = "journal.key"
_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 1000

Handler = Callable[[Journal, Entry], Mapping[str, Any]]


class NotYet(Exception):  # noqa: N818 - no error
    """An entry has to wait: for its parent's run, or for somebody who can do what it asks for."""


class Clerk:
    """Delivers entries to a store, in their order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self._seen: dict[str, set[tuple[str, int]]] = {}
        self._handlers: dict[str, Handler] = {
            "open": self._open,
            "attach": self._attach,
            "params": self._log_params,
            "inputs": self._log_inputs,
            "tags": self._set_tags,
            "drop_tags": self._drop_tags,
            "files": self._upload,
            "end": self._end,
            "reap": self._reap,
            "unreadable": self._pass_over,
        }

    def teach(self, kind: str, handler: Handler) -> None:
        """Say what is to be done with entries of a kind."""
        self._handlers[kind] = handler

    def deliver(self, journal: Journal, entries: Sequence[Entry]) -> tuple[int, Mapping[str, Any]]:
        """Deliver the first of the entries, metrics several at a time; return how many, and what became known.

        Raises `NotYet` for what has to wait, else what MLflow raises.
        """
        first = entries[0]
        if first.kind == "metrics":
            return self._log_metrics(journal, list(takewhile(lambda entry: entry.kind == "metrics", entries))), {}
        if first.kind not in self._handlers:
            raise NotYet(first.kind)
        return 1, self._handlers[first.kind](journal, first)

    def beat(self, journal: Journal) -> None:
        """Say that the process of a run is alive."""
        self._client.set_tag(_id(journal), "heartbeat", datetime.now(UTC).isoformat(timespec="seconds"))

    # ---- the run itself ----------------------------------------------------------------------------------------------

    def _open(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        """Make the run, or the one to continue RUNNING again, or take the one that `mlflow run` opened."""
        asked = entry.content
        run_id, adopt = journal.run_id or asked.get("run_id"), asked.get("adopt")
        if run_id is not None and self._reopen(run_id):
            if adopt not in (None, run_id):
                self.point(adopt, run_id)
        elif adopt is not None:
            run_id = self._adopt(adopt, asked)
        else:
            run_id = self._create(journal, entry)
        return {"run_id": run_id, "experiment_id": self._client.get_run(run_id).info.experiment_id}

    def _reopen(self, run_id: str) -> bool:
        try:
            found = self._client.get_run(run_id)
        except Exception as error:
            if not is_missing(error):
                raise
            return False  # another store, or deleted for good: what goes on does so in a new run
        if found.info.lifecycle_stage != "active":
            return False
        self._client.update_run(run_id, status="RUNNING")
        for tag in {"error", "stopped", "reaped"} & set(found.data.tags):
            self._client.delete_tag(run_id, tag)
        return True

    def _adopt(self, run_id: str, asked: Mapping[str, Any]) -> str:
        given = asked.get("run_name")
        if given or _is_generated(self._client.get_run(run_id).info.run_name):
            self._client.update_run(run_id, name=given or asked["name"])
        return run_id

    def _create(self, journal: Journal, entry: Entry) -> str:
        asked = entry.content
        experiment_id = self._store.experiment_id(Home(**asked["home"]))
        made = self._made(experiment_id, journal.key)
        if made is not None:  # in a delivery that was cut short
            return made
        tags = {**asked["tags"], KEY_TAG: journal.key}
        if asked.get("parent"):
            tags["mlflow.parentRunId"] = self._resolve(journal, asked["parent"], experiment_id)
        run = self._client.create_run(experiment_id, entry.time_ms, tags, asked.get("run_name") or asked["name"])
        return str(run.info.run_id)

    def _made(self, experiment_id: str, key: str) -> str | None:
        """Return the run that was made for a journal."""
        found = self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _resolve(self, journal: Journal, ref: str, experiment_id: str | None = None) -> str:
        """Return the run that a reference stands for."""
        if not ref.startswith(REF):
            return ref
        folder = journal.folder.parent / ref.removeprefix(REF)
        run_id = run_of(folder)
        if run_id is None and experiment_id is not None and not folder.exists():  # all of it has arrived
            run_id = self._made(experiment_id, folder.name)
        if run_id is None:
            raise NotYet(ref)
        return run_id

    def point(self, pointer: str, run_id: str) -> None:
        """End the run that `mlflow run` opened as a pointer to the one that goes on."""
        self._client.log_batch(pointer, tags=[RunTag("kind", "resume"), RunTag("continues", run_id)])
        self._client.set_terminated(pointer, "FINISHED")

    def _attach(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        asked = entry.content["run_id"]
        experiment_id = self._store.experiment_id(Home(**entry.content["home"])) if asked.startswith(REF) else None
        return {"run_id": self._resolve(journal, asked, experiment_id)}

    def _end(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        self._client.set_terminated(_id(journal), entry.content["status"], entry.time_ms)
        return {}

    def _reap(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        """End a run KILLED whose process is gone, unless somebody else has ended it, or goes on with it."""
        run = self._client.get_run(_id(journal))
        if run.info.status == "RUNNING" and run.data.tags.get("process") in (None, journal.process):
            self._client.set_tag(_id(journal), "reaped", entry.content["at"])
            self._client.set_terminated(_id(journal), "KILLED", entry.time_ms)
        return {}

    def _pass_over(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        say(f"warning: entry {entry.number + 1} of {journal.folder} is damaged and left out: its checksum differs")
        return {}

    # ---- what it holds -----------------------------------------------------------------------------------------------

    def _log_params(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        """Log params that the run does not have yet."""
        known = self._client.get_run(_id(journal)).data.params
        new = [Param(key, value) for key, value in entry.content["values"].items() if key not in known]
        for start in range(0, len(new), _PARAMS_PER_CALL):
            self._client.log_batch(_id(journal), params=new[start : start + _PARAMS_PER_CALL])
        return {}

    def _log_metrics(self, journal: Journal, entries: Sequence[Entry]) -> int:
        """Log what is new of some entries, with the time it had; sent twice, a metric of the same time is one."""
        seen = self._seen_of(journal)
        batch: list[Metric] = []
        count = 0
        for entry in entries:
            values, step = entry.content["values"], int(entry.content["step"])
            if batch and len(batch) + len(values) > _METRICS_PER_CALL:
                break
            batch += [Metric(key, value, entry.time_ms, step) for key, value in values.items() if (key, step) not in seen]
            count += 1
        for start in range(0, len(batch), _METRICS_PER_CALL):
            self._client.log_batch(_id(journal), metrics=batch[start : start + _METRICS_PER_CALL])
        return count

    def _seen_of(self, journal: Journal) -> set[tuple[str, int]]:
        """Return what a run had before its journal began: it stays as it is."""
        if journal.knows_all:
            return set()
        if journal.key not in self._seen:
            self._seen[journal.key] = {(key, step) for key, values in self.history(journal).items() for step in values}
        return self._seen[journal.key]

    def history(self, journal: Journal) -> dict[str, dict[int, float]]:
        """Return metric -> step -> the first value, as MLflow has them."""
        run_id = _id(journal)
        found: dict[str, dict[int, float]] = {}
        for key in self._client.get_run(run_id).data.metrics:
            for metric in self._client.get_metric_history(run_id, key):
                found.setdefault(key, {}).setdefault(int(metric.step), float(metric.value))
        return found

    def _log_inputs(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        inputs = [
            DatasetInput(Dataset(**given["dataset"]), [InputTag("mlflow.data.context", given["context"])])
            for given in entry.content["datasets"]
        ]
        self._client.log_inputs(_id(journal), datasets=inputs)
        return {}

    def _set_tags(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        values = entry.content["values"]  # written before the run had an id, they may speak of what stood for it
        tags = [RunTag(key, value.replace(journal.ref, _id(journal))) for key, value in values.items()]
        self._client.log_batch(_id(journal), tags=tags)
        return {}

    def _drop_tags(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        for name in self._client.get_run(_id(journal)).data.tags:
            if name.startswith(entry.content["prefix"]):
                self._client.delete_tag(_id(journal), name)
        return {}

    def _upload(self, journal: Journal, entry: Entry) -> Mapping[str, Any]:
        copy = journal.copy_of(entry)
        if copy.exists():  # else it was uploaded, and the process killed before it could note that
            self._client.log_artifacts(_id(journal), str(copy), entry.content["folder"])
        return {}


def _id(journal: Journal) -> str:
    assert journal.run_id is not None, "a journal begins with what opens its run"
    return journal.run_id


def _is_generated(name: str | None) -> bool:
    """Whether MLflow made a run's name up (``gifted-deer-113``), so that ours may replace it."""
    return name is None or re.fullmatch(r"[a-z]+-[a-z]+-\d{1,4}", name) is not None
