"""One tracked training run, told from top to bottom."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tracked_cls import assessment, checkpoint, conversion, models, plots, preparation, promotion, signals, training, weights
from tracked_cls.checkpoint import Attempt
from tracked_cls.compute import Compute, make_compute
from tracked_cls.config import TrainConfig, TransformsConfig, workspace
from tracked_cls.console import progress, say
from tracked_cls.data.cache import Prepared
from tracked_cls.data.loaders import Feed, Split, num_batches, open_split, preview, some
from tracked_cls.errors import StopRun, UserError
from tracked_cls.evaluation import EvalReport
from tracked_cls.models import Shape
from tracked_cls.promotion import Promotion
from tracked_cls.report import to_png
from tracked_cls.serving.packaging import Bundle, log_model
from tracked_cls.tracking import Run, Tracker
from tracked_cls.training import EpochResult, Progress, TrainState
from tracked_cls.transforms import check
from tracked_cls.transforms.inference import lasting, normalisation

_SHOWN, _DRAWS = 8, 7  # training images in the picture of the augmentation, and epochs of each
_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")


@dataclass(frozen=True)
class Outcome:
    """What a training run reached, and where it is kept."""

    run_id: str
    url: str
    model_uri: str
    best_epoch: int
    val_accuracy: float
    test: EvalReport
    promotion: Promotion
    prepared: Prepared


def run(cfg: TrainConfig, tracker: Tracker) -> Outcome:
    """Train, test, log and register one model; an interrupted run of the same data and configuration is continued."""
    models.check_name(cfg.model.name)
    _check_transforms(cfg)
    compute = make_compute(cfg.device, cfg.threads, cfg.performance)
    cfg = cfg.model_copy(update={"threads": compute.threads})
    found = preparation.open_or_prepare(cfg.data, cfg.tracking, tracker, transforms=cfg.transforms)
    prepared = _normalised(found, cfg.transforms)
    store = workspace(cfg.tracking) / cfg.checkpoint.store
    with (
        closing(Feed.create(prepared, compute, cfg.transforms, cfg.loader)) as feed,
        checkpoint.open_attempt(store, _key(cfg, prepared), resume=cfg.resume == "auto") as attempt,
    ):
        name = f"{cfg.model.name} on {prepared.manifest.name}"
        with tracker.begin("train", name, continue_id=attempt.run_id) as tracked:
            attempt.adopt(tracked.run_id)
            outcome = _train(cfg, feed, tracker, tracked, attempt)
        attempt.end("FINISHED")
    return outcome


def _train(cfg: TrainConfig, feed: Feed, tracker: Tracker, tracked: Run, attempt: Attempt) -> Outcome:
    prepared, compute, geometry = feed.prepared, feed.compute, feed.prepared.preprocess.geometry
    shape = Shape(len(prepared.manifest.classes), geometry.channels, geometry.image_size, prepared.preprocess.frames)
    train, val, test = (open_split(feed, name, limit=cfg.limit) for name in ("train", "val", "test"))
    state = TrainState.create(cfg, shape, train_images=len(train), compute=compute)
    resumed = checkpoint.restore(state, attempt)
    tracked.log_config(cfg)
    tracked.log_dataset(prepared, ("train", "val", "test"))
    tracked.log_environment()
    if not resumed:
        _log_augmented(cfg, train, tracked)
    _introduce(cfg, state, compute, train, val, test, resumed=resumed)

    with signals.deferred() as interrupted:
        try:
            _loop(cfg, state, tracked, attempt, train, val, interrupted)
        except StopRun:
            attempt.end("FAILED")
            raise

    say(f"testing the weights of epoch {state.best_epoch}, exporting and logging the model")
    checkpoint.load_best(state, attempt)
    report = assessment.score_split(state.model, test, cfg.training.eval_batch_size)
    _log_results(tracked, state, report)
    bundle = _export(cfg, state, shape, prepared, attempt, tracked)
    own = lasting(cfg.transforms.eval)
    if own:
        model_uri, promoted = _keep_weights(tracked, bundle), _refused(own)
    else:
        model_uri = _log_model(tracked, bundle, state, test)
        promoted = _register(cfg, tracker, model_uri, _version_tags(tracked, prepared, state, report))
    tracked.set_tags({"promotion.verdict": promoted.verdict, "promotion.reason": promoted.reason})
    outcome = Outcome(
        run_id=tracked.run_id,
        url=tracked.url,
        model_uri=model_uri,
        best_epoch=state.best_epoch,
        val_accuracy=state.best_score,
        test=report,
        promotion=promoted,
        prepared=prepared,
    )
    tracked.describe(_description(cfg, outcome))
    return outcome


def _loop(
    cfg: TrainConfig,
    state: TrainState,
    tracked: Run,
    attempt: Attempt,
    train: Split,
    val: Split,
    interrupted: Callable[[], bool],
) -> None:
    """Train to the end, to an early stop, or to an interruption; everything worth keeping is on disk at each return."""
    if _is_stale(cfg, state):
        return
    total = (cfg.epochs - state.epoch) * num_batches(len(train), cfg.batch_size) - state.batch
    saved = time.monotonic()
    for step in _with_bar(training.fit(state, cfg, train=train, val=val), total):
        if isinstance(step, EpochResult):
            improved = state.record_score(step.val_accuracy, step.val_loss, cfg.training.min_delta)
            tracked.log_metrics(step.metrics, step=step.epoch)
            say(_epoch_line(cfg, step, improved))
        if isinstance(step, EpochResult) or interrupted() or time.monotonic() - saved > cfg.checkpoint.every_seconds:
            checkpoint.save(state, attempt)
            saved = time.monotonic()
        if interrupted():
            say(f"interrupted: saved after epoch {state.epoch}, batch {state.batch}; the same command continues from here")
            return
        if _is_stale(cfg, state):
            say(f"stopped early: no better val_accuracy in {state.stale_epochs} epochs")
            return


def _is_stale(cfg: TrainConfig, state: TrainState) -> bool:
    return cfg.training.patience is not None and state.stale_epochs >= cfg.training.patience


def _with_bar(steps: Iterator[Progress | EpochResult], total: int) -> Iterator[Progress | EpochResult]:
    """Show the batches of the whole run as one bar, and pass on every step."""
    return progress(steps, total, "training", unit="batch", counts=lambda step: isinstance(step, Progress))


def _log_results(tracked: Run, state: TrainState, report: EvalReport) -> None:
    """Log what the best epoch reached on val and test, with the curves and the tables."""
    tracked.log_metrics({"val_accuracy_best": state.best_score, "best_epoch": state.best_epoch}, step=0)
    tracked.log_metrics(assessment.prefixed(report.metrics, "test"))
    with TemporaryDirectory() as scratch:
        assessment.write_report(report, Path(scratch), "test")
        plots.curves(tracked.history(_CURVES), state.best_epoch, Path(scratch) / "plots" / "curves.png")
        tracked.log_folder(Path(scratch))


def _export(cfg: TrainConfig, state: TrainState, shape: Shape, prepared: Prepared, attempt: Attempt, tracked: Run) -> Bundle:
    """Write weights, ONNX and description of the best epoch's network beside the checkpoints."""
    bundle = Bundle(attempt.folder / "model")
    bundle.folder.mkdir(exist_ok=True)
    weights.save(state.model, bundle.weights)
    conversion.to_onnx(state.model, shape, bundle.onnx)
    manifest = prepared.manifest
    meta = {
        "format": 1,
        "classes": list(manifest.classes),
        "preprocess": prepared.preprocess.to_dict(),
        "architecture": {"model": cfg.model.model_dump(), "shape": asdict(shape)},
        "weights_digest": weights.digest(state.model),
        "run_id": tracked.run_id,
        "data": {"name": manifest.name, "digest": manifest.digest, "content_digest": manifest.content_digest},
        "multi_label": manifest.multi_label,
        "label_separator": cfg.data.label_separator,
    }
    bundle.meta.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return bundle


def _log_model(tracked: Run, bundle: Bundle, state: TrainState, test: Split) -> str:
    """Log the model once it is known to answer like the network that was tested."""
    difference = assessment.parity(state.model, bundle, test)
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


def _check_transforms(cfg: TrainConfig) -> None:
    """Build and try the lists of transforms before any data are touched, for the likeliest shape of the images."""
    shape = (cfg.data.channels or 3, cfg.data.image_size or 224)
    check(cfg.transforms, shape, whole_photos=cfg.data.cache == "files", frames=cfg.data.frames, search=(Path.cwd(),))


def _normalised(prepared: Prepared, cfg: TransformsConfig) -> Prepared:
    """Return a prepared set with the mean and std that its configuration asks for in place of the data's own."""
    own = prepared.preprocess
    mean, std = normalisation(cfg, (own.mean, own.std))
    return replace(prepared, preprocess=replace(own, mean=mean, std=std))


def _log_augmented(cfg: TrainConfig, train: Split, tracked: Run) -> None:
    """Show what the network is trained on: images of the first epoch, each plain and in several draws."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "augmented.png"
        plots.gallery(preview(some(train, _SHOWN), draws=_DRAWS, seed=cfg.seed), path)
        tracked.log_file(path, "plots")


def _register(cfg: TrainConfig, tracker: Tracker, model_uri: str, tags: dict[str, str]) -> Promotion:
    """Register the model as ``promote.auto`` says; that of a smoke run never."""
    if cfg.limit is not None:
        return Promotion("not registered", f"limit={cfg.limit}: the model of a smoke run is not registered")
    if cfg.promote.auto == "never":
        return Promotion("not registered", "promote.auto=never")
    return promotion.register(tracker, cfg.data.model_name, model_uri, tags=tags, compare=cfg.promote.auto == "always")


def _version_tags(tracked: Run, prepared: Prepared, state: TrainState, report: EvalReport) -> dict[str, str]:
    return {
        "run.id": tracked.run_id,
        "data.digest": prepared.manifest.digest,
        "content.digest": prepared.manifest.content_digest,
        "weights.digest": weights.digest(state.model),
        "val_accuracy_best": repr(state.best_score),
        **{name: repr(value) for name, value in assessment.prefixed(report.metrics, "test").items()},
    }


def _key(cfg: TrainConfig, prepared: Prepared) -> str:
    """Return the name of the local state: the kind, and a digest of everything that decides the result."""
    recipe = cfg.model_dump(mode="json", exclude={"data", "tracking", "checkpoint", "promote", "device", "resume"})
    recipe["training"].pop("eval_batch_size")
    for key in ("workers", "prefetch", "pin_memory"):
        recipe["loader"].pop(key)
    recipe["data"] = {"name": cfg.data.label, "digest": prepared.manifest.digest, "whole_photos": prepared.pixels is None}
    return f"train-{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]}"


def _introduce(
    cfg: TrainConfig, state: TrainState, compute: Compute, train: Split, val: Split, test: Split, *, resumed: bool
) -> None:
    size = train.prepared.preprocess.geometry.image_size
    say(
        f"{cfg.model.name} ({models.count_parameters(state.model):,} parameters) on {train.prepared.manifest.name}: "
        f"{len(train):,} train, {len(val):,} val, {len(test):,} test images of {size}x{size}, "
        f"{compute.device}, {compute.threads} threads"
    )
    if resumed:
        say(f"continuing an interrupted run after epoch {state.epoch}, batch {state.batch}")


def _epoch_line(cfg: TrainConfig, result: EpochResult, improved: bool) -> str:
    width = len(str(cfg.epochs))
    return (
        f"epoch {result.epoch:{width}}/{cfg.epochs}  "
        f"train_loss {result.train_loss:.4f}  train_accuracy {result.train_accuracy:.4f}  "
        f"val_loss {result.val_loss:.4f}  val_accuracy {result.val_accuracy:.4f}  lr {result.lr:.2e}  "
        f"{result.seconds:.1f} s  {result.images_per_second:,.0f} images/s{'  best' if improved else ''}"
    )


def _description(cfg: TrainConfig, outcome: Outcome) -> str:
    """Return the run's page in three sentences and a command."""
    metrics = outcome.test.metrics
    return (
        f"**{cfg.model.name}** on {outcome.prepared.manifest.name} (data digest `{outcome.prepared.manifest.digest}`): "
        f"test accuracy **{metrics['accuracy']:.4f}**, validation {outcome.val_accuracy:.4f} in epoch {outcome.best_epoch} "
        f"of {cfg.epochs}. Registry: {outcome.promotion.verdict}, {outcome.promotion.reason}.\n\n"
        "Pictures and tables are under *Artifacts*; `config.yaml` there repeats this run: "
        "`mlflow run . -e train --env-manager local -P params=config.yaml`"
    )


def lines(outcome: Outcome) -> list[str]:
    """Return what a person wants to know at the end of a training."""
    version = outcome.promotion.version
    registered = f"{version.uri}, {outcome.promotion.verdict}: " if version else f"{outcome.promotion.verdict}: "
    metrics = outcome.test.metrics
    return [
        f"train: val_accuracy {outcome.val_accuracy:.4f} in epoch {outcome.best_epoch}; on the test split, with the weights "
        f"of that epoch: test_accuracy {metrics['accuracy']:.4f}, test_loss {metrics['loss']:.4f}",
        f"  run:   {outcome.url}",
        f"  model: {outcome.model_uri}",
        f"  registry: {registered}{outcome.promotion.reason}",
    ]
