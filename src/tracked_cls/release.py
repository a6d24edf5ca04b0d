"""From trained weights to a model in MLflow and, by rule, in its registry: now, or once the tracking store answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tracked_cls import conversion, durable, failpoints, parity, promotion, tracking, weights
from tracked_cls.config import TrainConfig
from tracked_cls.console import say
from tracked_cls.contest import TEST_DIGEST, Contest, Images, digest_of
from tracked_cls.data.encode import to_png
from tracked_cls.data.loaders import Split
from tracked_cls.job import Job
from tracked_cls.journal import RELEASE
from tracked_cls.promotion import Promotion
from tracked_cls.redaction import reason_of
from tracked_cls.serving.packaging import Bundle, log_model
from tracked_cls.state import TrainState
from tracked_cls.tracking import Run, Tracker
from tracked_cls.transforms.inference import lasting

_EXAMPLE = "example.png"
_TRIES = 3


@dataclass(frozen=True)
class Released:
    """Where the model is, and what the registry made of it."""

    model_uri: str
    promotion: Promotion


def release(
    job: Job, state: TrainState, test: Split, metrics: Mapping[str, float], tracker: Tracker, *, temperature: float
) -> Released:
    """Export the network that was tested, log it once it is known to answer alike, and register it by rule."""
    failpoints.reach("release.before_export")
    bundle = _export(job, state, temperature)
    own = lasting(job.cfg.transforms.eval)
    if own:
        verdict = _refused(own)
        job.tracked.set_tags({"promotion.verdict": verdict.verdict, "promotion.reason": verdict.reason})
        return Released(_keep_weights(job.tracked, bundle), verdict)
    parity.keep_golden(state.network, bundle, test)
    difference = parity.of_export(bundle)
    job.tracked.log_metrics({"parity_max_difference": difference})
    parity.require(difference)
    (bundle.folder / _EXAMPLE).write_bytes(to_png(test.prepared.sized(test.indices[:1])[0]))
    task = {
        "folder": str(bundle.folder),
        "name": job.cfg.data.model_name,
        "tags": _version_tags(job, state, metrics),
        "auto": job.cfg.promote.auto,
        "unregistered": _why_unregistered(job.cfg),
    }
    return _now_or_later(job.tracked, tracker, task, _contest(job, tracker))


def _contest(job: Job, tracker: Tracker) -> Contest:
    """Return where the model meets the champion: on the test images, which are open already."""
    cfg = job.cfg
    images = Images(cfg.data, "test", cfg.training.eval_batch_size, job.feed.prepared)
    return Contest(images, cfg.promote.rules, job.feed.compute, cfg.tracking, tracker)


def _now_or_later(tracked: Run, tracker: Tracker, task: dict[str, Any], contest: Contest) -> Released:
    """Log and register a model, or leave it in the run's journal while the tracking store is away."""
    for _ in range(_TRIES):
        if not tracked.flush():
            break
        try:
            return settle(tracker, tracked.run_id, task, contest)
        except (tracking.StoreError, OSError) as error:
            if tracking.is_refusal(error):
                raise
            say(f"warning: the model could not be logged ({reason_of(error, 200)}); trying again")
    reason = f"the tracking store does not answer; the model waits in {task['folder']} (python -m pipelines.sync)"
    tracked.set_tags({"promotion.verdict": "waiting", "promotion.reason": reason})
    tracked.add(RELEASE, **task)
    return Released(task["folder"], Promotion("waiting", reason))


def settle(tracker: Tracker, run_id: str, task: Mapping[str, Any], contest: Contest | None = None) -> Released:
    """Log a model that was exported and checked, and register it by rule; what is there already stays as it is.

    Without a `contest` it is compared with no champion: what waited is delivered beside other work, which that would disturb.
    """
    bundle = Bundle(Path(task["folder"]))
    _name_run(bundle, run_id)
    failpoints.reach("release.before_log_model")
    with TemporaryDirectory() as scratch:
        model_uri = log_model(bundle, run_id, scratch=Path(scratch), example=(bundle.folder / _EXAMPLE).read_bytes())
    failpoints.reach("release.after_log_model")
    with tracker.opened(run_id) as run:
        verdict = _register(tracker, run, model_uri, task, contest)
        run.set_tags({"promotion.verdict": verdict.verdict, "promotion.reason": verdict.reason})
    return Released(model_uri, verdict)


def _name_run(bundle: Bundle, run_id: str) -> None:
    """Write the run's id into the description of a model that was exported before MLflow had given it one."""
    meta = json.loads(bundle.meta.read_text(encoding="utf-8"))
    if meta["run_id"] != run_id:
        durable.write(bundle.meta, _as_json({**meta, "run_id": run_id}))


def _export(job: Job, state: TrainState, temperature: float) -> Bundle:
    """Write weights, ONNX and description of the network beside the checkpoints."""
    cfg, shape, prepared = job.cfg, job.shape, job.feed.prepared
    bundle = Bundle(job.attempt.folder / "model")
    bundle.folder.mkdir(exist_ok=True)
    weights.save(state.network, bundle.weights)
    manifest = prepared.manifest
    meta = {
        "format": 1,
        "classes": list(manifest.classes),
        "preprocess": prepared.preprocess.to_dict(),
        "architecture": {"model": cfg.model.model_dump(), "shape": asdict(shape)},
        "weights_digest": weights.digest(state.network),
        "temperature": temperature,
        "run_id": job.tracked.run_id,
        "data": {"name": manifest.name, "digest": manifest.digest, "content_digest": manifest.content_digest},
        "multi_label": manifest.multi_label,
        "label_separator": cfg.data.label_separator,
    }
    about = {key: value for key, value in meta.items() if key != "run_id"}  # MLflow may not have given it one yet
    conversion.to_onnx(state.network, shape, bundle.onnx, conversion.metadata_of(about))
    durable.write(bundle.meta, _as_json(meta))
    return bundle


def _as_json(meta: Mapping[str, Any]) -> bytes:
    return (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode()


def _keep_weights(tracked: Run, bundle: Bundle) -> str:
    """Log the files of a model that cannot be one of MLflow's; return where they are."""
    for path in (bundle.weights, bundle.meta):
        tracked.log_file(path, "weights")
    return f"runs:/{tracked.run_id}/weights"


def _refused(own: list[str]) -> Promotion:
    return Promotion(
        "not registered",
        f"transforms.eval has {', '.join(own)}, which cannot travel with the model: served, it would see other images than "
        "it was tested on; data.image_size, data.fit and data.interpolation can",
    )


def _why_unregistered(cfg: TrainConfig) -> str | None:
    """Return why a model is not registered; that of a smoke run never is."""
    for mode in ("fast_dev_run", "overfit_batches"):
        if getattr(cfg, mode):
            return f"{mode}: the model of a debug run is not registered"
    if cfg.limit is not None:
        return f"limit={cfg.limit}: the model of a smoke run is not registered"
    return "promote.auto=never" if cfg.promote.auto == "never" else None


def _register(tracker: Tracker, run: Run, model_uri: str, task: Mapping[str, Any], contest: Contest | None) -> Promotion:
    if task["unregistered"] is not None:
        return Promotion("not registered", task["unregistered"])
    tags = {**task["tags"], "run.id": run.run_id}
    return promotion.register(tracker, run, task["name"], model_uri, tags=tags, auto=task["auto"], contest=contest)


def _version_tags(job: Job, state: TrainState, metrics: Mapping[str, float]) -> dict[str, str]:
    manifest = job.feed.prepared.manifest
    return {
        "data.digest": manifest.digest,
        "content.digest": manifest.content_digest,
        "weights.digest": weights.digest(state.network),
        TEST_DIGEST: digest_of(manifest, "test"),
        **{name: repr(value) for name, value in metrics.items()},
    }
