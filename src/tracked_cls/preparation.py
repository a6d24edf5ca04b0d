"""`prepare` as a use case: a data set found or made, every image decoded once, in an MLflow run of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracked_cls.config import DataConfig, PrepareConfig, TrackingConfig, find_input, workspace
from tracked_cls.console import say
from tracked_cls.data import cache, intake
from tracked_cls.data.cache import Prepared
from tracked_cls.data.decode import Pixels
from tracked_cls.data.ingest import Plan
from tracked_cls.data.intake import CHUNK
from tracked_cls.data.manifest import Manifest, assign_splits, make_manifest, save_manifest
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.data.sources import SPLITS, Source, scan
from tracked_cls.provenance import num_cores
from tracked_cls.report import DataFacts, data_report, render_data_report
from tracked_cls.tracking import Run, Tracker

_REPORTS = ("report.html", "report.json")
_SHOWN = 10  # rejected files named on the terminal


@dataclass(frozen=True)
class Preparation:
    """A prepared data set and whether it was made now; `url` shows its run."""

    prepared: Prepared
    is_new: bool
    url: str


def run(cfg: PrepareConfig, tracker: Tracker) -> Preparation:
    """Prepare the data in a run of their own; unchanged input is recognised, checked and left as it is."""
    return _run(cfg, scan_input(cfg.data, cfg.tracking), tracker)


def _run(cfg: PrepareConfig, source: Source, tracker: Tracker) -> Preparation:
    store = workspace(cfg.tracking) / cfg.data.store
    found = find(cfg.data, store, source)
    if found is None:  # the list of classes is checked as it is made: before a run is opened
        say(f"prepare: {len(source.samples):,} images of {len(source.class_names)} classes in {source.name}")
    else:
        cache.verify_prepared(found.folder)
    with tracker.begin("prepare", f"prepare {cfg.data.label}") as tracked:
        tracked.log_config(cfg)
        prepared = found or build(cfg.data, store, source)
        cache.set_current(prepared.folder)
        tracked.set_tags({"unchanged": str(found is not None).lower()})
        _log(tracked, prepared)
    return Preparation(prepared, found is None, tracked.url)


def open_or_prepare(data: DataConfig, tracking: TrackingConfig, tracker: Tracker, source: Source | None = None) -> Prepared:
    """Return the prepared set of a configuration, prepared now, in a run beside, where it is not there.

    `source` is its input where that was scanned already.
    """
    source = source or scan_input(data, tracking)
    found = find(data, workspace(tracking) / data.store, source)
    if found is not None:
        return found
    say(f"prepare: {data.label} is not prepared yet, or has changed")
    preparation = _run(PrepareConfig(data=data, tracking=tracking), source, tracker.beside())
    for line in lines(preparation):
        say(line)
    return preparation.prepared


def lines(preparation: Preparation) -> list[str]:
    """Return what a person wants to know after a preparation."""
    prepared = preparation.prepared
    counts = ", ".join(f"{len(prepared.manifest.indices(split)):,} {split}" for split in SPLITS)
    made = "prepared" if preparation.is_new else "unchanged and sound, nothing to do"
    text = [
        f"prepare: {prepared.manifest.name}: {made}: {len(prepared.manifest):,} images ({counts}), "
        f"{len(prepared.manifest.classes)} classes, digest {prepared.manifest.digest}",
        f"  run:    {preparation.url}",
        f"  report: {prepared.folder / 'report.html'}",
    ]
    rejected = json.loads((prepared.folder / "report.json").read_text(encoding="utf-8"))["rejected"]
    if rejected:
        text.append(f"  {len(rejected)} files were left out; the report lists all of them:")
        text += [f"    {item['path']}: {item['code']}, {item['reason']}" for item in rejected[:_SHOWN]]
    return text


def scan_input(data: DataConfig, tracking: TrackingConfig) -> Source:
    """List the input of a configuration."""
    home = workspace(tracking)
    if data.source == "torchvision":  # may be empty still: it is downloaded into
        return scan(data, home / (data.root or Path(data.store) / "downloads"))
    return scan(data, find_input(data.root, tracking, "data.root") if data.root else None)


def _log(tracked: Run, prepared: Prepared) -> None:
    report = json.loads((prepared.folder / "report.json").read_text(encoding="utf-8"))
    tracked.log_dataset(prepared, SPLITS)
    tracked.log_metrics({name: report[name] for name in ("num_images", "num_rejected", "num_classes", "balance")})
    tracked.log_metrics({f"num_{split}": len(prepared.manifest.indices(split)) for split in SPLITS})
    for name in _REPORTS:
        tracked.log_file(prepared.folder / name)


# ---- from a source to a folder ---------------------------------------------------------------------------------------


def find(data: DataConfig, store: Path, source: Source) -> Prepared | None:
    """Return the prepared set of an unchanged input, by the input's fingerprint; nothing is decoded."""
    folder = cache.find_prepared(store, data, source.fingerprint)
    return None if folder is None else cache.open_prepared(folder)


def build(data: DataConfig, store: Path, source: Source) -> Prepared:
    """Make the prepared set of a source below `store`.

    Raises `UserError` for what the user's data or options make impossible; nothing half-made is left then.
    """
    started = time.perf_counter()
    folder = cache.prepared_folder(store, data.label, cache.prepared_key(data, source.fingerprint))
    with cache.staging(folder) as partial:
        _write(partial, source, data, started)
    return cache.open_prepared(folder)


def _write(folder: Path, source: Source, cfg: DataConfig, started: float) -> None:
    """Write everything but COMPLETE."""
    plan = Plan(cfg.image_size or intake.usual_side(source), cfg.channels, cfg.fit, cfg.interpolation, cfg.max_pixels)
    spool_file = folder / "spool"
    with spool_file.open("wb") as spool:
        taken = intake.take_in(source, plan, cfg.workers or num_cores(), spool)
    intake.check_classes_left(taken, source)

    number_by_name = {name: number for number, name in enumerate(source.class_names)}
    labels = np.array([number_by_name[sample.label] for sample in taken.samples], np.int64)
    splits = assign_splits(labels, [sample.split for sample in taken.samples], cfg, source.class_names)
    channels = plan.channels or max(shape[2] for shape in taken.shapes)
    pixels = _write_pixels(folder / "pixels.npy", spool_file, taken.shapes, plan, channels)
    spool_file.unlink()
    mean, std = _mean_and_std(pixels, np.flatnonzero(splits == 0))
    preprocess = Preprocess(plan.geometry(channels), mean, std)
    manifest = make_manifest(
        source.name,
        source.class_names,
        labels=labels,
        splits=splits,
        paths=[sample.path for sample in taken.samples],
        sha256=taken.sha256,
        pixel_digests=taken.pixel_digests,
        geometry=asdict(preprocess.geometry),
    )
    save_manifest(manifest, folder)
    _write_meta(folder, source, cfg, manifest, preprocess)
    facts = DataFacts(
        source=cfg.source,
        manifest=manifest,
        preprocess=preprocess,
        pixels=pixels,
        shapes=taken.shapes,
        pixel_digests=taken.pixel_digests,
        rejected=taken.rejected,
        num_ignored=source.num_ignored,
        seconds=time.perf_counter() - started,
    )
    report = data_report(facts)
    _write_json(folder / "report.json", report)
    (folder / "report.html").write_text(render_data_report(report, facts), encoding="utf-8")


def _write_meta(folder: Path, source: Source, cfg: DataConfig, manifest: Manifest, preprocess: Preprocess) -> None:
    """Write what a prepared set says about itself."""
    meta = {
        "name": source.name,
        "source": cfg.source,
        "fingerprint": source.fingerprint,
        "digest": manifest.digest,
        "content_digest": manifest.content_digest,
        "classes": list(manifest.classes),
        "preprocess": preprocess.to_dict(),
    }
    _write_json(folder / "meta.json", meta)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


# ---- the array -------------------------------------------------------------------------------------------------------


def _write_pixels(path: Path, spool_file: Path, shapes: Sequence[tuple[int, int, int]], plan: Plan, channels: int) -> Pixels:
    """Write the spooled images as one uint8 array [N,S,S,channels] and return it, memory-mapped."""
    side = plan.image_size
    pixels: Pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(shapes), side, side, channels))
    own_channels = [plan.channels or shape[2] for shape in shapes]
    with spool_file.open("rb") as spool:
        for start in range(0, len(shapes), CHUNK):
            for index, count in enumerate(own_channels[start : start + CHUNK], start):
                image = np.frombuffer(spool.read(side * side * count), np.uint8).reshape(side, side, count)
                pixels[index] = image  # grey repeats itself over three channels
    assert isinstance(pixels, np.memmap)
    pixels.flush()
    return pixels


def _mean_and_std(pixels: Pixels, indices: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of x / 255, from exact whole-number sums; std is at least 0.001."""
    total = np.zeros(pixels.shape[3], np.int64)
    total_squared = np.zeros(pixels.shape[3], np.int64)
    for start in range(0, len(indices), CHUNK):
        chunk = pixels[indices[start : start + CHUNK]]
        total += chunk.sum(axis=(0, 1, 2), dtype=np.int64)
        total_squared += np.square(chunk, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.int64)
    count = len(indices) * pixels.shape[1] * pixels.shape[2]
    mean = total / count
    variance = np.maximum(total_squared / count - mean**2, 0)
    return tuple((mean / 255).tolist()), tuple(np.maximum(np.sqrt(variance) / 255, 1e-3).tolist())
