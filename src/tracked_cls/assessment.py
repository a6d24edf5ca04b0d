"""Evaluation as a use case: a model on a split, with its numbers, tables and pictures in a run of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from tracked_cls import evaluation, failpoints, models, plots, preparation, registry, weights
from tracked_cls.compute import make_compute
from tracked_cls.config import EvaluateConfig, LoaderConfig, ModelConfig, workspace
from tracked_cls.console import say
from tracked_cls.data.cache import Prepared
from tracked_cls.data.loaders import Feed, Split, open_split
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.evaluation import TOP, EvalReport
from tracked_cls.models import Shape
from tracked_cls.serving.classifier import Classifier, read_meta
from tracked_cls.serving.packaging import Bundle
from tracked_cls.tracking import Tracker
from tracked_cls.transforms.views import resolution

PARITY_IMAGES = 64
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found, and where it is kept."""

    run_id: str
    url: str
    model: str
    split: str
    report: EvalReport


def run(cfg: EvaluateConfig, tracker: Tracker) -> Evaluation:
    """Score a run, version or alias on a prepared split; log it to a run that names the model and the data."""
    address = cfg.evaluate.model or f"models:/{cfg.data.model_name}@{registry.CHAMPION}"
    bundle, exact = registry.resolve(tracker.client, address)
    network, meta = load_network(bundle)
    compute = make_compute(cfg.device, cfg.threads)
    preprocess = Preprocess.from_dict(meta["preprocess"])
    _require_same_task(cfg, preprocess, meta, address)
    size = preprocess.geometry.image_size
    geometry = replace(preprocess.geometry, image_size=resolution(cfg.evaluate.tta, size))
    prepared = _prepared_for(meta, geometry, cfg, tracker, address)
    seen = replace(prepared, preprocess=replace(preprocess, geometry=geometry))
    feed = Feed(seen, compute, LoaderConfig(), tta=cfg.evaluate.tta, image_size=size)
    split = open_split(feed, cfg.evaluate.split, limit=cfg.limit)
    with tracker.begin("evaluate", f"evaluate {cfg.data.label} {cfg.evaluate.split}") as tracked:
        tracked.log_config(cfg)
        tracked.log_dataset(prepared, [cfg.evaluate.split])
        tracked.set_tags({"model": exact, "model.address": address, "weights.digest": meta["weights_digest"]})
        with closing(feed):
            report = score_split(compute.place(network), split, cfg.evaluate.batch_size)
        failpoints.reach("evaluate.before_metrics")
        tracked.log_metrics(prefixed(report.metrics, cfg.evaluate.split))
        with TemporaryDirectory() as scratch:
            write_report(report, Path(scratch), cfg.evaluate.split)
            tracked.log_folder(Path(scratch))
            failpoints.reach("evaluate.before_end")
    return Evaluation(tracked.run_id, tracked.url, exact, cfg.evaluate.split, report)


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


def score_split(network: nn.Module, split: Split, batch_size: int) -> EvalReport:
    """Evaluate a network on a split."""
    return evaluation.report(evaluation.score(network, split.eval_batches(batch_size)), split.prepared.manifest.classes)


def write_report(report: EvalReport, folder: Path, split: str) -> None:
    """Write the confusion matrix as picture and table, the per-class table and all numbers below a folder."""
    for name in ("plots", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if report.confusion is not None:
        plots.confusion(report.confusion, report.classes, folder / "plots" / f"{split}_confusion.png")
        header = ["true \\ predicted", *report.classes]
        rows = [[name, *counts] for name, counts in zip(report.classes, report.confusion.tolist(), strict=True)]
        write_csv(folder / "tables" / f"{split}_confusion.csv", header, rows)
    columns = list(report.per_class[0])
    write_csv(folder / "tables" / f"{split}_per_class.csv", columns, [list(row.values()) for row in report.per_class])
    (folder / "tables" / f"{split}_metrics.json").write_text(json.dumps(report.metrics, indent=2) + "\n")


def prefixed(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """Return metrics under the names they have in MLflow: ``test_accuracy``."""
    return {f"{split}_{name}": value for name, value in metrics.items()}


def parity(network: nn.Module, bundle: Bundle, split: Split) -> float:
    """Return the largest difference in probability between a network and its ONNX form, on real images."""
    sample = replace(split, indices=split.indices[:PARITY_IMAGES])
    classifier = Classifier.load(bundle.onnx, bundle.meta)
    ours = classifier.activate(evaluation.score(network, sample.eval_batches(PARITY_IMAGES)).logits)
    return float(np.abs(ours - classifier.probabilities_of(split.prepared.sized(sample.indices))).max())


def _per_class_lines(report: EvalReport, worst: int = 3) -> list[str]:
    """Return one line for each of the classes with the lowest F1."""
    rows = sorted(report.per_class, key=lambda row: float(row["f1"]))[:worst]
    return [f"    {row['class']}: precision {row['precision']:.3f}, recall {row['recall']:.3f}, f1 {row['f1']:.3f}, "
            f"{row['support']} images" for row in rows]  # fmt: skip


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
    fitting = cfg.data.model_copy(
        update={
            "image_size": geometry.image_size,
            "channels": geometry.channels,
            "fit": geometry.fit,
            "interpolation": geometry.interpolation,
        }
    )
    return preparation.open_or_prepare(fitting, cfg.tracking, tracker, source)


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


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def lines(evaluation: Evaluation) -> list[str]:
    """Return what a person wants to know at the end of an evaluation."""
    metrics = evaluation.report.metrics
    return [
        f"evaluate: {evaluation.model} on {evaluation.split}: accuracy {metrics['accuracy']:.4f}, "
        f"top-{TOP} {metrics[f'top{TOP}_accuracy']:.4f}, loss {metrics['loss']:.4f}, "
        f"f1_macro {metrics['f1_macro']:.4f}",
        f"  run:   {evaluation.url}",
        "  weakest classes:",
        *_per_class_lines(evaluation.report),
    ]
