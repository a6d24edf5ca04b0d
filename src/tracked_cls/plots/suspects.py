"""Pictures of k-fold training: how the folds went, and the labels that it puts in doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracked_cls.plots.results import dress_epochs
from tracked_cls.plots.style import MAIN, MARKED, QUIET, show

_COLUMNS = 8


def fold_curves(histories: Sequence[Mapping[str, Sequence[float]]], best_epochs: Sequence[int], path: Path) -> None:
    """Draw val_loss and val_accuracy by epoch: a line for each fold, a ring at its best epoch, and their mean.

    `histories` maps, for each fold, metric name to its values for epochs 1, 2, ...; the mean ends with the shortest of them.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("val_loss", "val_accuracy"), strict=True):
        _fold_lines(axes, [history[name] for history in histories], best_epochs)
        dress_epochs(axes, name, f"{len(histories)} folds and their mean")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def suspect_grid(pictures: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], path: Path) -> None:
    """Draw images uint8 [H,W,C], the most suspect first, each below its title: given label and what the models say."""
    rows = -(-len(pictures) // _COLUMNS)
    figure = Figure(figsize=(1.5 * _COLUMNS, 1.9 * rows))  # a layout engine takes seconds for so many axes
    grid = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 1 - 0.2 / rows, "hspace": 0.35, "wspace": 0.1}
    for axes in figure.subplots(rows, _COLUMNS, squeeze=False, gridspec_kw=grid).flat:
        axes.set_axis_off()
    for axes, picture, title in zip(figure.axes, pictures, titles, strict=False):
        show(axes, picture)
        axes.set_title(title, fontsize=8, parse_math=False)  # class names are the user's: $ is no formula
    figure.savefig(path, dpi=110)


def _fold_lines(axes: Axes, series: Sequence[Sequence[float]], best_epochs: Sequence[int]) -> None:
    for values, best in zip(series, best_epochs, strict=True):
        axes.plot(range(1, len(values) + 1), values, color=QUIET, linewidth=1, alpha=0.7)
        if best <= len(values):
            axes.plot([best], [values[best - 1]], "o", color=MARKED, markersize=6, fillstyle="none")
    shared = min(map(len, series))
    mean = np.mean([values[:shared] for values in series], axis=0)
    axes.plot(range(1, shared + 1), mean, color=MAIN, linewidth=2, marker=".", label="mean")
    axes.plot([], [], "o", color=MARKED, fillstyle="none", label="best epoch of a fold")
