"""Galleries: images with what a network says of them, and where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracked_cls.plots.lettering import lettering
from tracked_cls.plots.style import GREY, INK, MARKED, WIDTH, cut, save

_COLUMNS, _COLUMNS_PLAIN = 3, 4
_MOST_LETTERS = {_COLUMNS: 26, _COLUMNS_PLAIN: 20}
_MOST_BYTES, _COLOURS = 230_000, (256, 128, 64, 32)
_TITLE, _ABOVE = 0.46, 0.36  # inches: two lines of letters over an image; the heading
_GAP = 0.04  # of an image's width, between it and its heat

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Tile:
    """An image uint8 [H,W,C], the heat over it, float32 [H,W] in [0, 1], or None, and two lines of words.

    The second line stands out where the image is a mistake.
    """

    picture: npt.NDArray[np.uint8]
    heat: npt.NDArray[np.float32] | None
    first: str
    second: str
    is_mistake: bool = False


@lettering()
def gallery(tiles: Sequence[Tile], title: str, note: str, path: Path) -> None:
    """Draw at least one tile: three in a row, each with its heat beside it, or four where there is none; below 250 kB."""
    columns = _COLUMNS if any(tile.heat is not None for tile in tiles) else _COLUMNS_PLAIN
    lines = -(-len(tiles) // columns)
    width = WIDTH / columns
    height = max(_joined(tile).shape[0] / _joined(tile).shape[1] for tile in tiles) * (width - 0.12) + _TITLE
    total = lines * height + _ABOVE
    figure = Figure(figsize=(WIDTH, total))  # a layout engine takes seconds for so many axes
    figure.text(0.01, 1 - 0.1 / total, title, va="top", fontsize=11, fontweight="bold", color=INK)
    figure.text(0.99, 1 - 0.12 / total, note, va="top", ha="right", fontsize=8.5, color=GREY)
    for place, tile in enumerate(tiles):
        line, column = divmod(place, columns)
        bottom = 1 - (_ABOVE + (line + 1) * height - 0.04) / total
        axes = figure.add_axes(((column * width + 0.06) / WIDTH, bottom, (width - 0.12) / WIDTH, (height - _TITLE) / total))
        _draw(axes, tile, _MOST_LETTERS[columns])
    save(figure, path, _COLOURS, _MOST_BYTES)


def _draw(axes: Axes, tile: Tile, most_letters: int) -> None:
    axes.set_axis_off()
    axes.imshow(_joined(tile))
    lines = ((tile.first, 16, INK), (tile.second, 4, MARKED if tile.is_mistake else GREY))
    for text, height, colour in lines:
        place: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, height), "textcoords": "offset points"}
        axes.annotate(cut(text, most_letters), (0, 1), **place, color=colour, fontsize=9.3, va="bottom", parse_math=False)


def _joined(tile: Tile) -> Floats:
    """Return the image and, beside it, the image under its heat, as colours in [0, 1], [H,W or more,3]."""
    plain = np.broadcast_to(tile.picture / 255.0, (*tile.picture.shape[:2], 3))
    if tile.heat is None:
        return np.asarray(plain)
    gap = np.ones((len(plain), max(1, round(_GAP * plain.shape[1])), 3))
    return np.concatenate([plain, gap, _heated(plain, tile.heat)], axis=1)


def _heated(plain: Floats, heat: npt.NDArray[np.float32]) -> Floats:
    """Return an image in grey, coloured where there is heat."""
    grey = np.repeat(0.8 * plain.mean(axis=2, keepdims=True), 3, axis=2)
    cover = 0.8 * heat[..., None]
    return np.asarray((1 - cover) * grey + cover * colormaps["inferno"](0.3 + 0.65 * heat)[..., :3])
