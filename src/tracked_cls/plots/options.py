"""Pictures of the options that a study searched: what each is worth, alone and with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.study import Mark, Parameter, Search, _is_wide, _limits, _scatter, _set_limits, _short
from tracked_cls.plots.style import GREY, LINE, MAIN, MARKED, QUIET, cut, dress, save

_COLUMNS, _MOST_AXES, _MOST_PANELS, _MOST_BARS, _MOST_CHOICES, _MOST_LETTERS = 4, 18, 24, 24, 12, 16
_MOST_LINES = 100
_UNUSED = -0.14  # the height, on axes from 0 to 1, of the lane of those trials that have no use for an option
_DARKENING = LinearSegmentedColormap.from_list("darkening", colormaps["Blues"](np.linspace(0.3, 1, 64)))


@dataclass(frozen=True)
class _Scale:
    """One axis of the parallel coordinates."""

    parameter: Parameter
    value: Callable[[Mark], float | None]
    is_result: bool = False


@lettering()
def importances(shares: Mapping[str, float], num_complete: int, metric: str, path: Path) -> None:
    """Draw the share, 0 to 1, that each option has in how the metric varies."""
    largest = sorted(shares.items(), key=lambda item: item[1])[-_MOST_BARS:]
    figure = Figure(figsize=(8, 1.3 + 0.3 * len(largest)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(largest)), [100 * share for _, share in largest], color=MAIN)
    axes.bar_label(bars, [f"{100 * share:.0f}%" for _, share in largest], padding=3, fontsize=8.5)
    axes.set_yticks(range(len(largest)), [name for name, _ in largest], parse_math=False)
    axes.margins(x=0.1)
    dress(axes, f"importance for {metric}", f"from {num_complete} complete trials", "share in %", "")
    axes.grid(visible=False, axis="y")
    figure.savefig(path, dpi=110)


@lettering()
def slices(search: Search, path: Path) -> None:
    """Draw the value over each option alone, one panel each; trials are the darker the later they came."""
    parameters = _most_used(search, _MOST_PANELS)
    columns = min(len(parameters), _COLUMNS)
    lines = -(-len(parameters) // columns)
    figure = Figure(figsize=(2.7 * columns + 1, 2.5 * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    numbers = [mark.number for mark in search.complete]
    colours = ScalarMappable(Normalize(min(numbers), max(max(numbers), min(numbers) + 1)), _DARKENING)
    limits = _limits(search, 0)
    for axes in grid.flat[len(parameters) :]:
        axes.set_axis_off()
    for axes, parameter in zip(grid.flat, parameters, strict=False):
        _slice(axes, search, parameter, colours, limits)
    for axes in grid[:, 0]:
        axes.set_ylabel(search.objectives[0].name, fontsize=9)
    for axes in grid[:, 1:].flat:
        axes.tick_params(labelleft=False)  # all panels have one scale
    figure.suptitle(f"{len(numbers)} complete trials, option by option", x=0.01, ha="left", fontsize=11, fontweight="bold")
    bar = figure.colorbar(colours, ax=grid, shrink=1 / lines, anchor=(0, 1), aspect=18, ticks=MaxNLocator(5, integer=True))
    bar.set_label("trial number", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    save(figure, path)


@lettering()
def parallel_coordinate(search: Search, path: Path) -> None:
    """Draw the best 100 complete trials, each as a line through its options to its value; the darker, the better."""
    parameters = _most_used(search, _MOST_AXES)
    figure = Figure(figsize=(1.5 + 0.98 * (len(parameters) + len(search.objectives)), 5.6), layout="constrained")
    axes = figure.subplots()
    scales = [_result_scale(search, index) for index in reversed(range(len(search.objectives)))]
    scales = [*map(_parameter_scale, parameters), *scales]
    goodness = _goodness(search)
    for mark in sorted(search.complete, key=lambda mark: (mark.number in search.best, goodness(mark)))[-_MOST_LINES:]:
        is_best = mark.number in search.best
        colour = MARKED if is_best else _DARKENING(goodness(mark))
        heights = [_height(scale, mark) for scale in scales]
        axes.plot(range(len(scales)), heights, color=colour, linewidth=2 if is_best else 1.1, alpha=1 if is_best else 0.65)
    for position, scale in enumerate(scales):
        _axis(axes, position, scale)
    _frame_lanes(axes, scales, search)
    save(figure, path)


# ---- parts of the pictures -------------------------------------------------------------------------------------------


def _slice(axes: Axes, search: Search, parameter: Parameter, colours: ScalarMappable, limits: tuple[float, float]) -> None:
    marks = [mark for mark in search.complete if parameter.name in mark.params]
    hollow = {"facecolors": "none", "edgecolors": QUIET, "s": 18}
    _row(axes, [mark for mark in marks if not mark.feasible], parameter, limits, None, hollow)
    for chosen, style in ((False, {"s": 24}), (True, {"s": 52, "edgecolors": MARKED, "linewidths": 1.8, "zorder": 4})):
        these = [mark for mark in marks if mark.feasible and (mark.number in search.best) == chosen]
        _row(axes, these, parameter, limits, list(colours.to_rgba(np.array([mark.number for mark in these]))), style)
    dress(axes, "", "", "", "")
    axes.set_xlabel(parameter.label, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8)
    _set_limits(axes, limits, "y", log=False)
    _set_parameter_axis(axes, parameter)


def _row(
    axes: Axes,
    marks: Sequence[Mark],
    parameter: Parameter,
    limits: tuple[float, float],
    fills: Sequence[object] | None,
    style: Mapping[str, Any],
) -> None:
    xs = [mark.params[parameter.name] + (_nudge(mark, 0.3) if parameter.choices else 0) for mark in marks]
    _scatter(axes, xs, [mark.values[0] for mark in marks], limits, fills, **style)


def _set_parameter_axis(axes: Axes, parameter: Parameter) -> None:
    if not parameter.choices:
        _set_limits(axes, (parameter.low, parameter.high), "x", log=parameter.log)
        axes.xaxis.set_minor_locator(NullLocator())  # ticks are what takes the time
        if not parameter.log:
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=parameter.whole))
        return
    count = len(parameter.choices)
    places = _some(count)
    axes.set_xlim(-0.6, count - 0.4)
    tilted = sum(len(cut(parameter.choices[place], _MOST_LETTERS)) for place in places) > 18
    turn: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
    axes.set_xticks(places, [cut(parameter.choices[place], _MOST_LETTERS) for place in places], parse_math=False, **turn)


def _some(count: int) -> list[int]:
    """Return the places of at most 12 choices, spread evenly over all."""
    return list(range(0, count, -(-count // _MOST_CHOICES)))


def _nudge(mark: Mark, reach: float) -> float:
    """Return a shift of -reach to reach, another for each trial, so that those of one choice do not hide each other."""
    return reach * (2 * (mark.number * 0.6180339887 % 1) - 1)


def _most_used(search: Search, most: int) -> list[Parameter]:
    """Return the options, in their order, that the most complete trials have a value of."""
    uses = {item.name: sum(item.name in mark.params for mark in search.complete) for item in search.parameters}
    used = sorted((item for item in search.parameters if uses[item.name]), key=lambda item: -uses[item.name])[:most]
    return [item for item in search.parameters if item in used]


def _goodness(search: Search) -> Callable[[Mark], float]:
    """Return how good a trial is, by the first objective: from 0, the worst that is shown, to 1."""
    low, high = _limits(search, 0)

    def goodness(mark: Mark) -> float:
        share = (min(max(mark.values[0], low), high) - low) / (high - low) if high > low else 1.0
        return share if search.objectives[0].maximize else 1 - share

    return goodness


def _result_scale(search: Search, index: int) -> _Scale:
    low, high = _limits(search, index)
    log = index > 0 and _is_wide((low, high))
    name = search.objectives[index].name
    parameter = Parameter(name, name, low, high, log)
    return _Scale(parameter, lambda mark: min(max(mark.values[index], low), high), is_result=True)


def _parameter_scale(parameter: Parameter) -> _Scale:
    return _Scale(parameter, lambda mark: mark.params.get(parameter.name))


def _height(scale: _Scale, mark: Mark) -> float:
    """Return where a trial crosses an axis: 0 to 1, or in the lane of those that have no use for the option."""
    value = scale.value(mark)
    if value is None:
        return _UNUSED + _nudge(mark, 0.025)
    count = len(scale.parameter.choices)
    return _share(scale.parameter, value) + (_nudge(mark, 0.25 / count) if count else 0)


def _share(parameter: Parameter, value: float) -> float:
    if parameter.choices:
        return (value + 0.5) / len(parameter.choices)
    low, high = parameter.low, parameter.high
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Return heights on an axis from 0 to 1, and what is written there."""
    if parameter.choices:
        places = _some(len(parameter.choices))
        return [(_share(parameter, place), cut(parameter.choices[place], _MOST_LETTERS)) for place in places]
    values: Iterable[float] = (parameter.low, parameter.high)
    if parameter.log:
        decades = range(math.ceil(math.log10(parameter.low) - 1e-9), math.floor(math.log10(parameter.high) + 1e-9) + 1)
        values = [10.0**power for power in decades] if len(decades) > 1 else values
    elif parameter.high > parameter.low:
        inner = MaxNLocator(5, integer=parameter.whole).tick_values(parameter.low, parameter.high)
        values = [value for value in inner if parameter.low <= value <= parameter.high]
    return [(_share(parameter, value), _short(value)) for value in sorted(set(values))]


def _axis(axes: Axes, place: int, scale: _Scale) -> None:
    colour = MARKED if scale.is_result else LINE
    axes.plot([place, place], [0, 1], color=colour, linewidth=1.2, zorder=4)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for height, text in _ticks(scale.parameter):
        axes.plot([place, place + 0.04], [height, height], color=colour, linewidth=1.2, zorder=4)
        style: dict[str, Any] = {"fontsize": 7.5, "va": "center", "zorder": 5, "path_effects": halo, "parse_math": False}
        axes.text(place + 0.06, height, text, **style)


def _frame_lanes(axes: Axes, scales: Sequence[_Scale], search: Search) -> None:
    names = [scale.parameter.label for scale in scales]
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor", fontsize=8.5, parse_math=False)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(names) - 0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)
    unused = any(scale.value(mark) is None for scale in scales for mark in search.complete)
    axes.set_ylim(_UNUSED - 0.06 if unused else -0.04, 1.04)
    if unused:
        axes.axhspan(_UNUSED - 0.045, _UNUSED + 0.045, color="#eef1f4", zorder=0, linewidth=0)
        axes.set_yticks([_UNUSED], ["not used"], fontsize=8.5, color=GREY)
        axes.tick_params(axis="y", length=0)
    axes.set_title("parallel coordinates", loc="left", fontweight="bold")
    note = f"darker is better; orange: the {'best' if len(search.objectives) == 1 else 'Pareto front'}"
    count = len(search.complete)
    some = f"the best {_MOST_LINES} of {count}" if count > _MOST_LINES else str(count)
    axes.set_title(f"{some} complete trials; {note}", loc="right", fontsize=8, color=GREY)
