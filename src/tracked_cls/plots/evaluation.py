"""Pictures of an evaluation: calibration, ranking, classes, slices, and the plane in which images lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import StrMethodFormatter

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.style import GREY, INK, MAIN, MANY, MARKED, PALE, QUIET, WIDTH, cut, dress, save
from tracked_cls.statistics.calibration import Reliability

MOST_ROWS, _MOST_LETTERS = 40, 20
_MOST_NAMES = 20  # classes written into the plane


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a ROC or precision-recall picture: values [P] across and up, in [0, 1], and the area below it."""

    name: str
    area: float
    across: npt.NDArray[np.float64]
    up: npt.NDArray[np.float64]
    is_mean: bool = False


@dataclass(frozen=True)
class Bar:
    """A number in [0, 1] with its interval (nan where there is none), of so many images; `group` is what it belongs to."""

    name: str
    value: float
    low: float
    high: float
    count: int
    group: str = ""


@lettering()
def reliability(before: Reliability, after: Reliability, temperature: float, path: Path) -> None:
    """Draw how often statements of some confidence were right, before and after the temperature, and how many there were."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    shares, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    shares.plot([0, 1], [0, 1], color=PALE, linestyle="--", linewidth=1, label="perfect")
    fitted = temperature != 1
    kinds = [(before, QUIET if fitted else MAIN, "as the network says")]
    kinds += [(after, MAIN, f"after temperature {temperature:.2f}")] if fitted else []
    for found, colour, name in kinds:
        some = found.counts > 0
        points, sizes = (found.confidence[some], found.accuracy[some]), 10 + 90 * found.counts[some] / found.counts.max()
        shares.plot(*points, color=colour, linewidth=1.2, label=f"{name}: ECE {found.ece:.4f}")
        shares.scatter(*points, s=sizes, color=colour, linewidths=0, clip_on=False, zorder=3)
        counts.stairs(found.counts, found.edges, color=colour, fill=found is kinds[-1][0], alpha=0.9 if found is after else 1)
    shares.set(xlim=(0, 1), ylim=(0, 1.02))
    shares.legend(frameon=False, fontsize=9)
    dress(shares, "calibration", "below the dashed line: too sure; larger dots: more images", "", "share that was right")
    dress(counts, "", "", "confidence", "how many")
    counts.set_yscale("symlog", linthresh=1)
    counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    save(figure, path)


@lettering()
def ranking(roc: Sequence[Curve], precision_recall: Sequence[Curve], note: str, path: Path) -> None:
    """Draw ROC curves and precision-recall curves, as near to their corner as the worst of them lies."""
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    above, below = figure.subplots(2, 1)
    reach = _ranked(above, roc)
    above.set(xlim=(-0.01 * reach, reach), ylim=(1 - reach, 1 + 0.01 * reach))
    dress(above, "ROC", note, "false positives: share of all other images", "share found of the class")
    reach = _ranked(below, precision_recall)
    below.set(xlim=(1 - reach, 1 + 0.01 * reach), ylim=(1 - reach, 1 + 0.01 * reach))
    dress(below, "precision and recall", "", "recall: share found of the class", "precision")
    save(figure, path)


@lettering()
def bars(rows: Sequence[Bar], title: str, note: str, across: str, path: Path) -> None:
    """Draw a bar from 0 for each row, with its interval, the worst on top; of more than 40 the worst."""
    shown = sorted(rows, key=lambda row: row.value)[:MOST_ROWS]
    axes = _panel(shown)
    axes.barh(range(len(shown)), [row.value for row in shown], color=MAIN, alpha=0.3, height=0.7)
    _intervals(axes, shown)
    dress(axes, title, note, across)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    save(_figure(axes), path)


@lettering()
def forest(rows: Sequence[Bar], overall: float, title: str, note: str, across: str, path: Path) -> None:
    """Draw each row as a dot with its interval, below the name of its group, beside a line at the value of all.

    Of more than 40 rows those whose interval ends lowest.
    """
    worst = sorted(rows, key=lambda row: row.value if math.isnan(row.high) else row.high)[:MOST_ROWS]
    lines: list[Bar | str] = []
    for group, members in groupby((row for row in rows if row in worst), key=lambda row: row.group):
        lines += [group, *members]
    axes = _panel(lines)
    axes.axvline(overall, color=MARKED, linewidth=1.2, zorder=1)
    _intervals(axes, lines)
    dress(axes, title, note, across)
    axes.grid(visible=False, axis="y")
    lowest = min(row.value if math.isnan(row.low) else row.low for row in worst)
    axes.set_xlim(max(-0.01, min(lowest, overall) - 0.05), 1.01)
    save(_figure(axes), path)


@lettering()
def plane(
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    wrong: npt.NDArray[np.bool_],
    classes: Sequence[str],
    note: str,
    path: Path,
) -> None:
    """Draw points [N,2] in the colours of their labels [N], those that are `wrong` [N] ringed; up to 20 classes are named."""
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    axes = figure.subplots()
    colours = _colours(len(classes))
    axes.scatter(points[:, 0], points[:, 1], c=colours[labels], s=14, linewidths=0, alpha=0.75)
    axes.scatter(points[wrong, 0], points[wrong, 1], s=40, facecolors="none", edgecolors=INK, linewidths=1.1)
    present = np.unique(labels)
    for label in present if len(present) <= _MOST_NAMES else ():
        middle = np.median(points[labels == label], axis=0)
        halo = [withStroke(linewidth=3, foreground="white")]
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5, "fontweight": "bold", "parse_math": False}
        name = cut(classes[label], _MOST_LETTERS)
        axes.annotate(name, middle, (0, 8), textcoords="offset points", color=colours[label], path_effects=halo, **style)
    dress(axes, "images as the network groups them", "", note)
    axes.tick_params(length=0, labelleft=False, labelbottom=False)
    axes.grid(visible=False)
    axes.set_aspect("equal", adjustable="datalim")
    save(figure, path)


# ---- parts of the pictures -------------------------------------------------------------------------------------------


def _ranked(axes: Axes, curves: Sequence[Curve]) -> float:
    """Draw curves with their areas beside them; return how much of the unit square to show, from the ideal corner."""
    for index, curve in enumerate(curves):
        style: dict[str, Any] = (
            {"color": INK, "linewidth": 2.2} if curve.is_mean else {"color": MANY[index % len(MANY)], "linewidth": 1.3}
        )
        axes.plot(curve.across, curve.up, label=f"{curve.area:.3f}  {cut(curve.name, _MOST_LETTERS)}", **style)
    legend = axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5), title="area")
    legend.get_title().set_fontsize(8.5)
    for text in legend.get_texts():
        text.set_parse_math(False)
    missing = 1 - min(curve.area for curve in curves)
    return next((reach for reach in (0.05, 0.2) if missing < reach / 10), 1.0)


def _panel(lines: Sequence[Bar | str]) -> Axes:
    """Return axes with a line for each row, the first on top: its name on the left, its number of images on the right."""
    figure = Figure(figsize=(WIDTH, 1.0 + 0.26 * len(lines)), layout="constrained")
    axes = figure.subplots()
    names = [line if isinstance(line, str) else line.name for line in lines]
    axes.set_yticks(range(len(lines)), [cut(name, _MOST_LETTERS) for name in names], parse_math=False)
    for place, (line, tick) in enumerate(zip(lines, axes.get_yticklabels(), strict=True)):
        if isinstance(line, str):
            tick.set_fontweight("bold")
        else:
            words = f"{line.value:.3f}  of {line.count:,}"
            axes.annotate(words, (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=GREY)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    return axes


def _intervals(axes: Axes, lines: Sequence[Bar | str]) -> None:
    for place, row in enumerate(lines):
        if not isinstance(row, str):
            axes.plot([row.low, row.high], [place, place], color=MAIN, linewidth=1.6, solid_capstyle="round", zorder=2)
            axes.plot([row.value], [place], "o", color=MAIN, markersize=4.5, zorder=3, clip_on=False)


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _colours(count: int) -> npt.NDArray[np.float64]:
    """Return a colour for each class [K,4]: those told apart best, as long as there are enough of them."""
    return to_rgba_array(MANY) if count <= len(MANY) else colormaps["turbo"](np.linspace(0.04, 0.96, count))
