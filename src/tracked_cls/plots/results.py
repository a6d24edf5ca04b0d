"""Pictures of results and of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tracked_cls.plots.lettering import lettering

_TRAIN, _VAL, _BEST = "#7a8699", "#1f6feb", "#d1480f"
_MAX_WRITTEN_CLASSES = 30


def curves(history: Mapping[str, Sequence[float]], best_epoch: int, path: Path) -> None:
    """Draw loss, accuracy and learning rate by epoch; `history` maps metric name to its values for epochs 1, 2, ..."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    _lines(loss, history, "loss", best_epoch)
    _lines(accuracy, history, "accuracy", best_epoch)
    epochs = range(1, len(history["lr"]) + 1)
    rate.plot(epochs, history["lr"], color=_VAL, marker=".")
    _dress(rate, "learning rate", "at the last batch of the epoch")
    figure.savefig(path, dpi=110, bbox_inches="tight")


@lettering()
def confusion(matrix: npt.NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix [true, predicted], coloured by the share of each true class."""
    side = min(3.2 + 0.42 * len(classes), 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if len(classes) <= _MAX_WRITTEN_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0, ha="center")
        axes.set_yticks(range(len(classes)), classes)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if share[row, column] > 0.5 else "#24292f"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.savefig(path, dpi=110, bbox_inches="tight")


@lettering()
def sample(original: npt.NDArray[np.uint8] | None, row: npt.NDArray[np.uint8], title: str, path: Path) -> None:
    """Draw one image uint8 [H,W,C] as it came (if it is known), then `row` uint8 [1+draws,S,S,C]: plain and its draws."""
    came = [] if original is None else [(original, f"as it came, {original.shape[1]} x {original.shape[0]}")]
    plain = (row[0], f"as the model sees it, {row.shape[2]} x {row.shape[1]}")
    pictures = [*came, plain, *((picture, f"epoch {epoch}") for epoch, picture in enumerate(row[1:], 1))]
    columns = min(len(pictures), 6)
    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(2 * columns, 2.2 * lines + 0.5), layout="constrained")
    figure.suptitle(title.encode("utf-8", "backslashreplace").decode(), fontsize=10)
    for axes in figure.subplots(lines, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (picture, name) in zip(figure.axes, pictures, strict=False):
        _show(axes, picture)
        axes.set_title(name, fontsize=8, color="#57606a" if name.startswith("epoch") else _BEST)
    figure.savefig(path, dpi=110)


def gallery(pictures: npt.NDArray[np.uint8], path: Path) -> None:
    """Draw uint8 [N,1+draws,S,S,C]: one row per image, plain first, then its augmentations epoch by epoch."""
    rows, columns = pictures.shape[:2]
    figure = Figure(figsize=(1.1 * columns + 0.3, 1.1 * rows + 0.5), layout="constrained")
    for (row, column), axes in np.ndenumerate(figure.subplots(rows, columns, squeeze=False)):
        _show(axes, pictures[row, column])
        axes.set_axis_off()
        if row == 0:
            axes.set_title(f"epoch {column}" if column else "plain", fontsize=9, color=_BEST if column == 0 else "#57606a")
    figure.savefig(path, dpi=110)


def _show(axes: Axes, picture: npt.NDArray[np.uint8]) -> None:
    """Show uint8 [H,W,C], C 1 or 3."""
    axes.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)


def _lines(axes: Axes, history: Mapping[str, Sequence[float]], kind: str, best_epoch: int) -> None:
    for split, colour in (("train", _TRAIN), ("val", _VAL)):
        values = history[f"{split}_{kind}"]
        axes.plot(range(1, len(values) + 1), values, color=colour, marker=".", label=split)
    best = history[f"val_{kind}"][best_epoch - 1]
    axes.plot([best_epoch], [best], "o", color=_BEST, markersize=8, fillstyle="none", label=f"best: epoch {best_epoch}")
    axes.legend(frameon=False)
    _dress(axes, kind, "train: augmented, smoothed" if kind == "loss" else "train: augmented")


def _dress(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_title(note, loc="right", fontsize=8, color="#57606a")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
