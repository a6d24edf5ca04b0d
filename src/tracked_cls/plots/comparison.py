"""Pictures of several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.style import GREY, MAIN, MANY, WIDTH, cut, dress, save
from tracked_cls.statistics.intervals import Estimate

_STYLES = ("-", "--", ":")
_LONGEST_LABEL = 44

History = Mapping[str, Mapping[int, float]]


@lettering()
def overlaid_curves(histories: Mapping[str, History], metrics: Sequence[str], path: Path) -> None:
    """Draw metrics by epoch, one panel each, with one line for each run that has them; `histories` is by the run's label."""
    figure = Figure(figsize=(WIDTH, 2.6 * len(metrics) + 0.3 + 0.2 * len(histories)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(metrics), 1, squeeze=False).flat, metrics, strict=True):
        for place, history in enumerate(histories.values()):
            if history.get(metric):
                _line(axes, history[metric], place)
        dress(axes, metric)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.axes[-1].set_xlabel("epoch", fontsize=9.5)
    lines = [figure.axes[0].plot([], [], **_look(place))[0] for place in range(len(histories))]
    words = [cut(label, _LONGEST_LABEL) for label in histories]
    figure.legend(lines, words, loc="outside lower left", frameon=False, fontsize=9)
    save(figure, path)


@lettering()
def forest(differences: Mapping[str, Estimate], reference: str, path: Path) -> None:
    """Draw each difference of accuracy to the reference, in percentage points, as a point with its interval."""
    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * len(differences)), layout="constrained")
    axes = figure.subplots()
    values = 100 * np.array([(found.value, found.low, found.high) for found in differences.values()])
    for place, (label, (value, low, high)) in enumerate(zip(differences, values, strict=True)):
        colour = MAIN if low > 0 or high < 0 else GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=colour, markersize=7)
        axes.text(
            0.0, place - 0.28, cut(label, _LONGEST_LABEL), fontsize=9, parse_math=False, transform=axes.get_yaxis_transform()
        )
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    reach = 1.12 * max(float(np.nanmax(np.abs(values))), 0.05)
    axes.set(xlim=(-reach, reach), ylim=(len(values) - 0.6, -0.7), yticks=[])
    dress(axes, f"accuracy against {cut(reference, _LONGEST_LABEL)}", x="percentage points; left: worse, right: better")
    axes.spines["left"].set_visible(False)
    save(figure, path)


def _line(axes: Axes, history: Mapping[int, float], place: int) -> None:
    steps = sorted(history)
    marker = "." if len(steps) < 30 else ""
    axes.plot(steps, [history[step] for step in steps], marker=marker, **_look(place))


def _look(place: int) -> dict[str, Any]:
    """Return the colour and the stroke of a run's lines."""
    return {"color": MANY[place % len(MANY)], "linestyle": _STYLES[place // len(MANY) % len(_STYLES)]}
