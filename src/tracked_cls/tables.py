"""The tables that an evaluation leaves behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracked_cls.data.loaders import Split
from tracked_cls.evaluation import EvalReport

_RELIABILITY = ("low", "high", "count", "confidence", "accuracy", "count_calibrated", "confidence_calibrated",
                "accuracy_calibrated")  # fmt: skip
_SLICES = ("column", "value", "count", "accuracy", "accuracy_low", "accuracy_high")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_tables(report: EvalReport, folder: Path, split: str, images: Split | None = None, *, separator: str = "|") -> None:
    """Write all numbers of a report into a folder.

    With `images`, which were scored, there is also a table of what was said about each (`write_predictions`), where
    `separator` stands between several labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if report.confusion is not None:
        rows = [[name, *counts] for name, counts in zip(report.classes, report.confusion.tolist(), strict=True)]
        write_csv(folder / f"{split}_confusion.csv", ["true \\ predicted", *report.classes], rows)
    write_csv(folder / f"{split}_per_class.csv", list(report.per_class[0]), [list(row.values()) for row in report.per_class])
    write_csv(folder / f"{split}_reliability.csv", _RELIABILITY, _reliability_rows(report))
    if report.slices:
        slices = [[one.column, one.value, one.count, *astuple(one.accuracy)] for one in report.slices]
        write_csv(folder / f"{split}_slices.csv", _SLICES, slices)
    (folder / f"{split}_metrics.json").write_text(json.dumps(_numbers(report), indent=2) + "\n", encoding="utf-8")
    if images is not None:
        write_predictions(report, images, folder / f"{split}_predictions.parquet", separator=separator)


def _numbers(report: EvalReport) -> dict[str, dict[str, float | None]]:
    """Return name -> value, low and high; None, which JSON knows, for what is not defined."""
    return {
        name: {part: value if np.isfinite(value) else None for part, value in asdict(estimate).items()}
        for name, estimate in report.estimates.items()
    }


def _reliability_rows(report: EvalReport) -> list[list[object]]:
    before, after = report.reliability, report.reliability_calibrated
    parts = [(one.counts, one.confidence, one.accuracy) for one in (before, after)]
    columns = (before.edges[:-1], before.edges[1:], *parts[0], *parts[1])
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def write_predictions(report: EvalReport, images: Split, path: Path, *, separator: str = "|") -> None:
    """Write a Parquet file with a row per image: id, path, label, predicted, probability, right, and its logits.

    `probability` is that of the predicted class, before calibration. Where images have several labels these are joined, and
    there is neither a probability nor a verdict.
    """
    import pyarrow.parquet  # half a second to import, and only what writes tables needs it

    scores, manifest = report.scores, images.prepared.manifest
    assert len(scores.labels) == len(images), "the scores are of other images"
    chosen = images.indices.tolist()
    columns: dict[str, Any] = {
        "id": [manifest.ids[index] for index in chosen],
        "path": [manifest.paths[index] for index in chosen],
        "label": _names(scores.marks, report.classes, separator),
        "predicted": _names(scores.said, report.classes, separator),
    }
    if not manifest.multi_label:
        columns |= {"probability": scores.judged.confidence, "right": scores.right}
    logits = {f"logit:{name}": column for name, column in zip(report.classes, scores.logits.T, strict=True)}
    pyarrow.parquet.write_table(pyarrow.table(columns | logits), path)


def _names(marks: npt.NDArray[np.bool_], classes: Sequence[str], separator: str) -> list[str]:
    """Return the names that each row [N,K] marks, joined."""
    names = np.asarray(classes, object)
    return [separator.join(names[row]) for row in marks]
