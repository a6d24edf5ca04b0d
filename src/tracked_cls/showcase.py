"""The pictures of an evaluation: its numbers, and the images behind them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from tracked_cls import attribution, embedding, picks, plots
from tracked_cls.data.loaders import Split, preview, some
from tracked_cls.data.manifest import strata_of
from tracked_cls.data.sources import SPLITS
from tracked_cls.evaluation import EvalReport, MultiLabelScores
from tracked_cls.picks import Pick
from tracked_cls.plots import evaluation as drawn
from tracked_cls.plots.evaluation import Bar, Curve
from tracked_cls.plots.galleries import Tile, gallery
from tracked_cls.plots.style import cut
from tracked_cls.scores import Scores

_SHOWN = 12  # images of a gallery
_IN_PLANE, _BATCH = 600, 64
_MOST_CURVES, _WORST_CURVES, _AVERAGED = 10, 5, 200
_MOST_NAMED, _MOST_LETTERS, _IN_PAIR = 3, 40, 12
_NO_LABEL = "(no label)"


def write(network: nn.Module, split: Split, report: EvalReport, folder: Path) -> None:
    """Draw what there is to see (`draw`) into ``plots/`` of a folder, and say in ``tables/`` what each picture shows."""
    words = draw(network, split, report, folder / "plots")
    told = folder / "tables" / f"{_name(split)}_pictures.json"
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(words, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(network: nn.Module, split: Split, report: EvalReport, folder: Path) -> dict[str, str]:
    """Draw what there is to see of a report on a split; return file name -> what the picture shows, in words.

    Pictures that would be empty are left out: of mistakes where there are none, of curves with one class, and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    show = _Show(network, split, report)
    written = {}
    for name, make in _PICTURES.items():
        file = f"{show.name}_{name}.png"
        words = make(show, folder / file)
        if words is not None:
            written[file] = words
    return written


@dataclass(frozen=True, eq=False)
class _Show:
    """What all pictures are drawn from."""

    network: nn.Module
    split: Split
    report: EvalReport

    @property
    def name(self) -> str:
        """Name of the split."""
        return _name(self.split)

    @property
    def calibrated(self) -> Scores:
        """The scores whose probabilities are those that the model gives where it is used."""
        return self.report.scores.tempered(self.report.temperature)

    @property
    def several(self) -> bool:
        """Whether images have several labels."""
        return isinstance(self.report.scores, MultiLabelScores)

    @property
    def size(self) -> str:
        """How many images there are, in words."""
        return _count(len(self.report.scores.labels), "image")


def _name(split: Split) -> str:
    """Return the name of a split; its samples all have the same."""
    return SPLITS[int(split.prepared.manifest.splits[split.indices[0]])]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _confusion(show: _Show, path: Path) -> str | None:
    matrix, classes = show.report.confusion, show.report.classes
    if matrix is None:
        return None
    plots.confusion(matrix, classes, path)
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    times = int(wrong[true, predicted])
    often = f"most often {_short(classes[true])} was taken for {_short(classes[predicted])} ({_count(times, 'time')})"
    return f"Confusion matrix of {show.size}; {often if times else 'no mistakes'}"


def _reliability(show: _Show, path: Path) -> str:
    report = show.report
    before, after = report.reliability, report.reliability_calibrated
    drawn.reliability(before, after, report.temperature, path)
    mended = f", {after.ece:.4f} after temperature {report.temperature:.2f}" if report.temperature != 1 else ""
    return f"Confidence against the share of {show.size} that was right; expected calibration error {before.ece:.4f}{mended}"


def _ranking(show: _Show, path: Path) -> str | None:
    roc, precision_recall, note = _curves(show.report)
    if not roc:
        return None
    drawn.ranking(roc, precision_recall, note, path)
    worst = f"{_short(roc[-1].name)} ({roc[-1].area:.3f})"
    return f"ROC and precision-recall curves, {note}; the smallest area below ROC is that of {worst}"


def _per_class(show: _Show, path: Path) -> str | None:
    rows = [row for row in show.report.per_class if row["support"]]
    if not rows:
        return None
    bars = [Bar(str(row["class"]), float(row["f1"]), float(row["f1_low"]), float(row["f1_high"]), int(row["support"]))
            for row in rows]  # fmt: skip
    absent = len(show.report.per_class) - len(rows)
    some_of = f"the worst {drawn.MOST_ROWS} of {len(rows):,}" if len(rows) > drawn.MOST_ROWS else "95 % intervals"
    drawn.bars(bars, "F1 by class", some_of + (f"; {absent} without images" if absent else ""), "F1", path)
    worst, best = (end(bars, key=lambda bar: bar.value) for end in (min, max))
    num_classes = _count(len(rows), "class", "classes")
    return f"F1 of {num_classes}, from {worst.value:.3f} ({_short(worst.name)}) to {best.value:.3f} ({_short(best.name)})"


def _slices(show: _Show, path: Path) -> str | None:
    sizes = Counter(of.column for of in show.report.slices)
    rows = [Bar(of.value or "(empty)", of.accuracy.value, of.accuracy.low, of.accuracy.high, of.count, of.column)
            for of in show.report.slices if sizes[of.column] > 1]  # fmt: skip
    if not rows:
        return None
    overall = show.report.estimates["accuracy"].value
    some_of = f"the lowest {drawn.MOST_ROWS} of {len(rows):,}" if len(rows) > drawn.MOST_ROWS else "95 % intervals"
    drawn.forest(rows, overall, "accuracy by slice", f"{some_of}; line: all images, {overall:.3f}", "accuracy", path)
    worst = min(rows, key=lambda row: row.value)
    where = f"{_short(worst.group)} = {_short(worst.name)} ({_count(worst.count, 'image')})"
    return (
        f"Accuracy of {_count(len(rows), 'slice')}; the lowest is {worst.value:.3f} for {where}, against {overall:.3f} over all"
    )


def _curves(report: EvalReport) -> tuple[list[Curve], list[Curve], str]:
    """Return ROC curves, precision-recall curves, each the best first, and what they are of.

    Of up to 10 classes; of more the mean, and the worst 5. A class without images, or with all of them, has none.
    """
    areas = [(float(row["roc_auc"]), index) for index, row in enumerate(report.per_class)]
    known = [index for area, index in sorted(areas, reverse=True) if math.isfinite(area)]
    if len(known) <= _MOST_CURVES:
        return [_roc(report, index) for index in known], [_precision(report, index) for index in known], "one class against all"
    averaged = known[:: -(-len(known) // _AVERAGED)]
    note = f"mean of {len(averaged)} classes, and the {_WORST_CURVES} worst"
    kinds = [
        [_mean([make(report, index) for index in averaged]), *(make(report, index) for index in known[-_WORST_CURVES:])]
        for make in (_roc, _precision)
    ]
    return kinds[0], kinds[1], note


def _roc(report: EvalReport, index: int) -> Curve:
    from sklearn.metrics import roc_curve  # seconds of imports

    false, found, _ = roc_curve(report.scores.marks[:, index], report.scores.probabilities[:, index])
    return Curve(report.classes[index], float(report.per_class[index]["roc_auc"]), false, found)


def _precision(report: EvalReport, index: int) -> Curve:
    from sklearn.metrics import precision_recall_curve  # seconds of imports

    precision, recall, _ = precision_recall_curve(
        report.scores.marks[:, index], report.scores.probabilities[:, index], drop_intermediate=True
    )
    return Curve(report.classes[index], float(report.per_class[index]["average_precision"]), recall[::-1], precision[::-1])


def _mean(curves: Sequence[Curve]) -> Curve:
    grid = np.linspace(0, 1, 201)
    up = np.mean([np.interp(grid, curve.across, curve.up) for curve in curves], axis=0)
    return Curve("mean", float(np.mean([curve.area for curve in curves])), grid, up, is_mean=True)


# ---- images ----------------------------------------------------------------------------------------------------------


def _mistakes(show: _Show, path: Path) -> str | None:
    found = picks.mistakes(show.calibrated, _SHOWN)
    total = int((~show.report.scores.right).sum())
    note = f"{len(found)} of {total:,}, the surest first"
    return _gallery(show, found, "most confident mistakes", note, path)


def _unsure(show: _Show, path: Path) -> str | None:
    found = picks.unsure(show.calibrated, _SHOWN)
    return _gallery(show, found, "least certain", f"{len(found)} of {show.size}, the least certain first", path)


def _right(show: _Show, path: Path) -> str | None:
    found = picks.right(show.calibrated, _SHOWN)
    total = int(show.report.scores.right.sum())
    return _gallery(show, found, "right, and sure", f"{len(found)} of {total:,}, by class", path)


def _gallery(show: _Show, found: Sequence[Pick], title: str, note: str, path: Path) -> str | None:
    if not found:
        return None
    chosen = replace(show.split, indices=show.split.indices[[pick.row for pick in found]])
    pictures = preview(chosen, draws=0, seed=0)[:, 0]
    heats = _heats(show, chosen, found)
    tiles = [_tile(show, pick, picture, heat) for pick, picture, heat in zip(found, pictures, heats, strict=True)]
    looked = any(heat is not None for heat in heats)
    gallery(tiles, title, note, path)
    beside = "; beside each where the network looks (Grad-CAM)" if looked else ""
    first = ", ".join(f"{tile.first} {tile.second}" for tile in tiles[:_MOST_NAMED])
    return f"{title[0].upper()}{title[1:]}: {note}{beside}. {first}"


def _heats(show: _Show, chosen: Split, found: Sequence[Pick]) -> Sequence[npt.NDArray[np.float32] | None]:
    """Return where the network looks for the class in question, for each image; None where that is not known."""
    (batch,) = chosen.eval_batches(len(found))
    targets = np.array([pick.target for pick in found], np.int64)
    maps = attribution.heatmaps(show.network, batch.images[:: batch.views], targets)
    return [None] * len(found) if maps is None else list(maps)


def _tile(show: _Show, pick: Pick, picture: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32] | None) -> Tile:
    scores, classes = show.report.scores, show.report.classes
    is_mistake = not scores.right[pick.row]
    true = ", ".join(classes[label] for label in np.flatnonzero(scores.marks[pick.row])) or _NO_LABEL
    if not show.several:
        first = f"{cut(true, _IN_PAIR)} → {cut(classes[pick.target], _IN_PAIR)}" if is_mistake else true
        return Tile(picture, heat, first, f"{pick.probability:.2f}", is_mistake=is_mistake)
    has, said = bool(scores.marks[pick.row, pick.target]), bool(scores.said[pick.row, pick.target])
    verdict = "" if has == said else ", missed" if has else ", false"
    return Tile(picture, heat, true, f"{classes[pick.target]} {pick.probability:.2f}{verdict}", is_mistake=is_mistake)


def _plane(show: _Show, path: Path) -> str | None:
    sample = some(show.split, _IN_PLANE)
    found = embedding.features(show.network, sample.eval_batches(_BATCH))
    points = None if found is None else embedding.project(found)
    if points is None:
        return None
    rows = np.flatnonzero(np.isin(show.split.indices, sample.indices))
    scores, classes = show.report.scores, show.report.classes
    wrong, labels = ~scores.right[rows], strata_of(scores.labels)[rows]
    note = f"{_count(len(rows), 'image')} by t-SNE, of the layer before the last; ringed: {_count(int(wrong.sum()), 'mistake')}"
    drawn.plane(points, labels, wrong, (*classes, _NO_LABEL) if show.several else classes, note, path)
    return f"Plane in which images lie near each other that the network finds alike: {note}"


def _short(name: str) -> str:
    return cut(name, _MOST_LETTERS)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_PICTURES: dict[str, Callable[[_Show, Path], str | None]] = {
    "confusion": _confusion,
    "reliability": _reliability,
    "roc": _ranking,
    "per_class": _per_class,
    "slices": _slices,
    "mistakes": _mistakes,
    "unsure": _unsure,
    "right": _right,
    "embedding": _plane,
}
