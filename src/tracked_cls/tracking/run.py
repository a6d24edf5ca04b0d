"""One run, written to: into its journal, from where it comes to MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from tracked_cls import provenance
from tracked_cls.config import Section, flatten, to_yaml
from tracked_cls.config.tree import show
from tracked_cls.data.cache import Prepared
from tracked_cls.journal import Journal
from tracked_cls.redaction import redacted, without_credentials
from tracked_cls.tracking.sender import Sender
from tracked_cls.tracking.store import Store, StoreError

PATIENCE_SECONDS = 10.0  # for a store that does not answer, at the end of a run
_LONGEST_PARAM = 6000

History = Callable[[Journal], dict[str, dict[int, float]]]


@dataclass(frozen=True, eq=False)
class Run:
    """One run, open for writing. Nothing here waits for MLflow; a metric is keyed by (name, step) and the first value wins."""

    store: Store
    journal: Journal
    sender: Sender
    earlier: History

    @property
    def run_id(self) -> str:
        """Its id in MLflow, or what stands for it (``journal:...``) as long as the store has not answered."""
        return self.journal.run_id or self.journal.ref

    @property
    def url(self) -> str:
        """Where `mlflow ui` (or the server) shows this run."""
        experiment = self.journal.fact("experiment_id")
        if experiment is None:
            return f"not in MLflow yet; it waits in {self.journal.folder}"
        return f"{self.store.base_url}/#/experiments/{experiment}/runs/{self.run_id}?workflowType=machine_learning"

    def url_of(self, name: str) -> str:
        """Where `mlflow ui` shows one of the run's files."""
        return self.url.replace("?", f"/artifacts/{quote(name)}?")

    def ranked_url(self, metric: str) -> str:
        """Where `mlflow ui` shows the curves of the trials nested in this run, the best first."""
        wanted = quote(f"tags.kind = 'trial' and tags.mlflow.parentRunId = '{self.run_id}'")
        ascending = str(metric == "val_loss").lower()
        return (
            f"{self.store.base_url}/#/experiments/{self.journal.fact('experiment_id')}/runs?workflowType=machine_learning"
            f"&searchFilter={wanted}&orderByKey={quote(f'metrics.`{metric}_best`')}&orderByAsc={ascending}&compareRunsMode=CHART"
        )

    def log_config(self, config: Section) -> None:
        """Log the typed truth as ``config.yaml``, and each option as a param unless `mlflow run` has logged that key.

        The tracking store's password is not among them: who repeats the run has one.
        """
        tracking = getattr(config, "tracking", None)
        if tracking is not None and tracking.uri is not None:
            address = tracking.model_copy(update={"uri": without_credentials(tracking.uri)})
            config = config.model_copy(update={"tracking": address})
        self.log_params(flatten(config))
        self.log_text(to_yaml(config), "config.yaml")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params that the run does not have yet."""
        self.journal.add("params", values={key: redacted(show(value))[:_LONGEST_PARAM] for key, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one moment; what the run has at this step already is left as it is."""
        self.journal.add_metrics(metrics, step)

    def sync(self) -> None:
        """Put what was logged on the disk."""
        self.journal.sync()

    def history(self, keys: Sequence[str]) -> dict[str, list[float]]:
        """Return the values of metrics in the order of their steps."""
        found = self.journal.metrics
        with suppress(StoreError):  # of a store that is away, what this journal knows has to do
            earlier = {} if self.journal.knows_all or not self.flush() else self.earlier(self.journal)
            for key, values in earlier.items():
                found[key] = found.get(key, {}) | values
        return {key: [value for _, value in sorted(found.get(key, {}).items())] for key in keys}

    def log_dataset(self, prepared: Prepared, splits: Sequence[str]) -> None:
        """Record the data set as the run's input, once per split, with the digest of its manifest."""
        manifest = prepared.manifest
        self.journal.add("inputs", datasets=[_dataset(prepared, split) for split in splits])
        self.set_tags({"data.name": manifest.name, "data.digest": manifest.digest, "content.digest": manifest.content_digest})

    def log_environment(self) -> None:
        """Store the versions that the numbers came from."""
        self.log_text(json.dumps(provenance.environment(), indent=2), "environment.json")

    def log_text(self, text: str, name: str) -> None:
        """Store a text as a file of the run's artifacts."""
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            path.write_text(text, encoding="utf-8")
            self.log_file(path)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Upload one file, into a folder of the run's artifacts."""
        self.journal.add_file(path, folder)

    def log_folder(self, folder: Path, to: str | None = None) -> None:
        """Upload everything in a local folder, keeping its layout, into a folder of the run's artifacts."""
        self.journal.add_file(folder, to)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; every value becomes text, as servers want it."""
        self.journal.add("tags", values={key: str(value) for key, value in tags.items()})

    def describe(self, text: str) -> None:
        """Set the description that `mlflow ui` shows on the run's page (Markdown)."""
        self.set_tags({"mlflow.note.content": text})

    def drop_tags(self, prefix: str) -> None:
        """Delete the tags whose names begin with a prefix."""
        self.journal.add("drop_tags", prefix=prefix)

    def add(self, kind: str, **content: Any) -> None:
        """Note something that is to be done in MLflow by whoever knows how."""
        self.journal.add(kind, **content)

    def end(self, status: str, *, final: bool = True) -> None:
        """End the run FINISHED, FAILED or KILLED; one that is not `final` may be continued."""
        self.journal.add("end", status=status, final=final)

    def flush(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Wait until all that was logged has arrived; False where the store does not answer for `patience` seconds."""
        return self.sender.drain(self.journal, patience)


def _dataset(prepared: Prepared, split: str) -> dict[str, Any]:
    manifest = prepared.manifest
    profile = {"num_images": manifest.num_of(split), "classes": list(manifest.classes)}
    return {
        "dataset": {
            "name": f"{manifest.name}-{split}",  # MLflow keeps one input per name and digest
            "digest": manifest.digest,
            "source_type": "tracked_cls",
            "source": json.dumps({"folder": str(prepared.folder), "source": prepared.info["source"]}),
            "schema": json.dumps(
                {"mlflow_colspec": [{"name": "image", "type": "binary"}, {"name": "label", "type": "string"}]}
            ),
            "profile": json.dumps(profile),
        },
        "context": {"train": "training", "val": "validation"}.get(split, split),
    }
