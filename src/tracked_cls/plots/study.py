"""Pictures of a study: how its trials went, and what they brought."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.style import GREY, MAIN, MARKED, PALE, QUIET, dress

_FAILED = "#b42318"
_COLOURS = {
    "complete": MAIN, "pruned": PALE, "failed": _FAILED, "killed": "#8250df", "running": "#2da44e", "waiting": "#d0d7de",
}  # fmt: skip
_MOST_CURVES, _MOST_NAMED = 100, 12


@dataclass(frozen=True)
class Objective:
    """What trials are compared by."""

    name: str
    maximize: bool


@dataclass(frozen=True)
class Parameter:
    """A searched option, as trials and as readers know it: a range of numbers, or a number of choices."""

    name: str
    label: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """One trial. `values` are by objective, `params` numbers (a choice: its place), `reports` values by epoch.

    `span` is from when to when it ran, in seconds since the study began; None: it never did.
    """

    number: int
    state: str
    values: tuple[float, ...] = ()
    feasible: bool = True
    params: Mapping[str, float] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Search:
    """A study as its pictures know it; `best` has the number of its best trial, or those of its Pareto front."""

    marks: Sequence[Mark]
    objectives: Sequence[Objective]
    parameters: Sequence[Parameter]
    best: frozenset[int]

    @property
    def complete(self) -> list[Mark]:
        """Trials that went to their end."""
        return [mark for mark in self.marks if mark.state == "complete"]


# ---- how it went -----------------------------------------------------------------------------------------------------


@lettering()
def history(search: Search, path: Path) -> None:
    """Draw the value of every trial by its number, and the best so far; one panel for each objective."""
    figure = Figure(figsize=(9, 0.6 + 3.4 * len(search.objectives)), layout="constrained")
    panels = figure.subplots(len(search.objectives), 1, squeeze=False).flat
    for index, (axes, objective) in enumerate(zip(panels, search.objectives, strict=True)):
        limits = _limits(search, index, with_pruned=True)
        _values_by_number(axes, search, index, limits)
        _failures(axes, search)
        some = "; triangles: beyond the edge" if _is_cut(search, index, limits) else ""
        dress(axes, "history" if index == 0 else "", _direction(objective) + some, "trial number", objective.name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _set_limits(axes, limits, "y", log=index > 0 and _is_wide(limits))
    _legend(figure, panels[0])
    figure.savefig(path, dpi=110)


@lettering()
def intermediate_values(search: Search, path: Path) -> None:
    """Draw the value by epoch: a line for each of the last 100 trials and the best."""
    figure, objective = Figure(figsize=(9, 4.6), layout="constrained"), search.objectives[0]
    axes = figure.subplots()
    reported = [mark for mark in search.marks if mark.reports]
    shown = [mark for mark in reported[:-_MOST_CURVES] if mark.number in search.best] + reported[-_MOST_CURVES:]
    for mark in sorted(shown, key=lambda mark: (mark.number in search.best, mark.state != "pruned")):
        _curve(axes, mark, is_best=mark.number in search.best, alpha=0.8 if len(shown) < 20 else 0.45)
    some = f"the last {_MOST_CURVES} and the best of {len(reported)} trials; " if len(reported) > _MOST_CURVES else ""
    dress(axes, "intermediate values", some + _direction(objective), "epoch", f"{objective.name} of the best epoch so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    values = [value for mark in shown for value in mark.reports.values()]
    _set_limits(axes, _robust(values, maximize=objective.maximize), "y", log=False)
    _legend(figure, axes)
    figure.savefig(path, dpi=110)


@lettering()
def timeline(search: Search, path: Path) -> None:
    """Draw when each trial ran, the first on top; long times in which none did are cut short."""
    spans = {mark.number: mark.span for mark in search.marks if mark.span is not None}
    breaks = _breaks(list(spans.values()))
    shortened = {number: (_shortened(begin, breaks), _shortened(end, breaks)) for number, (begin, end) in spans.items()}
    whole = max(end for _, end in shortened.values()) - min(begin for begin, _ in shortened.values())
    unit, seconds = _unit(whole)
    figure = Figure(figsize=(9, min(2.2 + 0.11 * len(spans), 9)), layout="constrained")
    axes = figure.subplots()
    _bars(axes, search, shortened, seconds, least=0.004 * whole)
    _draw_breaks(axes, breaks, seconds)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    note = "long idle times are cut short" if breaks else ""
    dress(axes, "timeline", note, f"{unit} since the study began", "trial number")
    _legend(figure, axes)
    figure.savefig(path, dpi=110)


@lettering()
def pareto_front(search: Search, path: Path) -> None:
    """Draw the first objective over the second, and those trials that no other beats in both."""
    figure, (metric, cost) = Figure(figsize=(8, 5), layout="constrained"), search.objectives
    axes = figure.subplots()
    limits, across = _limits(search, 0), _limits(search, 1)
    front = sorted((mark for mark in search.complete if mark.number in search.best), key=lambda mark: mark.values[1])
    _cloud(axes, [mark for mark in search.complete if mark.number not in search.best], lambda mark: mark.values[1], 0, limits)
    points = [(mark.values[1], min(max(mark.values[0], limits[0]), limits[1])) for mark in front]
    if points:
        axes.step(*np.transpose(points), where="post", color=MARKED, marker="o", zorder=3, label="Pareto front")
    for mark, point in list(zip(front, points, strict=True))[:_MOST_NAMED]:
        place: dict[str, Any] = {"xytext": (-6, 7 if metric.maximize else -14), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"trial {mark.number}", point, fontsize=8, color=MARKED, zorder=4, **place)
    corner = "upper" if metric.maximize else "lower"
    dress(axes, "Pareto front", f"better: towards the {corner} left", cost.name, metric.name)
    _set_limits(axes, limits, "y", log=False)
    _set_limits(axes, across, "x", log=_is_wide(across), room=0.12)
    _legend(figure, axes)
    figure.savefig(path, dpi=110)


# ---- parts of the pictures -------------------------------------------------------------------------------------------


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=8.5)


def _direction(objective: Objective) -> str:
    return "higher is better" if objective.maximize else "lower is better"


def _values_by_number(axes: Axes, search: Search, index: int, limits: tuple[float, float]) -> None:
    pruned = [mark for mark in search.marks if mark.state == "pruned" and len(mark.values) > index]
    style: dict[str, Any] = {"color": PALE, "marker": "x", "s": 22, "label": "pruned: when it ended"}
    _scatter(axes, [mark.number for mark in pruned], [mark.values[index] for mark in pruned], limits, **style)
    _cloud(axes, search.complete, lambda mark: mark.number, index, limits)
    done = [mark for mark in search.complete if mark.feasible]
    gain = np.maximum if search.objectives[index].maximize else np.minimum
    so_far = gain.accumulate([mark.values[index] for mark in done] or [0.0])[: len(done)]
    numbers = [mark.number for mark in done]
    axes.step(numbers, np.clip(so_far, *limits), where="post", color=MARKED, linewidth=1.4, label="best so far")
    best = [mark for mark in done if mark.number in search.best]
    label = "Pareto front"
    if len(search.objectives) == 1 and best:
        label = f"best: trial {best[0].number}, {_short(best[0].values[0])}"
    rings: dict[str, Any] = {"s": 90, "facecolors": "none", "edgecolors": MARKED, "linewidths": 1.6, "zorder": 4}
    _scatter(axes, [mark.number for mark in best], [mark.values[index] for mark in best], limits, label=label, **rings)


def _cloud(axes: Axes, marks: Sequence[Mark], x: Callable[[Mark], float], index: int, limits: tuple[float, float]) -> None:
    """Draw complete trials: full within the limits that were set for them, hollow beyond."""
    good, over = [mark for mark in marks if mark.feasible], [mark for mark in marks if not mark.feasible]
    _scatter(axes, list(map(x, good)), [mark.values[index] for mark in good], limits, color=MAIN, s=22, label="complete")
    hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": QUIET, "s": 22, "label": "complete, over a limit"}
    _scatter(axes, list(map(x, over)), [mark.values[index] for mark in over], limits, **hollow)


def _scatter(
    axes: Axes,
    xs: Sequence[float],
    ys: Sequence[float],
    limits: tuple[float, float],
    fills: Sequence[object] | None = None,
    **style: Any,
) -> None:
    """Draw points, each in its own colour where `fills` has them; those beyond the limits are triangles on the edge."""
    low, high = limits
    sides = [-1 if y < low else 1 if y > high else 0 for y in ys]
    for side, marker in ((0, style.pop("marker", "o")), (-1, "v"), (1, "^")):
        chosen = [index for index, of in enumerate(sides) if of == side]
        if chosen:
            own = {} if fills is None else {"facecolors": [fills[index] for index in chosen]}
            heights = [min(max(ys[index], low), high) for index in chosen]
            axes.scatter([xs[index] for index in chosen], heights, marker=marker, **({"zorder": 3} | style | own))
            style["label"] = None  # once in the legend


def _failures(axes: Axes, search: Search) -> None:
    """Mark trials that failed or were lost at the lower edge: they have no value."""
    for state in ("failed", "killed"):
        numbers = [mark.number for mark in search.marks if mark.state == state]
        if numbers:
            edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 3}
            axes.plot(
                numbers, [0.0] * len(numbers), "|", color=_COLOURS[state], markersize=11, markeredgewidth=2, label=state, **edge
            )


def _curve(axes: Axes, mark: Mark, *, is_best: bool, alpha: float) -> None:
    epochs = sorted(mark.reports)
    label = f"best: trial {mark.number}" if is_best else mark.state
    known = axes.get_legend_handles_labels()[1]
    axes.plot(
        epochs,
        [mark.reports[epoch] for epoch in epochs],
        color=MARKED if is_best else _COLOURS[mark.state],
        linewidth=2.2 if is_best else 1,
        alpha=alpha if mark.state == "complete" and not is_best else 1,
        marker="." if is_best or (mark.state == "complete" and len(epochs) == 1) else None,
        label=None if label in known else label,
    )
    if not is_best and mark.state in ("pruned", "failed", "killed"):
        axes.plot([epochs[-1]], [mark.reports[epochs[-1]]], "x", color=_COLOURS[mark.state], markersize=5)


def _limits(search: Search, index: int, *, with_pruned: bool = False) -> tuple[float, float]:
    """Return what to show of an objective: of the first one not how far the worst trials went off."""
    marks = search.marks if with_pruned else search.complete
    values = [mark.values[index] for mark in marks if len(mark.values) > index]
    if index == 0:
        return _robust(values, maximize=search.objectives[0].maximize)
    return min(values, default=0.0), max(values, default=1.0)


def _is_cut(search: Search, index: int, limits: tuple[float, float]) -> bool:
    return any(not limits[0] <= mark.values[index] <= limits[1] for mark in search.marks if len(mark.values) > index)


def _robust(values: Sequence[float], *, maximize: bool) -> tuple[float, float]:
    """Return the best value and the worst one worth showing: as far from the median as four times the way to the best.

    One trial that diverged to a loss of 1e6 would else press all others into a line.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high, median = min(finite), max(finite), float(np.median(finite))
    reach = 4 * ((high - median) if maximize else (median - low))
    if reach == 0:
        return low, high
    return (max(low, median - reach), high) if maximize else (low, min(high, median + reach))


def _set_limits(axes: Axes, limits: tuple[float, float], side: Literal["x", "y"], *, log: bool, room: float = 0.06) -> None:
    """Set the ends of an axis, with room around them: a share of its length."""
    low, high = limits
    if log:
        factor = (high / low) ** room if high > low else 2.0
        ends, scale = (low / factor, high * factor), "log"
    else:
        step = room * (high - low) or room * abs(high) or 0.5
        ends, scale = (low - step, high + step), "linear"
    axis = axes.xaxis if side == "x" else axes.yaxis
    axes.set(**{f"{side}scale": scale, f"{side}lim": ends})
    if max(map(abs, limits)) >= 10_000:
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axis.set_minor_formatter(NullFormatter())


def _is_wide(limits: tuple[float, float]) -> bool:
    """Return whether numbers span more than a factor of 20."""
    return limits[0] > 0 and limits[1] > 20 * limits[0]


def _short(value: float) -> str:
    """Write a number in few letters: 0.9532, 1e-5, 11.2M."""
    if abs(value) >= 10_000:
        return EngFormatter(places=None if value == round(value, -5) else 1, sep="")(value)
    text = f"{value:.0e}" if 0 < abs(value) < 0.001 and f"{value:.0e}" == f"{value:.1e}".replace(".0", "") else f"{value:.4g}"
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e")


def _bars(axes: Axes, search: Search, spans: Mapping[int, tuple[float, float]], seconds: float, *, least: float) -> None:
    """Draw a bar for each trial, by its number, with one colour for each state; `least` is the shortest that shows."""
    for state, colour in _COLOURS.items():
        numbers = [mark.number for mark in search.marks if mark.state == state and mark.number in spans]
        if numbers:
            begins = [spans[number][0] / seconds for number in numbers]
            widths = [max(spans[number][1] - spans[number][0], least) / seconds for number in numbers]
            axes.barh(numbers, widths, left=begins, height=0.8, color=colour, label=f"{state} ({len(numbers)})")


def _breaks(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the long times in which nothing ran, as (when each ends, seconds to leave out of it).

    Long is more than a quarter of all the time in which something ran; a night between two sessions would else be all one sees.
    """
    gaps, busy, covered = [], 0.0, -math.inf
    for start, end in sorted(spans):
        if covered < start and math.isfinite(covered):
            gaps.append((start, start - covered))
        busy += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return [(until, length - 0.03 * busy) for until, length in gaps if length > 0.25 * busy > 0]


def _shortened(moment: float, breaks: Sequence[tuple[float, float]]) -> float:
    return moment - sum(left_out for until, left_out in breaks if moment >= until)


def _draw_breaks(axes: Axes, breaks: Sequence[tuple[float, float]], seconds: float) -> None:
    for until, left_out in breaks:
        place = _shortened(until, breaks) / seconds
        axes.axvline(place, color=GREY, linewidth=1, linestyle=":", zorder=0)
        unit, per = _unit(left_out)
        words: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 7.5, "color": GREY}
        axes.annotate(f"{left_out / per:.0f} {unit} idle", (place, 0.02), xycoords=axes.get_xaxis_transform(), **words)


def _unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which a time has few digits, and how many seconds it has."""
    for name, length in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return name, length
    return "seconds", 1.0
