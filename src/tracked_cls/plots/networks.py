"""Pictures of a network: what it is built of, its first filters, and what its layers make of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tracked_cls.plots.style import GREY, INK, LINE

if TYPE_CHECKING:  # its module imports PyTorch, which other pictures do without
    from tracked_cls.anatomy import Anatomy, Layer

_OUTER, _INNER = "#f3f6fa", "#ffffff"
_GROUND = "#e2e7ee"  # so that the edges of white filters show
_WIDTH, _ROW = 8.4, 0.34  # inches
_COLUMNS = (0.02, 0.36, 0.63, 0.98)  # of a box: name, type, output, parameters
_MOST_FILTERS, _MOST_MAPS = 64, 12


@dataclass(frozen=True)
class _Box:
    """One box of the picture: consecutive layers of one kind in one line, and the boxes inside."""

    name: str
    type: str
    output: str
    num_parameters: int
    inside: tuple[_Box, ...] = ()

    @property
    def height(self) -> float:
        """In rows: the line of the box, the boxes inside, and the space between two boxes."""
        return 1.25 + (sum(box.height for box in self.inside) + 0.15 if self.inside else 0)


def network(anatomy: Anatomy, path: Path) -> None:
    """Draw a network as boxes from top to bottom, in the order of computation, with the boxes one level inside them.

    Neighbours of the same type, output and size share a box.
    """
    boxes = _boxes(anatomy)
    rows = sum(box.height for box in boxes)
    figure = Figure(figsize=(_WIDTH, _ROW * rows + 0.9))
    axes = figure.add_axes((0.02, 0.0, 0.96, 1 - 0.8 / figure.get_figheight()))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(rows, -0.2)
    figure.text(0.02, 1 - 0.3 / figure.get_figheight(), anatomy.name, fontsize=13, fontweight="bold", color=INK)
    figure.text(0.02, 1 - 0.52 / figure.get_figheight(), _summary(anatomy), fontsize=8.5, color=GREY)
    _heading(figure)
    _draw(axes, boxes, 0.0, margin=0.0)
    figure.savefig(path, dpi=110)


def filters(pictures: npt.NDArray[np.uint8], path: Path) -> None:
    """Draw the first filters, uint8 [N,H,W,C] with N at least 1 and C 1 or 3; of more than 64, the first ones."""
    shown = pictures[:_MOST_FILTERS]
    columns = min(len(shown), 8 if len(shown) <= 32 else 16)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(0.62 * columns + 0.2, 0.62 * rows + 0.5), layout="constrained", facecolor=_GROUND)
    height, width = pictures.shape[1:3]
    some = f"the first {len(shown)} of {len(pictures)}" if len(pictures) > len(shown) else str(len(pictures))
    figure.suptitle(f"{some} filters, {height} x {width}", fontsize=9, color=GREY)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture in zip(grid.flat, shown, strict=False):
        axes.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    figure.savefig(path, dpi=110)


def feature_maps(image: npt.NDArray[np.uint8], maps: Mapping[str, npt.NDArray[np.float32]], path: Path) -> None:
    """Draw what layers make of one image uint8 [H,W,C]: `maps` has float32 [1,C,H,W] by the layer's path.

    One row per layer, its first channels; each map is stretched from its least value to its largest.
    """
    columns = 1 + _MOST_MAPS
    figure = Figure(figsize=(0.8 * columns + 1.4, 0.95 * len(maps) + 0.3), layout="constrained")
    grid = figure.subplots(max(len(maps), 1), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    grid[0, 0].imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
    grid[0, 0].set_title("image", fontsize=8, color=GREY)
    for row, (name, answer) in zip(grid, maps.items(), strict=False):
        row[1].set_title(f"{name}   {' x '.join(map(str, answer.shape[1:]))}", fontsize=8, color=GREY, loc="left")
        for axes, channel in zip(row[1:], answer[0], strict=False):
            axes.imshow(channel, cmap="viridis")
    figure.savefig(path, dpi=110)


# ---- the graph -------------------------------------------------------------------------------------------------------


def _boxes(anatomy: Anatomy) -> list[_Box]:
    """Return the boxes of the two outermost levels; a module that merely wraps all others is no level."""
    layers, prefix = list(anatomy.layers), ""
    while len(tops := _children(layers, prefix)) == 1 and _children(layers, f"{tops[0].path}."):
        prefix = f"{tops[0].path}."
    return list(_grouped(layers, prefix, levels=2))


def _children(layers: Sequence[Layer], prefix: str) -> list[Layer]:
    return [item for item in layers if item.path.startswith(prefix) and "." not in item.path[len(prefix) :]]


def _grouped(layers: Sequence[Layer], prefix: str, *, levels: int) -> Iterator[_Box]:
    """Yield one box for each stretch of equal neighbours; what does nothing has none."""
    active = [item for item in _children(layers, prefix) if item.type != "Identity"]
    for _, equal in groupby(active, key=lambda item: (item.type, item.output_shape, item.num_parameters)):
        group = list(equal)
        first, last = group[0], group[-1]
        alone = len(group) == 1
        name = first.path[len(prefix) :] if alone else f"{first.path[len(prefix) :]} to {last.path[len(prefix) :]}"
        kind = first.type if alone else f"{len(group)} x {first.type}"
        inside = tuple(_grouped(layers, f"{first.path}.", levels=levels - 1)) if levels > 1 and alone else ()
        yield _Box(name, kind, last.output_text, sum(item.num_parameters for item in group), inside)


def _summary(anatomy: Anatomy) -> str:
    return (
        f"{anatomy.num_parameters:,} parameters, {anatomy.num_trainable:,} of them learn;  "
        f"{anatomy.flops / 1e6:,.1f} MFLOP and {anatomy.latency_ms:.1f} ms per image"
    )


def _heading(figure: Figure) -> None:
    y = 1 - 0.74 / figure.get_figheight()
    for column, title, side in zip(
        _COLUMNS, ("layer", "type", "output", "parameters"), ("left",) * 3 + ("right",), strict=True
    ):
        figure.text(0.02 + 0.96 * column, y, title, fontsize=7.5, color=GREY, ha=side)


def _draw(axes: Axes, boxes: Sequence[_Box], top: float, *, margin: float) -> float:
    """Draw boxes below `top`, in rows, joined by arrows; return where the last one ends."""
    for index, box in enumerate(boxes):
        if index:
            arrow = {"arrowstyle": "-|>", "color": LINE, "lw": 0.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6}
            axes.annotate("", (0.5, top), (0.5, top - 0.25), arrowprops=arrow)
        _frame(axes, box, top, margin)
        _write(axes, box, top + 0.5, margin)
        if box.inside:
            _draw(axes, box.inside, top + 1.0, margin=margin + 0.012)
        top += box.height
    return top


def _frame(axes: Axes, box: _Box, top: float, margin: float) -> None:
    frame = FancyBboxPatch(
        (margin, top),
        1 - 2 * margin,
        box.height - 0.25,
        boxstyle="round,pad=0,rounding_size=0.006",
        mutation_aspect=25,
        facecolor=_OUTER if box.inside else _INNER,
        edgecolor=LINE,
        linewidth=0.8,
    )
    axes.add_patch(frame)


def _write(axes: Axes, box: _Box, y: float, margin: float) -> None:
    words = (box.name, box.type, box.output, f"{box.num_parameters:,}" if box.num_parameters else "")
    for number, (column, word) in enumerate(zip(_COLUMNS, words, strict=True)):
        axes.text(
            column + (margin if number == 0 else 0),
            y,
            word,
            fontsize=8.5,
            va="center",
            ha="right" if number == 3 else "left",
            color=GREY if number == 1 else INK,
            fontweight="bold" if box.inside and number == 0 else "normal",
        )
