"""From trained weights to a model in MLflow and, by rule, in its registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tracked_cls import assessment, conversion, promotion, weights
from tracked_cls.config import TrainConfig
from tracked_cls.data.encode import to_png
from tracked_cls.data.loaders import Split
from tracked_cls.errors import UserError
from tracked_cls.job import Job
from tracked_cls.promotion import Promotion
from tracked_cls.serving.packaging import Bundle, log_model
from tracked_cls.state import TrainState
from tracked_cls.tracking import Run, Tracker
from tracked_cls.transforms.inference import lasting


@dataclass(frozen=True)
class Released:
    """Where the model is, and what the registry made of it."""

    model_uri: str
    promotion: Promotion


def release(job: Job, state: TrainState, test: Split, metrics: Mapping[str, float], tracker: Tracker) -> Released:
    """Export the network that was tested, log it once it is known to answer alike, and register it by rule."""
    bundle = _export(job, state)
    own = lasting(job.cfg.transforms.eval)
    if own:
        released = Released(_keep_weights(job.tracked, bundle), _refused(own))
    else:
        model_uri = _log_model(job.tracked, bundle, state, test)
        released = Released(model_uri, _register(job.cfg, tracker, model_uri, _version_tags(job, state, metrics)))
    verdict = released.promotion
    job.tracked.set_tags({"promotion.verdict": verdict.verdict, "promotion.reason": verdict.reason})
    return released


def _export(job: Job, state: TrainState) -> Bundle:
    """Write weights, ONNX and description of the network beside the checkpoints."""
    cfg, shape, prepared = job.cfg, job.shape, job.feed.prepared
    bundle = Bundle(job.attempt.folder / "model")
    bundle.folder.mkdir(exist_ok=True)
    weights.save(state.network, bundle.weights)
    conversion.to_onnx(state.network, shape, bundle.onnx)
    manifest = prepared.manifest
    meta = {
        "format": 1,
        "classes": list(manifest.classes),
        "preprocess": prepared.preprocess.to_dict(),
        "architecture": {"model": cfg.model.model_dump(), "shape": asdict(shape)},
        "weights_digest": weights.digest(state.network),
        "run_id": job.tracked.run_id,
        "data": {"name": manifest.name, "digest": manifest.digest, "content_digest": manifest.content_digest},
        "multi_label": manifest.multi_label,
        "label_separator": cfg.data.label_separator,
    }
    bundle.meta.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return bundle


def _log_model(tracked: Run, bundle: Bundle, state: TrainState, test: Split) -> str:
    """Log the model once it is known to answer like the network that was tested."""
    difference = assessment.parity(state.network, bundle, test)
    tracked.log_metrics({"parity_max_difference": difference})
    if difference > assessment.PARITY_TOLERANCE:
        raise UserError(
            f"the exported model differs from the trained one by {difference:.2g} in probability "
            f"(at most {assessment.PARITY_TOLERANCE:g} is allowed); it was not logged"
        )
    example = to_png(test.prepared.sized(test.indices[:1])[0])
    with TemporaryDirectory() as scratch:
        return log_model(bundle, tracked.run_id, scratch=Path(scratch), example=example)


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


def _register(cfg: TrainConfig, tracker: Tracker, model_uri: str, tags: dict[str, str]) -> Promotion:
    """Register the model as ``promote.auto`` says; that of a smoke run never."""
    for mode in ("fast_dev_run", "overfit_batches"):
        if getattr(cfg, mode):
            return Promotion("not registered", f"{mode}: the model of a debug run is not registered")
    if cfg.limit is not None:
        return Promotion("not registered", f"limit={cfg.limit}: the model of a smoke run is not registered")
    if cfg.promote.auto == "never":
        return Promotion("not registered", "promote.auto=never")
    return promotion.register(tracker, cfg.data.model_name, model_uri, tags=tags, compare=cfg.promote.auto == "always")


def _version_tags(job: Job, state: TrainState, metrics: Mapping[str, float]) -> dict[str, str]:
    manifest = job.feed.prepared.manifest
    return {
        "run.id": job.tracked.run_id,
        "data.digest": manifest.digest,
        "content.digest": manifest.content_digest,
        "weights.digest": weights.digest(state.network),
        **{name: repr(value) for name, value in metrics.items()},
    }
