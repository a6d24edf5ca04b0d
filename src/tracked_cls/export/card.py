"""The model card: what a model does, how well, on what, and what is not known, as Markdown beside the files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracked_cls.data.preprocess import Preprocess
from tracked_cls.export.agreement import Comparison
from tracked_cls.export.evidence import Evidence
from tracked_cls.export.formats import FILE_BY_FORMAT
from tracked_cls.export.markdown import Markdown, code, escaped, fill
from tracked_cls.provenance import environment
from tracked_cls.report.artifacts import Row, RunFacts, read_estimates, read_mapping, read_rows, scored_split, tried
from tracked_cls.report.numbers import METRIC_WORDS, decimals, interval, percent, short
from tracked_cls.report.page import NO_VALUE
from tracked_cls.serving.classifier import temperature_of
from tracked_cls.statistics.intervals import Estimate

_TEMPLATE = "model_card.md"
_MOST_CLASSES, _MOST_SLICES = 60, 40
_FITS = {
    "crop": "its middle square, resized",
    "pad": "its longer side resized, the rest black",
    "stretch": "stretched",
}
_LINEAGE = {
    "git.commit": "Code, commit",
    "git.dirty": "Code, changed since",
    "prepare.run": "Data prepared by run",
    "replays": "Repeats run",
}
_UNSET = ("", "none", "auto", "off")

Rows = list[tuple[str, str]]


def render(exact: str, meta: Mapping[str, Any], known: Evidence, comparison: Comparison, sizes: Mapping[str, int]) -> str:
    """Return the card of an exact model (``models:/...``), whose files have these sizes in bytes.

    What is not known is said to be so, and nothing is made up.
    """
    troubles: list[str] = []
    return fill(
        _TEMPLATE,
        title=_title(meta, known),
        task=_task(meta),
        summary=_summary(exact, meta, known),
        input=_input(meta),
        classes=_classes(meta["classes"]),
        data=_data(meta, known),
        **tried(lambda: _results(known.run), _nothing, troubles),
        calibration=_calibration(meta, known),
        limits=_limits(meta, known),
        num_images=f"{comparison.num_images:,}",
        files=_files(comparison, sizes),
        lineage=_lineage(meta, known),
        command=_command(meta) if known.run else "",
        versions=tried(lambda: _versions(known.run), lambda: [("python", NO_VALUE)], troubles),
        notes=[*known.notes, *troubles],
    )


# ---- what it is ------------------------------------------------------------------------------------------------------


def _title(meta: Mapping[str, Any], known: Evidence) -> Markdown:
    if known.version is None:
        return Markdown(f"Model card: {escaped(str(meta['data']['name']))} classifier, not registered")
    aliases = f" ({', '.join(known.aliases)})" if known.aliases else ""
    return Markdown(f"Model card: {escaped(known.version.name)}, version {known.version.number}{aliases}")


def _task(meta: Mapping[str, Any]) -> Markdown:
    count, what = len(meta["classes"]), "a clip" if meta["preprocess"].get("frames") else "an image"
    if meta.get("multi_label"):
        return Markdown(f"Says of {what} which of {count:,} labels it has: any number of them, each with its own probability.")
    return Markdown(f"Says of {what} which of {count:,} classes it belongs to, with a probability for each of them.")


def _summary(exact: str, meta: Mapping[str, Any], known: Evidence) -> Rows:
    name, digest = meta["architecture"]["model"]["name"], meta["weights_digest"]
    rows: Rows = [("Address when exported", code(exact)), ("Network", code(name)), ("Weights digest", code(digest))]
    metrics = known.run.metrics if known.run else {}
    return rows + ([("Parameters", f"{metrics['num_parameters']:,.0f}")] if "num_parameters" in metrics else [])


def _input(meta: Mapping[str, Any]) -> list[Markdown]:
    preprocess = Preprocess.from_dict(meta["preprocess"])
    geometry, frames = preprocess.geometry, preprocess.frames
    colours = "grey" if geometry.channels == 1 else "red, green, blue"
    axes = f"batch, {'' if frames is None else f'{frames} frames, '}channels, height, width"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (preprocess.mean, preprocess.std))
    lines = [
        f"{geometry.image_size} x {geometry.image_size} pixels, {geometry.channels} channels ({colours}).",
        f"An image of another size is fitted: {_FITS[geometry.fit]}, {geometry.interpolation}, antialiased where it shrinks.",
        f"Levels 0 to 255 become (x / 255 - mean) / std, with mean {mean} and std {std} of the channels.",
        f"The files take such numbers, float32 ({axes}), and give a logit for each class; predict and serve take images.",
    ]
    return [Markdown(line) for line in lines]


def _classes(names: Sequence[str]) -> Markdown:
    shown = ", ".join(escaped(name) for name in names[:_MOST_CLASSES])
    rest = f" and {len(names) - _MOST_CLASSES:,} more, in meta.json" if len(names) > _MOST_CLASSES else ""
    return Markdown(f"In the order of the logits: {shown}{rest}.")


def _data(meta: Mapping[str, Any], known: Evidence) -> Rows:
    data = meta["data"]
    rows: Rows = [
        ("Name", str(data["name"])),
        ("Digest of images, labels and splits", code(data["digest"])),
        ("Digest of pixels and class names", code(data["content_digest"])),
    ]
    rows += [(f"Images of {split}", f"{count:,}") for split, count in known.num_images.items()]
    return [*rows, ("Origin and licence of the images", "not recorded")]


# ---- how good it is --------------------------------------------------------------------------------------------------


def _nothing() -> dict[str, Any]:
    return {"accuracy": "", "metrics": [], "split": "", "per_class": [], "per_class_note": "", "slices": []}


def _results(run: RunFacts | None) -> dict[str, Any]:
    """Return the numbers that the run's own evaluation left."""
    split = scored_split(run) if run else None
    if run is None or split is None:
        return _nothing()
    tables = run.folder / "tables"
    found = read_estimates(tables / f"{split}_metrics.json")
    rows, note = _per_class(_rows(tables / f"{split}_per_class.csv", ["class", "precision", "recall", "f1", "support"]))
    return {
        "accuracy": _accuracy(found, split),
        "metrics": [(_words(name), Markdown(short(one.value)), Markdown(interval(one))) for name, one in found.items()],
        "split": split,
        "per_class": rows,
        "per_class_note": note,
        "slices": _slices(_rows(tables / f"{split}_slices.csv", ["column", "value", "count", "accuracy"])),
    }


def _words(metric: str) -> str:
    return Markdown(METRIC_WORDS[metric]) if metric in METRIC_WORDS else metric


def _rows(path: Path, columns: Sequence[str]) -> list[Row]:
    return read_rows(path, columns) if path.is_file() else []


def _accuracy(found: Mapping[str, Estimate], split: str) -> Markdown | str:
    one = found.get("accuracy")
    if one is None or math.isnan(one.value):
        return ""
    between = f" (95 %: {percent(one.low)} to {percent(one.high)})" if math.isfinite(one.low) else ""
    return Markdown(f"**{percent(one.value)} of the {split} images are labelled right{between}.**")


def _per_class(rows: Sequence[Row]) -> tuple[list[list[str]], str]:
    """Return a line per class, those of lowest F1 where there are many, and a word on what was left out."""
    shown = sorted(rows, key=_f1)[:_MOST_CLASSES] if len(rows) > _MOST_CLASSES else rows
    names = ("precision", "recall", "f1")
    lines = [[row["class"], *(_with_bounds(row, name) for name in names), row["support"]] for row in shown]
    return lines, f"The {len(shown)} classes of lowest F1 of {len(rows):,}" if len(shown) < len(rows) else ""


def _f1(row: Row) -> float:
    """Return what classes are ordered by; one that has no images comes last."""
    try:
        value = float(row["f1"])
    except ValueError:
        return math.inf
    return math.inf if math.isnan(value) else value


def _with_bounds(row: Row, name: str) -> Markdown:
    value, low, high = (decimals(row.get(key, "")) for key in (name, f"{name}_low", f"{name}_high"))
    return Markdown(value if NO_VALUE in (low, high) else f"{value} ({low} to {high})")


def _slices(rows: Sequence[Row]) -> list[list[str]]:
    shown = rows[:_MOST_SLICES]
    return [[row["column"], row["value"] or "(empty)", row["count"], _with_bounds(row, "accuracy")] for row in shown]


def _calibration(meta: Mapping[str, Any], known: Evidence) -> Markdown:
    temperature, metrics = temperature_of(meta), known.run.metrics if known.run else {}
    fitted = "temperature" in metrics
    how = "fitted on the validation images alone" if fitted else "none was fitted" if temperature == 1 else "as in meta.json"
    text = f"Logits are divided by the temperature {temperature:.4g} ({how}) before they become probabilities."
    before, after = (metrics.get(f"test_{name}") for name in ("ece", "ece_calibrated"))
    if before is not None and after is not None:
        text += f" Expected calibration error on the test images: {before:.4f} before, {after:.4f} after."
    return Markdown(text)


# ---- what it is good for, and what not ---------------------------------------------------------------------------------


def _limits(meta: Mapping[str, Any], known: Evidence) -> list[Markdown]:
    """Return what follows from how the model was made; what somebody would have to know, and did not say, is named."""
    lines = ["Intended use: not written down by whoever trained it; add it here before the model is given away."]
    if not meta.get("multi_label"):
        lines.append("It answers with one of its classes for every image, also for one that shows none of them.")
    lines += [
        "Its numbers are those of images like the ones it was trained on, drawn from one data set. For images of another "
        "origin (camera, light, country, time) they are not known: evaluate it on such images first (`-e evaluate`).",
        "Its probabilities were calibrated on such images too, and may be too sure of others.",
        _on_groups(known),
        "Robustness against images made to mislead it was not measured.",
    ]
    start = known.run.params.get("model.weights", "") if known.run else ""
    if start not in _UNSET:
        lines.append(f"Training began from the weights {code(start)}: their licence, and what they were trained on, apply.")
    return [Markdown(line) for line in [*lines, "Licence: not recorded."]]


def _on_groups(known: Evidence) -> str:
    if known.run is not None and any(known.run.folder.glob("tables/*_slices.csv")):
        return "How well it does on parts of the data is shown above, as far as the data name such parts; on no others."
    return "Whether it does worse for some groups of images, or of people, was not looked at."


# ---- files, and where they come from -----------------------------------------------------------------------------------


def _files(comparison: Comparison, sizes: Mapping[str, int]) -> list[list[str]]:
    found = {FILE_BY_FORMAT[one.format]: (f"{one.logits:.1e}", f"{one.probability:.1e}") for one in comparison.formats}
    none = (NO_VALUE, NO_VALUE)
    return [[code(name), f"{size:,}", *map(Markdown, found.get(name, none))] for name, size in sizes.items()]


def _lineage(meta: Mapping[str, Any], known: Evidence) -> Rows:
    tags = known.run.tags if known.run else {}
    rows: Rows = [("Run", code(meta["run_id"]))]
    rows += [(words, code(tags[tag])) for tag, words in _LINEAGE.items() if tags.get(tag)]
    if known.version is None:
        return [*rows, ("Registry", "not registered")]
    said = known.version.tags
    verdict = ", ".join(said[key] for key in ("promotion.verdict", "promotion.reason") if said.get(key))
    return [*rows, ("Registry", code(known.version.uri)), ("Verdict of the gate", verdict or "none")]


def _command(meta: Mapping[str, Any]) -> Markdown:
    run_id = re.sub(r"[^0-9a-f]", "", str(meta["run_id"]))
    return Markdown(f"mlflow run . -e train --env-manager local -P from_run={run_id}")


def _versions(run: RunFacts | None) -> Rows:
    """Return the versions that the model was trained with, else those that it was exported with."""
    path = run.folder / "environment.json" if run else None
    found = read_mapping(path) if path and path.is_file() else environment()
    packages = found.get("packages")
    rows: Rows = [("python", str(found.get("python", NO_VALUE)))]
    return rows + [(str(name), str(value)) for name, value in (packages.items() if isinstance(packages, dict) else ())]
