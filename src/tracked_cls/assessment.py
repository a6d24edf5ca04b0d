"""Evaluation as a use case: a model on a split, with its numbers, tables and pictures in a run of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from tracked_cls import anatomy, evaluation, failpoints, models, preparation, registry, weights
from tracked_cls.compute import make_compute
from tracked_cls.config import DataConfig, EvaluateConfig, LoaderConfig, ModelConfig, workspace
from tracked_cls.console import say
from tracked_cls.data.cache import Prepared
from tracked_cls.data.loaders import Feed, Split, open_split
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.evaluation import TOP, EvalReport
from tracked_cls.models import Shape
from tracked_cls.report import own
from tracked_cls.report.publication import PAGE
from tracked_cls.serving.classifier import read_meta, temperature_of
from tracked_cls.serving.packaging import Bundle
from tracked_cls.slices import AUTO, columns_of
from tracked_cls.tables import write_csv, write_tables
from tracked_cls.tracking import Tracker
from tracked_cls.transforms.views import resolution

__all__ = [
    "Evaluation",
    "at_geometry",
    "latency_ms",
    "lines",
    "load_network",
    "prefixed",
    "require_same_classes",
    "run",
    "score_split",
    "write_csv",
]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found, and where it is kept.

    `reads`: how often the test images were looked at with this model, None where they were not, or its run is gone.
    """

    run_id: str
    url: str
    page_url: str
    model: str
    split: str
    report: EvalReport
    reads: int | None = None


def run(cfg: EvaluateConfig, tracker: Tracker) -> Evaluation:
    """Score a run, version or alias on a prepared split; log it to a run that names the model and the data."""
    address, name = cfg.evaluate.model or f"models:/{cfg.data.model_name}@{registry.CHAMPION}", cfg.evaluate.split
    bundle, exact = registry.resolve(tracker.client, address)
    network, meta = load_network(bundle)
    temperature = temperature_of(meta)
    feed = _feed(cfg, tracker, meta, address)
    split = open_split(feed, name, limit=cfg.limit)
    columns = columns_of(split.prepared.manifest, split.indices, cfg.evaluate.slices)
    with tracker.begin("evaluate", f"evaluate {cfg.data.label} {name}") as tracked, closing(feed):
        tracked.log_config(cfg)
        tracked.log_dataset(split.prepared, [name])
        tracked.set_tags({"model": exact, "model.address": address, "weights.digest": meta["weights_digest"]})
        reads = registry.count_read(tracker.client, _trained_by(tracker, exact)) if name == "test" else None
        started = time.perf_counter()
        scores = evaluation.score(feed.compute.place(network), split.eval_batches(cfg.evaluate.batch_size))
        speed = {"images_per_second": len(split) / (time.perf_counter() - started)}
        report = evaluation.report(scores, split.prepared.manifest.classes, temperature, columns)
        failpoints.reach("evaluate.before_metrics")
        tracked.log_metrics(prefixed(report.metrics | speed, name) | {"latency_ms": latency_ms(network, meta)})
        with TemporaryDirectory() as scratch:
            write_tables(report, Path(scratch) / "tables", name, split, separator=cfg.data.label_separator)
            if cfg.tracking.pictures:
                from tracked_cls import showcase  # matplotlib: a second, after the work

                showcase.write(network, split, report, Path(scratch))
            tracked.log_folder(Path(scratch))
            tracked.describe(_description(exact, name, report))
            own.leave(tracker, tracked)
            failpoints.reach("evaluate.before_end")
    return Evaluation(tracked.run_id, tracked.url, tracked.url_of(PAGE), exact, name, report, reads)


def _description(model: str, split: str, report: EvalReport) -> str:
    accuracy = report.estimates["accuracy"]
    return (
        f"`{model}` on the {len(report.scores.labels):,} images of **{split}**: accuracy **{accuracy.value:.4f}** "
        f"(95 %: {accuracy.low:.4f} to {accuracy.high:.4f}).\n\nTo read: `report.html` under *Artifacts*"
    )


def _feed(cfg: EvaluateConfig, tracker: Tracker, meta: Mapping[str, Any], address: str) -> Feed:
    """Return the way from the data to the model: as it was trained to see them, in the views that are asked for."""
    preprocess = Preprocess.from_dict(meta["preprocess"])
    _require_same_task(cfg, preprocess, meta, address)
    size = preprocess.geometry.image_size
    geometry = replace(preprocess.geometry, image_size=resolution(cfg.evaluate.tta, size))
    prepared = _prepared_for(meta, geometry, cfg, tracker, address)
    seen = replace(prepared, preprocess=replace(preprocess, geometry=geometry))
    compute = make_compute(cfg.device, cfg.threads)
    return Feed(seen, compute, LoaderConfig(), tta=cfg.evaluate.tta, image_size=size)


def latency_ms(network: nn.Module, meta: Mapping[str, Any]) -> float:
    """Return what one image costs a network of a bundle, batch 1, in milliseconds (`anatomy.describe`)."""
    return anatomy.describe(network, Shape(**meta["architecture"]["shape"])).latency_ms


def load_network(bundle: Bundle) -> tuple[nn.Module, Mapping[str, Any]]:
    """Rebuild the network of a bundle from its weights and description, never from code that came with it.

    Raises `UserError` where the weights are not those the description names.
    """
    meta = read_meta(bundle.meta)
    architecture = meta["architecture"]
    network = models.make_model(ModelConfig.model_validate(architecture["model"]), Shape(**architecture["shape"]))
    weights.load(network, bundle.weights)
    if weights.digest(network) != meta["weights_digest"]:
        raise UserError(f"{bundle.weights}: the weights were changed: digest {weights.digest(network)}, "
                        f"registered {meta['weights_digest']}")  # fmt: skip
    return network, meta


def score_split(
    network: nn.Module, split: Split, batch_size: int, temperature: float = 1.0, slices: Sequence[str] = (AUTO,)
) -> EvalReport:
    """Evaluate a network on a split, calibrated by a temperature, and cut along columns of the manifest (`columns_of`)."""
    manifest = split.prepared.manifest
    columns = columns_of(manifest, split.indices, slices)  # a column that makes no slices is refused before the work
    scores = evaluation.score(network, split.eval_batches(batch_size))
    return evaluation.report(scores, manifest.classes, temperature, columns)


def _trained_by(tracker: Tracker, exact: str) -> str:
    """Return the id of the run that trained a model, by its exact address."""
    name, _, last = exact.removeprefix("models:/").rpartition("/")
    if name:
        return str(tracker.client.get_model_version(name, last).run_id)
    return str(tracker.client.get_logged_model(last).source_run_id)


def prefixed(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """Return metrics under the names they have in MLflow: ``test_accuracy``."""
    return {f"{split}_{name}": value for name, value in metrics.items()}


def _prepared_for(meta: Mapping[str, Any], geometry: Geometry, cfg: EvaluateConfig, tracker: Tracker, address: str) -> Prepared:
    """Return the data as the model wants to see them: as they are prepared if that fits, else prepared at that size.

    Raises `UserError`, before anything is prepared, where they have other classes than the model.
    """
    source = preparation.scan_input(cfg.data, cfg.tracking)
    found = preparation.find(cfg.data, workspace(cfg.tracking) / cfg.data.store, source)
    require_same_classes(found.manifest.classes if found else source.class_names, meta, address, cfg.data.label)
    if found is not None and found.preprocess.geometry == geometry:
        return found
    say(f"the model takes {geometry.image_size}x{geometry.image_size}x{geometry.channels} images")
    return preparation.open_or_prepare(at_geometry(cfg.data, geometry), cfg.tracking, tracker, source)


def at_geometry(data: DataConfig, geometry: Geometry) -> DataConfig:
    """Return the options that prepare data as a model of some geometry sees them."""
    return data.model_copy(update=asdict(geometry))


def _require_same_task(cfg: EvaluateConfig, preprocess: Preprocess, meta: Mapping[str, Any], address: str) -> None:
    """Raise `UserError` where the data are read as something else than the model was trained for."""
    if cfg.data.frames != preprocess.frames:
        raise UserError(f"{address} takes {preprocess.frames or 'no'} frames; set data.frames={preprocess.frames or 'off'}")
    multi_label = bool(meta.get("multi_label", False))
    if cfg.data.multi_label != multi_label:
        several = "any number of labels" if multi_label else "one label"
        raise UserError(f"{address} gives {several} to an image; set data.multi_label={str(multi_label).lower()}")


def require_same_classes(classes: Sequence[str], meta: Mapping[str, Any], address: str, data: str) -> None:
    """Raise `UserError` where a model was trained for other classes than the data have."""
    theirs, ours = list(meta["classes"]), list(classes)
    if theirs != ours:
        missing, strange = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        raise UserError(
            f"{address} was trained for other classes than {data!r} has: "
            f"unknown to the model: {_some(missing)}; not in the data: {_some(strange)}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"


# ---- what is said ----------------------------------------------------------------------------------------------------


def lines(evaluation: Evaluation) -> list[str]:
    """Return what a person wants to know at the end of an evaluation."""
    report = evaluation.report
    found = report.estimates
    accuracy, top = found["accuracy"], found.get(f"top{TOP}_accuracy")
    others = [f"top-{TOP} {top.value:.4f}"] if top is not None and len(report.classes) > TOP else []
    others += [f"{name} {found[name].value:.4f}" for name in ("loss", "f1_macro", "ece_calibrated")]
    reads = f"; the test images were looked at {evaluation.reads} times with this model" if evaluation.reads else ""
    return [
        f"evaluate: {evaluation.model} on {evaluation.split}: accuracy {accuracy.value:.4f} (95 %: {accuracy.low:.4f} to "
        f"{accuracy.high:.4f}), {', '.join(others)}",
        f"  {len(report.scores.labels):,} images{reads}",
        *(f"  note: {note}" for note in report.notes),
        f"  run:   {evaluation.url}",
        f"  page:  {evaluation.page_url}",
        "  weakest classes:",
        *_weakest_classes(report),
        *_weakest_slices(report),
    ]


def _weakest_classes(report: EvalReport, most: int = 3) -> list[str]:
    """Return one line for each of the classes with the lowest F1."""
    known = [row for row in report.per_class if row["support"]]
    rows = sorted(known, key=lambda row: float(row["f1"]))[:most]
    return [f"    {row['class']}: precision {row['precision']:.3f}, recall {row['recall']:.3f}, f1 {row['f1']:.3f}, "
            f"{row['support']} images" for row in rows]  # fmt: skip


def _weakest_slices(report: EvalReport, most: int = 3) -> list[str]:
    """Return one line for each of the slices whose accuracy lies, with its whole interval, below that of all images."""
    overall = report.estimates["accuracy"].value
    weak = sorted((one for one in report.slices if one.accuracy.high < overall), key=lambda one: one.accuracy.high)[:most]
    found = [f"    {one.column} {one.value}: accuracy {one.accuracy.value:.3f} ({one.accuracy.low:.3f} to "
             f"{one.accuracy.high:.3f}), {one.count} images" for one in weak]  # fmt: skip
    return ["  slices that are weaker than the whole:", *found] if found else []
