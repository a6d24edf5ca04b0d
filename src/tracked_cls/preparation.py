"""`prepare` as a use case: a data set found or made, every image decoded once, in an MLflow run of its own."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracked_cls import inspection
from tracked_cls.assembly import CHANGED, REJECTED, build, limits
from tracked_cls.config import DataConfig, PrepareConfig, TrackingConfig, TransformsConfig, find_input, workspace
from tracked_cls.config.data import Place
from tracked_cls.console import say
from tracked_cls.data import cache, exchange
from tracked_cls.data.cache import Prepared
from tracked_cls.data.intake import altered_files
from tracked_cls.data.manifest import find_sample
from tracked_cls.data.names import printable
from tracked_cls.data.sources import SPLITS, Source, scan
from tracked_cls.data.splits import k_folds
from tracked_cls.errors import UserError
from tracked_cls.provenance import num_cores
from tracked_cls.tracking import Run, Tracker

_REPORTS = ("report.html", "report.json")
_SHOWN = 10  # rejected files named on the terminal


@dataclass(frozen=True)
class Preparation:
    """A prepared data set and whether it was made now; `url` shows its run.

    `picture` is the file that shows the image that was asked for, `exported` the folder written.
    """

    prepared: Prepared
    is_new: bool
    url: str
    picture: Path | None = None
    exported: Path | None = None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the search for cyclic garbage: a million small values that all stay cost it a quarter of the time, for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run(cfg: PrepareConfig, tracker: Tracker) -> Preparation:
    """Prepare the data in a run of their own; unchanged input is recognised, checked and left as it is."""
    return _run(cfg, scan_input(cfg.data, cfg.tracking), tracker)


@_uncollected()
def _run(cfg: PrepareConfig, source: Source, tracker: Tracker) -> Preparation:
    store, target = workspace(cfg.tracking) / cfg.data.store, _export_target(cfg, source)
    found = _find(cfg.data, store, source)
    if found is None:  # the list of classes is checked as it is made: before a run is opened
        say(f"prepare: {len(source.samples):,} images of {len(source.class_names)} classes in {source.name}")
    else:
        cache.verify_prepared(found.folder)
        if cfg.verify:
            _require_unaltered(found, source, cfg.data)
    for note in source.notes:
        say(f"  note: {note}")
    with tracker.begin("prepare", f"prepare {cfg.data.label}") as tracked:
        tracked.log_config(cfg)
        prepared = found or build(cfg.data, store, source, cfg.transforms)
        cache.set_current(prepared.folder)
        tracked.set_tags({"unchanged": str(found is not None).lower()})
        _log(tracked, prepared)
        picture = None if cfg.sample is None else _draw_sample(cfg, cfg.sample, prepared, source, tracked)
        if target is not None:
            exchange.export_folder(prepared, target)
    return Preparation(prepared, found is None, tracked.url, picture, target)


def _require_unaltered(prepared: Prepared, source: Source, data: DataConfig) -> None:
    """Raise `UserError` where source files are no longer what they were, though their sizes and times are."""
    manifest = prepared.manifest
    sha256_by_path = dict(zip(manifest.paths, manifest.sha256, strict=True))
    altered = altered_files(source, sha256_by_path, data.workers or num_cores(), limits(data))
    if altered:
        shown = "; ".join(f"{printable(path)}: {what}" for path, what in altered[:_SHOWN])
        raise UserError(
            f"{len(altered)} of {len(manifest)} files of {source.name} have changed since they were prepared, but not their "
            f"sizes and times: {shown}; restore them, or touch them and prepare again"
        )


def _draw_sample(cfg: PrepareConfig, wanted: str, prepared: Prepared, source: Source, tracked: Run) -> Path:
    """Draw the image that was asked for, beside the prepared set and into the run."""
    index = find_sample(prepared.manifest, wanted)
    path = prepared.folder.parent / "samples" / f"{prepared.manifest.ids[index]}.png"
    inspection.draw_sample(prepared, index, cfg.transforms, source, path)
    tracked.log_file(path, "plots")
    labels = prepared.manifest.names_of(index)
    split = SPLITS[int(prepared.manifest.splits[index])]
    say(f"  sample {index}: {prepared.manifest.paths[index]!r}, {', '.join(labels) or 'no label'}, in {split}, id {path.stem}")
    return path


def _export_target(cfg: PrepareConfig, source: Source) -> Path | None:
    """Return the folder to export to, once it is sure that the images can be written there."""
    if cfg.export is None:
        return None
    target = workspace(cfg.tracking) / cfg.export
    exchange.check_export(target, source.class_names, multi_label=source.multi_label, frames=cfg.data.frames)
    return target


def open_or_prepare(
    data: DataConfig,
    tracking: TrackingConfig,
    tracker: Tracker,
    source: Source | None = None,
    transforms: TransformsConfig | None = None,
) -> Prepared:
    """Return the prepared set of a configuration, prepared now, in a run beside, where it is not there.

    `source` is its input where that was scanned already, `transforms` what its report shows. With ``data.folds`` it is the
    view of one fold.
    """
    source = source or scan_input(data, tracking)
    found = find(data, workspace(tracking) / data.store, source)
    if found is not None:
        return found
    say(f"prepare: {data.label} is not prepared yet, or has changed")
    cfg = PrepareConfig(data=data, tracking=tracking, transforms=transforms or TransformsConfig())
    preparation = _run(cfg, source, tracker.beside())
    for line in lines(preparation):
        say(line)
    return folded(preparation.prepared, data)


def open_or_build(data: DataConfig, tracking: TrackingConfig, transforms: TransformsConfig) -> Prepared:
    """Return the prepared set of a configuration, prepared now where it is not there; no run tells of it."""
    source, store = scan_input(data, tracking), workspace(tracking) / data.store
    found = find(data, store, source)
    return found if found is not None else folded(build(data, store, source, transforms), data)


def lines(preparation: Preparation) -> list[str]:
    """Return what a person wants to know after a preparation."""
    prepared = preparation.prepared
    counts = ", ".join(f"{prepared.manifest.num_of(split):,} {split}" for split in SPLITS)
    made = "prepared" if preparation.is_new else "unchanged and sound, nothing to do"
    text = [
        f"prepare: {prepared.manifest.name}: {made}: {len(prepared.manifest):,} images ({counts}), "
        f"{len(prepared.manifest.classes)} classes, digest {prepared.manifest.digest}",
        f"  run:    {preparation.url}",
        f"  report: {prepared.folder / 'report.html'}",
    ]
    text += [] if preparation.picture is None else [f"  sample: {preparation.picture}"]
    text += [] if preparation.exported is None else [f"  export: {preparation.exported}"]
    report = json.loads((prepared.folder / "report.json").read_text(encoding="utf-8"))
    if preparation.is_new and report["reused"]:
        text.append(f"  decoded {report['decoded']:,}; {report['reused']:,} unchanged since the last preparation")
    return text + _lines_of_rejected(report["rejected"])


def _lines_of_rejected(rejected: Sequence[dict[str, str]]) -> list[str]:
    if not rejected:
        return []
    shown = [f"    {item['path']}: {item['code']}, {item['reason']}" for item in rejected[:_SHOWN]]
    return [f"  {len(rejected)} files were left out; the report lists all of them:", *shown]


def _log(tracked: Run, prepared: Prepared) -> None:
    report = json.loads((prepared.folder / "report.json").read_text(encoding="utf-8"))
    tracked.log_dataset(prepared, SPLITS)
    tracked.log_metrics({name: report[name] for name in ("num_images", "num_rejected", "num_classes", "balance")})
    tracked.log_metrics({f"num_{split}": prepared.manifest.num_of(split) for split in SPLITS})
    for name in _REPORTS:
        tracked.log_file(prepared.folder / name)
    for name in (REJECTED, CHANGED):
        if (prepared.folder / name).is_file():
            tracked.log_file(prepared.folder / name, "tables")


# ---- the input -------------------------------------------------------------------------------------------------------


@_uncollected()
def scan_input(data: DataConfig, tracking: TrackingConfig) -> Source:
    """List the input of a configuration: its folders and tables are looked for, then scanned."""
    root, table = _locate(data, data.source, "data", data, tracking)
    others: dict[str, Path | None] = {}
    changes: dict[str, Any] = {"table": table}
    for split in ("val", "test"):
        place = getattr(data, split)
        if place.source is not None:
            others[split], table = _locate(place, place.source, f"data.{split}", data, tracking)
            changes[split] = place.model_copy(update={"table": table})
    located = data.model_copy(update=changes)
    return scan(located, root, others)


def _locate(place: Place, source: str, key: str, data: DataConfig, tracking: TrackingConfig) -> tuple[Path | None, str | None]:
    """Return where a place's root and its table are; a table may be given relative to the root."""
    given: dict[str, str | None] = {name: getattr(place, name) for name in ("root", "table")}
    if source == "torchvision":  # may be empty still: it is downloaded into
        return workspace(tracking) / (given["root"] or Path(data.store) / "downloads"), None
    root = find_input(given["root"], tracking, f"{key}.root") if given["root"] else None
    if given["table"] is None:
        return root, None
    beside = root / given["table"] if root else None
    return root, str(beside if beside and beside.exists() else find_input(given["table"], tracking, f"{key}.table"))


# ---- what is there already -------------------------------------------------------------------------------------------


def find(data: DataConfig, store: Path, source: Source) -> Prepared | None:
    """Return the prepared set of an unchanged input, by the input's fingerprint; nothing is decoded.

    With ``data.folds`` it is the view of one fold: all folds share one prepared folder.
    """
    found = _find(data, store, source)
    return None if found is None else folded(found, data)


def _find(data: DataConfig, store: Path, source: Source) -> Prepared | None:
    folder = cache.find_prepared(store, data, source.fingerprint)
    return None if folder is None else cache.open_prepared(folder)


def folded(prepared: Prepared, data: DataConfig) -> Prepared:
    """Return the view of one fold where ``data.folds`` is set, else the set as it is."""
    if data.folds is None:
        return prepared
    apart = data.duplicates == "allow"
    manifest = k_folds(prepared.manifest, data.folds, data.fold or 0, data.split_seed, copies_apart=apart)
    return replace(prepared, manifest=manifest)
