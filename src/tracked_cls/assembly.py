"""From a source to a prepared folder: every image decoded once, split, measured, cached and reported."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tracked_cls import failpoints, inspection
from tracked_cls.config import DataConfig, TransformsConfig
from tracked_cls.console import say
from tracked_cls.data import cache, copies, intake, reuse
from tracked_cls.data.cache import Prepared
from tracked_cls.data.decoders import Limits
from tracked_cls.data.ingest import Plan, Sums
from tracked_cls.data.intake import Intake
from tracked_cls.data.likeness import Likeness, near_copies
from tracked_cls.data.manifest import Labels, Manifest, Splits, make_manifest, save_manifest
from tracked_cls.data.preprocess import Preprocess
from tracked_cls.data.sources import Source
from tracked_cls.data.splits import Listing, assign_splits
from tracked_cls.data.storage import open_store
from tracked_cls.errors import UserError
from tracked_cls.provenance import num_cores
from tracked_cls.report.data import DataFacts, data_report, render_data_report

REJECTED, CHANGED = "rejected.csv", "changed.csv"
_MANY_FILES = 10_000  # decoding so many once more takes a minute
_TOO_SMALL = 16  # pixels: below, images of different things are as alike as copies


def build(data: DataConfig, store: Path, source: Source, transforms: TransformsConfig | None = None) -> Prepared:
    """Make the prepared set of a source below `store`; images that the data's latest set holds are not decoded again.

    The report shows what `transforms` make of some images.

    Raises `UserError` for what the user's data or options make impossible; nothing half-made is left then.
    """
    started = time.perf_counter()
    folder = cache.prepared_folder(store, data.label, cache.prepared_key(data, source.fingerprint))
    with cache.staging(folder) as partial:
        _write(partial, source, data, transforms, earlier=cache.current(store, data.label), started=started)
    return cache.open_prepared(folder)


def _write(
    folder: Path, source: Source, cfg: DataConfig, transforms: TransformsConfig | None, *, earlier: Path | None, started: float
) -> None:
    """Write everything but COMPLETE."""
    plan = _plan(cfg, source)
    known = reuse.known_outcomes(earlier, source, plan)
    store = open_store(folder, plan)
    workers = cfg.workers or num_cores()
    taken = intake.take_in(source, plan, workers=workers, keep=store.add, known=known, limits=limits(cfg))
    intake.check_classes_left(taken, source)
    listing = _listing(taken, source, cfg)
    left_out = copies.settle(listing, cfg.duplicates)
    channels = plan.channels or max(shape[2] for shape in taken.shapes)
    store.finish(taken.shapes, channels)
    if left_out:
        taken = copies.withdraw(taken, left_out, folder)
        intake.check_classes_left(taken, source)
        listing = _listing(taken, source, cfg)
    splits = assign_splits(listing, cfg)
    mean, std = _mean_and_std([taken.sums[index] for index in np.flatnonzero(splits == 0)], plan, channels)
    preprocess = Preprocess(plan.geometry(channels), mean, std, frames=plan.frames)
    manifest = _manifest(source, taken, listing, splits, preprocess)
    failpoints.reach("prepare.before_manifest")
    save_manifest(manifest, folder)
    reuse.write_ledger(folder, source, copies.lasting(taken.outcomes))
    _write_meta(folder, source, cfg, manifest, preprocess, plan)
    _write_table(folder / REJECTED, ["path", "code", "reason", "action"], [(*entry, "left out") for entry in taken.rejected])
    _write_table(folder / CHANGED, ["path", "change"], taken.changes)
    report, facts = _report(folder, source, cfg, taken, num_reused=len(known), started=started)
    _write_json(folder / "report.json", report)
    shown = inspection.augmented(cache.open_partial(folder), transforms) if transforms and transforms.train else None
    (folder / "report.html").write_text(render_data_report(report, facts, shown), encoding="utf-8")


def _plan(cfg: DataConfig, source: Source) -> Plan:
    """Return what is done to every image; what is left to us is decided by some images' headers."""
    look = intake.first_look(source, limits(cfg))
    side = cfg.image_size or look.side
    size_bytes = len(source.samples) * side**2 * (cfg.channels or look.channels) * (cfg.frames or 1)
    form = _form(cfg, size_bytes)
    return Plan(side, cfg.channels, cfg.fit, cfg.interpolation, cfg.max_pixels, cfg.frames, form, cfg.min_side)


def limits(cfg: DataConfig) -> Limits:
    """Return what opening a file may cost."""
    return Limits(cfg.decode_seconds, cfg.decode_memory_bytes)


def _form(cfg: DataConfig, size_bytes: int) -> Literal["pixels", "files"]:
    """Return what the cache keeps; `size_bytes` is what all pixels take."""
    is_large = size_bytes > cfg.cache_limit_bytes
    if cfg.frames and cfg.cache == "files":
        raise UserError("data.cache=files does not go with data.frames: clips are kept as pixels; set data.cache=auto")
    if cfg.frames and cfg.cache == "auto" and is_large:
        raise UserError(
            f"the clips take {size_bytes:,} bytes, more than data.cache_limit_bytes ({cfg.cache_limit_bytes:,}); "
            "raise it, or lower data.frames or data.image_size"
        )
    if cfg.cache != "auto":
        return cfg.cache
    return "files" if is_large else "pixels"


def _listing(taken: Intake, source: Source, cfg: DataConfig) -> Listing:
    return Listing(
        labels=_labels(taken, source),
        given=[sample.split for sample in taken.samples],
        classes=source.class_names,
        paths=[sample.path for sample in taken.samples],
        contents=taken.pixel_digests,
        groups=[sample.group or "" for sample in taken.samples],
        copies_apart=cfg.duplicates == "allow",
    )


def _manifest(source: Source, taken: Intake, listing: Listing, splits: Splits, preprocess: Preprocess) -> Manifest:
    frames = {} if preprocess.frames is None else {"frames": preprocess.frames}  # absent: single images keep their digest
    return make_manifest(
        source.name,
        source.class_names,
        labels=listing.labels,
        splits=splits,
        paths=listing.paths,
        sha256=taken.sha256,
        pixel_digests=taken.pixel_digests,
        geometry=asdict(preprocess.geometry) | frames,
        weights=[sample.weight for sample in taken.samples],
        groups=listing.groups,
    )


def _labels(taken: Intake, source: Source) -> Labels:
    """Return int64 [N], or uint8 [N,K] of 0 and 1 where an image has any number of labels."""
    number_by_name = {name: number for number, name in enumerate(source.class_names)}
    numbers = [[number_by_name[name] for name in sample.labels] for sample in taken.samples]
    if not source.multi_label:
        return np.array([number for (number,) in numbers], np.int64)
    labels = np.zeros((len(numbers), len(number_by_name)), np.uint8)
    for row, own in zip(labels, numbers, strict=True):
        row[own] = 1
    return labels


def _mean_and_std(sums: Sequence[Sums], plan: Plan, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of x / 255, from exact whole-number sums; std is at least 0.001."""
    per_image = np.array([own * (channels // len(own)) for own in sums], np.int64)  # [N,C,2]; grey repeats itself
    total, total_squared = per_image[:, :, 0].sum(axis=0), per_image[:, :, 1].sum(axis=0)
    count = len(sums) * plan.image_size**2 * (plan.frames or 1)
    mean = total / count
    variance = np.maximum(total_squared / count - mean**2, 0)
    return tuple((mean / 255).tolist()), tuple(np.maximum(np.sqrt(variance) / 255, 1e-3).tolist())


# ---- what a prepared set says about itself ---------------------------------------------------------------------------


def _write_meta(folder: Path, source: Source, cfg: DataConfig, manifest: Manifest, preprocess: Preprocess, plan: Plan) -> None:
    meta = {
        "name": source.name,
        "source": cfg.source,
        "fingerprint": source.fingerprint,
        "digest": manifest.digest,
        "content_digest": manifest.content_digest,
        "classes": list(manifest.classes),
        "preprocess": preprocess.to_dict(),
        "terms": reuse.terms(plan),
    }
    _write_json(folder / "meta.json", meta)


def _report(
    folder: Path, source: Source, cfg: DataConfig, taken: Intake, *, num_reused: int, started: float
) -> tuple[dict[str, Any], DataFacts]:
    prepared = cache.open_partial(folder)
    facts = DataFacts(
        source=cfg.source,
        manifest=prepared.manifest,
        preprocess=prepared.preprocess,
        images=prepared.sized,
        shapes=taken.shapes,
        pixel_digests=taken.pixel_digests,
        rejected=taken.rejected,
        num_ignored=source.num_ignored,
        notes=source.notes,
        changed=taken.changed(),
        likeness=_likeness(prepared, cfg, taken.shapes),
        seconds=time.perf_counter() - started,
    )
    report = data_report(facts) | {"decoded": len(source.samples) - num_reused, "reused": num_reused}
    _warn(report["near_duplicates"])
    return report, facts


def _likeness(prepared: Prepared, cfg: DataConfig, shapes: Sequence[tuple[int, int, int]]) -> Likeness | str:
    """Return which held-out images are near copies of others, or why nothing was looked for."""
    if cfg.near_duplicates == "off":
        return "data.near_duplicates=off"
    if np.median([min(height, width) for height, width, _ in shapes]) < _TOO_SMALL:
        return f"images below {_TOO_SMALL} pixels hold too little to tell copies from look-alikes"
    if cfg.near_duplicates == "auto" and prepared.files is not None and len(shapes) > _MANY_FILES:
        return f"more than {_MANY_FILES:,} files would be decoded a second time; data.near_duplicates=report does so"
    return near_copies(prepared.sized, np.asarray(prepared.manifest.splits))


def _warn(near: Mapping[str, Any]) -> None:
    if near["count"]:
        first, second = near["pairs"][0]["paths"]
        say(
            f"  W_NEAR_LEAK: {near['count']:,} of {near['compared']:,} images of val and test look like copies of images in "
            f"other splits, e.g. {first} and {second}; report.html shows them"
        )


def _write_table(path: Path, header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Write a table of what happened to files, if something did."""
    if not rows:
        return
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        table.writerows(rows)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
