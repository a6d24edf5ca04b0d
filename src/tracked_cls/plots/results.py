"""Pictures of results and of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.style import GREY, INK, MAIN, MARKED, QUIET, cut, dress, save, show

_MAX_WRITTEN_CLASSES, _MOST_LETTERS = 30, 22


def curves(history: Mapping[str, Sequence[float]], best_epoch: int, path: Path) -> None:
    """Draw loss, accuracy and learning rate by epoch; `history` maps metric name to its values for epochs 1, 2, ..."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    _lines(loss, history, "loss", best_epoch)
    _lines(accuracy, history, "accuracy", best_epoch)
    epochs = range(1, len(history["lr"]) + 1)
    rate.plot(epochs, history["lr"], color=MAIN, marker=".")
    dress_epochs(rate, "learning rate", "at the last batch of the epoch")
    figure.savefig(path, dpi=110, bbox_inches="tight")


@lettering()
def confusion(matrix: npt.NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix [true, predicted], coloured by the share of each true class."""
    are_named = len(classes) <= _MAX_WRITTEN_CLASSES
    names = [cut(name, _MOST_LETTERS) for name in classes] if are_named else []
    longest = max(map(len, names), default=0)
    side = min(2.8 + 0.36 * len(classes) + 0.07 * longest, 12) if are_named else 8
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if are_named:
        turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if longest > 3 else {}
        axes.set_xticks(range(len(names)), names, parse_math=False, **turn)  # class names are the user's: $ is no formula
        axes.set_yticks(range(len(names)), names, parse_math=False)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if share[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    save(figure, path)


@lettering()
def sample(original: npt.NDArray[np.uint8] | None, row: npt.NDArray[np.uint8], title: str, path: Path) -> None:
    """Draw one image uint8 [H,W,C] as it came (if it is known), then `row` uint8 [1+draws,S,S,C]: plain and its draws."""
    came = [] if original is None else [(original, f"as it came, {original.shape[1]} x {original.shape[0]}")]
    plain = (row[0], f"as the model sees it, {row.shape[2]} x {row.shape[1]}")
    pictures = [*came, plain, *((picture, f"epoch {epoch}") for epoch, picture in enumerate(row[1:], 1))]
    columns = min(len(pictures), 6)
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(2 * columns, 2.2 * lines + 0.5), layout="constrained")
    figure.suptitle(title.encode("utf-8", "backslashreplace").decode(), fontsize=10, parse_math=False)
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (picture, name) in zip(figure.axes, pictures, strict=False):
        show(axes, picture)
        axes.set_title(name, fontsize=8, color=GREY if name.startswith("epoch") else MARKED)
    figure.savefig(path, dpi=110)


def gallery(pictures: npt.NDArray[np.uint8], path: Path) -> None:
    """Draw uint8 [N,1+draws,S,S,C]: one row per image, plain first, then its augmentations epoch by epoch."""
    rows, columns = pictures.shape[:2]
    figure = Figure(figsize=(1.1 * columns + 0.3, 1.1 * rows + 0.5), layout="constrained")
    for (row, column), axes in np.ndenumerate(figure.subplots(rows, columns, squeeze=False)):
        show(axes, pictures[row, column])
        axes.set_axis_off()
        if row == 0:
            axes.set_title(f"epoch {column}" if column else "plain", fontsize=9, color=MARKED if column == 0 else GREY)
    figure.savefig(path, dpi=110)


def _lines(axes: Axes, history: Mapping[str, Sequence[float]], kind: str, best_epoch: int) -> None:
    for split, colour in (("train", QUIET), ("val", MAIN)):
        values = history[f"{split}_{kind}"]
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=".", label=split)
    best = history[f"val_{kind}"][best_epoch - 1]
    axes.plot([best_epoch], [best], "o", color=MARKED, markersize=8, fillstyle="none", label=f"best: epoch {best_epoch}")
    axes.legend(frameon=False)
    dress_epochs(axes, kind, "train: augmented, smoothed" if kind == "loss" else "train: augmented")


def dress_epochs(axes: Axes, title: str, note: str) -> None:
    """Dress a panel of values by epoch."""
    dress(axes, title, note, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
