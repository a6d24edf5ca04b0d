"""Pictures of what a model says about images that nobody labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.style import GREY, INK, MARKED, cut, save

_COLUMNS, _SIDE = 10, 96  # pictures in a row, pixels of one
_GAP = 30  # pixels between rows, for the words
_MOST_LETTERS = 14
_COLOURS, _MOST_BYTES = (256, 128, 64, 32), 250_000

Captioned = tuple[npt.NDArray[np.uint8], str]


@lettering()
def contact_sheet(least: Sequence[Captioned], others: Sequence[Captioned], path: Path) -> None:
    """Draw images uint8 [H,W,C] with the words over them, ten in a row: those the model is least sure of, then others."""
    parts = [("least sure", least, MARKED), ("drawn by lot among the others", others, INK)]
    shown = [part for part in parts if part[1]]
    figure = Figure(figsize=(10, sum(0.35 + _rows(pictures) * 1.2 for _, pictures, _ in shown)))
    heights = [0.35 + _rows(pictures) * 1.2 for _, pictures, _ in shown]
    panels = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.3 / sum(heights), bottom=0.01, hspace=0.12)
    for axes, (title, pictures, colour) in zip(panels, shown, strict=True):
        _draw(axes, pictures, title, colour)
    save(figure, path, _COLOURS, _MOST_BYTES)


def _draw(axes: Axes, pictures: Sequence[Captioned], title: str, colour: str) -> None:
    """Draw one part as a single picture: axes for each image would take seconds."""
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=colour)
    axes.imshow(_joined([pixels for pixels, _ in pictures]), interpolation="nearest")
    for place, (_, words) in enumerate(pictures):
        row, column = divmod(place, _COLUMNS)
        left, bottom = column * (_SIDE + 4), row * (_SIDE + _GAP) + _GAP - 6
        axes.text(left, bottom, cut(words, _MOST_LETTERS), fontsize=8, color=GREY, parse_math=False)


def _joined(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return all pictures in rows on white, uint8 [H,W,3], with room above each row."""
    height, width = _rows(pictures) * (_SIDE + _GAP), _COLUMNS * (_SIDE + 4)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for place, pixels in enumerate(pictures):
        row, column = divmod(place, _COLUMNS)
        top, left = row * (_SIDE + _GAP) + _GAP, column * (_SIDE + 4)
        fitted = _fitted(pixels)
        canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return canvas


def _fitted(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return uint8 [H,W,3] whose longer side fills its place; small images keep their hard edges."""
    scale = _SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX))


def _rows(pictures: Sequence[object]) -> int:
    return -(-len(pictures) // _COLUMNS)
