"""Several views of one image for test-time augmentation; numpy only, so that it can travel with a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[Any]


def enlarged(size: int) -> int:
    """Return the side of the image that crops of side `size` are cut from: 256 for 224."""
    return round(size * 8 / 7)


def resolution(name: str, size: int) -> int:
    """Return the side of the images that `views` are cut from, for a model whose input has side `size`."""
    return enlarged(size) if name in ("five_crop", "ten_crop") else size


def views(batch: Images, size: int, name: str) -> Images:
    """Return the views [B,V,S,S,C] of images [B,R,R,C] (or of clips, [B,T,R,R,C]); R is ``resolution(name, size)``."""
    assert batch.shape[-3:-1] == (resolution(name, size),) * 2, f"{name} of side {size} cannot be cut from {batch.shape}"
    return np.stack(VIEWS[name](batch, size), axis=1)


def _none(batch: Images, size: int) -> list[Images]:
    return [batch]


def _flip(batch: Images, size: int) -> list[Images]:
    return [batch, _mirror(batch)]


def _five_crop(batch: Images, size: int) -> list[Images]:
    """Return the corners (top left, top right, bottom left, bottom right) and the middle, in torchvision's order."""
    end = batch.shape[-2] - size
    middle = round(end / 2)
    corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    return [batch[..., top : top + size, left : left + size, :] for top, left in corners]


def _ten_crop(batch: Images, size: int) -> list[Images]:
    return [*_five_crop(batch, size), *_five_crop(_mirror(batch), size)]


def _mirror(batch: Images) -> Images:
    return batch[..., ::-1, :]


VIEWS: dict[str, Callable[[Images, int], list[Images]]] = {
    "none": _none,
    "flip": _flip,
    "five_crop": _five_crop,
    "ten_crop": _ten_crop,
}
