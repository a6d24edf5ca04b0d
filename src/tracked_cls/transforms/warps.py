"""Moving the pixels of a whole batch, each image in its own way: affine maps and crops of padded images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Numbers = float | Sequence[float]
Fill = float | Sequence[float] | None


def affine(
    images: Tensor,
    angle: Floats,
    translate: Floats,
    scale: Floats,
    shear: Floats,
    *,
    interpolation: str = "bilinear",
    fill: Fill = 0.0,
) -> Tensor:
    """Return torchvision's ``functional.affine`` with parameters of its own for each image.

    `angle` [B] in degrees, `translate` [B,2] in pixels, `scale` [B], `shear` [B,2] in degrees.
    """
    maps = torch.from_numpy(_inverse_maps(angle, translate, scale, shear)).to(images.device, torch.float32)
    grid = _grid(maps, *images.shape[-2:])
    if fill is None:
        return functional.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    # torchvision's own arithmetic: how much of each pixel comes from inside is sampled along as one more channel
    masked = images.new_ones(len(images), images.shape[1] + 1, *images.shape[2:])  # torch.cat would keep a slower layout
    masked[:, :-1] = images
    sampled = functional.grid_sample(masked, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    inside, colour = sampled[:, -1:], per_channel(fill, images)
    if interpolation == "nearest":
        return torch.where(inside < 0.5, colour, sampled[:, :-1])
    return (sampled[:, :-1] - colour) * inside + colour


def crop(images: Tensor, offsets: Integers, size: tuple[int, int], mode: str = "constant", fill: Fill = 0.0) -> Tensor:
    """Return windows [B,C,*size] of images padded without end, each at its (top, left) among `offsets` [B,2]."""
    start, end = offsets.min(axis=0), offsets.max(axis=0) + size
    padded = _padded(images, np.arange(start[0], end[0]), np.arange(start[1], end[1]), mode, fill).permute(0, 2, 3, 1)
    windows = padded.unfold(1, size[0], 1).unfold(2, size[1], 1).permute(0, 1, 2, 4, 5, 3)  # [B, tops, lefts, *size, C]
    top, left = torch.from_numpy(offsets - start).to(images.device).T
    return windows[torch.arange(len(images), device=images.device), top, left].permute(0, 3, 1, 2)


def _padded(images: Tensor, rows: Integers, columns: Integers, mode: str, fill: Fill) -> Tensor:
    """Return [B,C,R,S]: the pixels that stand at `rows` [R] and `columns` [S] of images padded without end."""
    count, channels, height, width = images.shape
    if mode != "constant":
        from_row, from_column = (
            torch.from_numpy(_source(at, size, mode)).to(images.device) for at, size in ((rows, height), (columns, width))
        )
        return images.index_select(2, from_row).index_select(3, from_column)
    padded = images.new_empty(count, len(rows), len(columns), channels).permute(0, 3, 1, 2)
    padded.copy_(per_channel(fill or 0.0, images))
    (to_row, of_row), (to_column, of_column) = _overlap(rows, height), _overlap(columns, width)
    padded[:, :, to_row, to_column] = images[:, :, of_row, of_column]
    return padded


def _overlap(positions: Integers, size: int) -> tuple[slice, slice]:
    """Return where consecutive positions lie within 0..size-1: among themselves, and on the axis."""
    first, end = np.searchsorted(positions, (0, size))
    return slice(int(first), int(end)), slice(int(positions[first]), int(positions[end - 1]) + 1) if end > first else slice(0)


def _inverse_maps(angle: Floats, translate: Floats, scale: Floats, shear: Floats) -> Floats:
    """Return [B,2,3] maps from output to input in pixels from the centre, as torchvision's _get_inverse_affine_matrix."""
    turn, (sx, sy) = np.deg2rad(angle), np.deg2rad(shear).T
    a, c = np.cos(turn - sy) / np.cos(sy), np.sin(turn - sy) / np.cos(sy)
    b, d = -(a * np.tan(sx) + np.sin(turn)), np.cos(turn) - c * np.tan(sx)
    maps = np.empty((len(angle), 2, 3))
    maps[:, 0, 0], maps[:, 0, 1] = d / scale, -b / scale
    maps[:, 1, 0], maps[:, 1, 1] = -c / scale, a / scale
    maps[:, :, 2] = -(maps[:, :, 0] * translate[:, :1] + maps[:, :, 1] * translate[:, 1:])
    return maps


def _grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Return where each output pixel comes from, [B,H,W,2] in grid_sample's coordinates.

    Ten times as fast as affine_grid, and free of a matrix product, whose last bit would depend on the batch.
    """
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=maps.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=maps.device)[:, None]
    maps = (maps / torch.tensor([[width / 2], [height / 2]], device=maps.device))[..., None, None]
    return (maps[:, :, 0] * x + maps[:, :, 1] * y + maps[:, :, 2]).permute(0, 2, 3, 1)


def _source(positions: Integers, size: int, mode: str) -> Integers:
    """Return which of 0..size-1 stands at each position of an axis that is padded without end."""
    if mode == "reflect":
        positions = size - 1 - np.abs(size - 1 - np.abs(positions))
    elif mode == "symmetric":
        positions = np.where(positions < 0, -1 - positions, positions)
        positions = np.where(positions >= size, 2 * size - 1 - positions, positions)
    return np.clip(positions, 0, size - 1)


def per_channel(values: Numbers, images: Tensor) -> Tensor:
    """Return [1,C,1,1] or [1,1,1,1]; the channels of a clip are those of its frames, one frame after the other."""
    tensor = torch.tensor(values, dtype=torch.float32, device=images.device).reshape(1, -1, 1, 1)
    return tensor if tensor.shape[1] == 1 else tensor.repeat(1, images.shape[1] // tensor.shape[1], 1, 1)


def within(positions: Integers, start: float | Floats, size: float | Floats) -> npt.NDArray[np.bool_]:
    """Return which positions lie in start..start+size; starts [B] against positions [N] give [B,N]."""
    start, size = (np.asarray(value)[..., None] for value in (start, size))
    return np.asarray((positions >= start) & (positions < start + size))
