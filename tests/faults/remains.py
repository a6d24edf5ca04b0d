"""What a command left behind, as plain values that are equal where nothing was lost: no ids, times or speeds.

Every function is a question for `harness.ask`: it needs torch or mlflow.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLOCKS = ("_seconds", "images_per_second", "seconds", "latency_ms")
_PLAIN = (".html", "config.yaml", "train.yaml", "environment.json", "report.json")  # hold ids, names, times, versions
Record = dict[str, Any]


def of_run(uri: str, experiment: str, kind: str) -> list[Record]:
    """Return the runs of a kind in an experiment: status, metric histories, digests, tables and pictures."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else client.search_runs([found.experiment_id], f"tags.kind = '{kind}'")
    return [_run(client, run) for run in sorted(runs, key=lambda run: run.info.run_name)]


def _run(client: Any, run: Any) -> Record:
    tags = ("weights.digest", "data.digest", "content.digest", "weights", "error")
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "threads": run.data.params.get("threads"),
        "tags": {name: run.data.tags.get(name) for name in tags},
        "history": _history(client, run),
        "files": dict(sorted(_files(client, run.info.run_id))),
    }


def _history(client: Any, run: Any) -> list[list[Any]]:
    """Return [name, step, value] of every point there is, in the order of names and steps."""
    names = [name for name in run.data.metrics if not name.endswith(CLOCKS)]
    points = [point for name in names for point in client.get_metric_history(run.info.run_id, name)]
    return sorted([point.key, point.step, point.value.hex()] for point in points)


def _files(client: Any, run_id: str, folder: str | None = None) -> Iterator[tuple[str, str]]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _files(client, run_id, item.path)
        elif not item.path.endswith(_PLAIN):
            yield item.path, sha256(Path(client.download_artifacts(run_id, item.path)))


def of_state(store: str) -> Record:
    """Return the newest checkpoint of every attempt below a folder, part by part, as digests."""
    import torch

    newest = {path.parent: path for path in sorted(Path(store).rglob("[0-9]*-[0-9]*.pt"))}
    found: Record = {}
    for folder, path in newest.items():
        state = torch.load(path, map_location="cpu", weights_only=True)
        parts = {part: _digest(value) for part, value in state.items()}
        found[str(folder.relative_to(store))] = {"name": path.name, **parts}
    return found


def _digest(value: Any) -> str:
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        sha.update(
            f"{value.dtype}{tuple(value.shape)}".encode()
            + value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(value, dict):
        for key, entry in value.items():
            sha.update(repr(key).encode())
            _feed(sha, entry)
    elif isinstance(value, list | tuple):
        sha.update(f"[{len(value)}".encode())
        for entry in value:
            _feed(sha, entry)
    elif isinstance(value, float):
        sha.update(struct.pack("<d", value))
    else:
        sha.update(repr(value).encode())


def of_prepared(store: str) -> Record:
    """Return the digest of every file of all prepared sets in a store, verified; times aside."""
    from tracked_cls.data.cache import COMPLETE, verify_prepared

    found: Record = {}
    for folder in sorted(Path(store).glob("*/*/")):
        if folder.name.startswith("."):
            continue
        verify_prepared(folder)  # nothing half-written stands under its final name
        for path in sorted(folder.iterdir()):
            if path.name not in (COMPLETE, "report.html", "report.json"):
                found[str(path.relative_to(store))] = sha256(path)
        report = json.loads((folder / "report.json").read_text())
        report.pop("seconds", None)
        found[f"{folder.name}/report"] = report
    for pointer in Path(store).glob("*/current"):
        found["current"] = pointer.read_text()
    return found


def partial_sets(store: str) -> int:
    """Return how many sets lie in a store under no final name; each is refused unless it is whole."""
    from tracked_cls.data.cache import COMPLETE, open_prepared, verify_prepared
    from tracked_cls.errors import UserError

    found = [path for path in Path(store).glob("*/.partial-*") if path.is_dir()]
    for folder in found:
        if (folder / COMPLETE).exists():
            verify_prepared(folder)
            open_prepared(folder)
            continue
        try:
            open_prepared(folder)
        except UserError:
            continue
        raise AssertionError(f"{folder} was accepted")
    return len(found)


def champion(uri: str, name: str) -> Record | None:
    """Return the champion of a model as a loaded, verified network says it is; None where there is none."""
    from mlflow import MlflowClient

    from tracked_cls import assessment, registry, tracking  # noqa: F401 - tracking sets MLflow up

    client = MlflowClient(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    found = registry.by_alias(client, name, registry.CHAMPION)
    if found is None:
        return None
    bundle, exact = registry.resolve(client, f"models:/{name}@{registry.CHAMPION}")
    _, meta = assessment.load_network(bundle)
    assert meta["weights_digest"] == found.tags["weights.digest"], f"{exact} holds other weights than its tag says"
    return {"address": exact, "weights": meta["weights_digest"]}


def versions(uri: str, name: str) -> list[str]:
    """Return the weights digest of every version of a model."""
    from mlflow import MlflowClient

    return sorted(found.tags["weights.digest"] for found in MlflowClient(uri).search_model_versions(f"name='{name}'"))


def running(uri: str) -> list[str]:
    """Return the kinds of all runs that are still said to go on."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    every = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(every, "attributes.status = 'RUNNING'")
    return sorted(f"{run.data.tags.get('kind')} {run.info.run_name}" for run in runs)


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_training(uri: str, workers: int, threads: int) -> str:
    """Return the digest of all that a short training of the prepared digits comes to, image by image, with so many workers."""
    from contextlib import closing

    from tracked_cls import preparation, training
    from tracked_cls.compute import make_compute
    from tracked_cls.config import TrackingConfig, TrainConfig
    from tracked_cls.data.loaders import Feed, open_split
    from tracked_cls.job import shape_of
    from tracked_cls.state import TrainState

    augmentation = [{"RandomAffine": {"degrees": 10, "translate": [0.1, 0.1]}}, {"RandomErasing": {}}]
    options = {
        "epochs": 2,
        "batch_size": 32,
        "data": {"source": "digits", "image_size": 8},
        "model": {"name": "small_cnn", "dropout": 0.2, "args": {"width": 4, "pairs": 2}},
        "transforms": {"train": augmentation, "speed": "sample"},
        "training": {"ema": 0.9},
        "loader": {"workers": workers},
    }
    cfg, tracking = TrainConfig.model_validate(options), TrackingConfig(uri=uri)
    source = preparation.scan_input(cfg.data, tracking)
    prepared = preparation.find(cfg.data, Path(uri.removeprefix("sqlite:///")).parent / cfg.data.store, source)
    assert prepared is not None
    compute = make_compute("cpu", threads)
    with closing(Feed.create(prepared, compute, cfg.transforms, cfg.loader)) as feed:
        train, val = open_split(feed, "train", limit=200), open_split(feed, "val", limit=50)
        state = TrainState.create(cfg, shape_of(prepared), train_images=len(train), compute=compute)
        for _ in training.fit(state, cfg, train=train, val=val):
            pass
        return _digest(state.state_dict())
