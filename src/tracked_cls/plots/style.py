"""What all pictures have in common: colours, titles, and how they are saved."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from unicodedata import east_asian_width

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK, GREY, PALE, LINE = "#24292f", "#57606a", "#afb8c1", "#8c959f"
QUIET, MAIN, MARKED = "#7a8699", "#1f6feb", "#d1480f"  # what a picture compares with; what it is about; what is to be seen
MANY = (  # told apart by most who see colours differently, too
    *("#1f6feb", "#d1480f", "#2a9d6f", "#8250df", "#c99700", "#0aa5b5", "#d6409f", "#6b7280", "#7c4a1e", "#84a512"),
)
WIDTH = 6.2  # inches: letters of 9 points are 7 or 8 pixels on a phone
DPI = 110


def dress(axes: Axes, title: str, note: str = "", x: str = "", y: str = "") -> None:
    """Give a panel its title on the left, a note on the right, names of its axes, and a quiet grid."""
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_title(note, loc="right", fontsize=8, color=GREY, parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def show(axes: Axes, picture: npt.NDArray[np.uint8]) -> None:
    """Show uint8 [H,W,C], C 1 or 3."""
    axes.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)


def cut(text: str, most: int) -> str:
    """Return a text in one line, as wide as so many letters at most; Chinese ones are as wide as two."""
    line = " ".join(text.split())
    ends = list(accumulate(2 if east_asian_width(letter) in "WF" else 1 for letter in line))
    return line if not ends or ends[-1] <= most else f"{line[: bisect_right(ends, most - 1)]}…"


def save(figure: Figure, path: Path, colours: Sequence[int] = (96,), most_bytes: int = 0) -> None:
    """Save in few colours, a third of the size; of several numbers of them the first that keeps below `most_bytes`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    with Image.open(buffer) as picture:
        flat = picture.convert("RGB")
    for count in colours:
        flat.quantize(count, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= most_bytes:
            return
