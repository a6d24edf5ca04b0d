"""Augmentation of a whole batch at once, with a draw of its own for every image.

Names and arguments are torchvision's. Images are float32 [B,C,H,W] in [0, 1], before normalisation; what a transform
uncovers is filled with 0. Randomness comes as uniforms [B, draws]: see `randomness.uniforms`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tracked_cls import randomness
from tracked_cls.config import TransformSpec
from tracked_cls.errors import UserError, lookup

Uniforms = npt.NDArray[np.float64]


class BatchTransform(Protocol):
    """One augmentation: how many numbers it draws per image, and what it does with them."""

    draws: ClassVar[int]

    def __call__(self, images: Tensor, u: Uniforms) -> Tensor:
        """Return the augmented images, same shape."""
        ...


@dataclass(frozen=True)
class RandomAffine:
    """Rotate by up to `degrees`, move by up to a share `translate` of (width, height), zoom within `scale`, shear in x."""

    degrees: float = 0.0
    translate: Sequence[float] = (0.0, 0.0)
    scale: Sequence[float] = (1.0, 1.0)
    shear: float = 0.0
    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        _require(0 <= self.degrees <= 180, "RandomAffine.degrees", "in [0, 180]", self.degrees)
        _require(_is_pair(self.translate, 0, 1), "RandomAffine.translate", "two numbers in [0, 1]", self.translate)
        ordered = _is_pair(self.scale, 1e-3, 1e3) and self.scale[0] <= self.scale[1]
        _require(ordered, "RandomAffine.scale", "two positive numbers, low first", self.scale)
        _require(0 <= self.shear < 90, "RandomAffine.shear", "in [0, 90)", self.shear)

    def __call__(self, images: Tensor, u: Uniforms) -> Tensor:
        """Sample each output pixel from where the inverse of its image's map points to (bilinear)."""
        height, width = images.shape[-2:]
        theta = torch.from_numpy(self._inverse_maps(u, width / height)).to(images.device, torch.float32)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _inverse_maps(self, u: Uniforms, aspect: float) -> Uniforms:
        """Return [B,2,3] maps from output to input in grid coordinates, where width and height both span [-1, 1]."""
        signed = 2 * u - 1
        angle = np.deg2rad(self.degrees * signed[:, 0])
        shear = np.tan(np.deg2rad(self.shear * signed[:, 4]))
        zoom = self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 3]
        dx, dy = 2 * self.translate[0] * signed[:, 1], 2 * self.translate[1] * signed[:, 2]
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        maps = np.empty((len(u), 2, 3))
        maps[:, 0, 0], maps[:, 0, 1] = cos + shear * sin, (sin - shear * cos) / aspect
        maps[:, 1, 0], maps[:, 1, 1] = -sin * aspect, cos
        maps[:, :, 2] = -np.einsum("bij,bj->bi", maps[:, :, :2], np.stack([dx, dy], axis=1))
        return maps


@dataclass(frozen=True)
class RandomCrop:
    """Pad by `padding` pixels and cut the old size at a random place."""

    padding: int = 4
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        whole = isinstance(self.padding, int) and 1 <= self.padding <= 512
        _require(whole, "RandomCrop.padding", "a whole number of pixels in [1, 512]", self.padding)

    def __call__(self, images: Tensor, u: Uniforms) -> Tensor:
        """Gather rows and columns at each image's own offset."""
        batch, _, height, width = images.shape
        padded = functional.pad(images, [self.padding] * 4)
        offsets = torch.from_numpy((u * (2 * self.padding + 1)).astype(np.int64)).to(images.device)
        rows = offsets[:, :1] + torch.arange(height, device=images.device)
        columns = offsets[:, 1:] + torch.arange(width, device=images.device)
        index = torch.arange(batch, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5
    draws: ClassVar[int] = 1
    axis: ClassVar[int] = -1

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, f"{type(self).__name__}.p", "in [0, 1]", self.p)

    def __call__(self, images: Tensor, u: Uniforms) -> Tensor:
        """Flip the images whose number falls below `p`."""
        chosen = torch.from_numpy(u[:, 0] < self.p).to(images.device)[:, None, None, None]
        return torch.where(chosen, images.flip(self.axis), images)


@dataclass(frozen=True)
class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirror top and bottom with probability `p`."""

    axis: ClassVar[int] = -2


@dataclass(frozen=True)
class RandomErasing:
    """With probability `p` blank a rectangle of a share `scale` of the area and an aspect within `ratio`.

    Source: Zhong et al., "Random Erasing Data Augmentation", 2017.
    """

    p: float = 0.5
    scale: Sequence[float] = (0.02, 0.33)
    ratio: Sequence[float] = (0.3, 3.3)
    draws: ClassVar[int] = 5

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, "RandomErasing.p", "in [0, 1]", self.p)
        _require(_is_pair(self.scale, 0, 1) and self.scale[0] <= self.scale[1], "RandomErasing.scale",
                 "two shares in [0, 1], low first", self.scale)  # fmt: skip
        _require(_is_pair(self.ratio, 1e-3, 1e3) and self.ratio[0] <= self.ratio[1], "RandomErasing.ratio",
                 "two positive numbers, low first", self.ratio)  # fmt: skip

    def __call__(self, images: Tensor, u: Uniforms) -> Tensor:
        """Blank one rectangle per chosen image."""
        height, width = images.shape[-2:]
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 1]) * height * width
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = np.exp(low + (high - low) * u[:, 2])
        tall = np.clip(np.round(np.sqrt(area * aspect)), 1, height)
        wide = np.clip(np.round(np.sqrt(area / aspect)), 1, width)
        top, left = np.floor(u[:, 3] * (height - tall + 1)), np.floor(u[:, 4] * (width - wide + 1))
        rows = _between(np.arange(height), top, tall)
        columns = _between(np.arange(width), left, wide)
        blank = (u[:, 0] < self.p)[:, None, None] & rows[:, :, None] & columns[:, None, :]
        return images.masked_fill(torch.from_numpy(blank[:, None]).to(images.device), 0.0)


TRANSFORMS: dict[str, type[BatchTransform]] = {
    "RandomAffine": RandomAffine,
    "RandomCrop": RandomCrop,
    "RandomErasing": RandomErasing,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "RandomVerticalFlip": RandomVerticalFlip,
}


@dataclass(frozen=True)
class Augmentation:
    """A list of transforms, drawn for each image from (seed, epoch, sample key, place in the list)."""

    transforms: tuple[BatchTransform, ...] = ()

    @classmethod
    def from_specs(cls, specs: Sequence[TransformSpec]) -> Augmentation:
        """Build from ``[{name: {argument: value}}]``; raises `UserError` for an unknown name or argument."""
        return cls(tuple(_build(name, args) for spec in specs for name, args in spec.items()))

    def __call__(self, images: Tensor, keys: npt.NDArray[np.uint64], *, seed: int, epoch: int) -> Tensor:
        """Return augmented images [B,C,H,W] for samples with `keys` [B]."""
        for stream, transform in enumerate(self.transforms):
            images = transform(images, randomness.uniforms(seed, epoch, keys, stream=stream, draws=transform.draws))
        return images


def _build(name: str, args: dict[str, Any]) -> BatchTransform:
    kind = lookup(name, TRANSFORMS, "transform")
    known = list(inspect.signature(kind).parameters)
    for argument in args:
        if argument not in known:
            raise UserError(f"transform {name} takes no argument {argument!r}; it takes {', '.join(known)}")
    try:
        return kind(**args)
    except TypeError as error:
        raise UserError(f"transform {name}: {args!r} has a value of the wrong type ({error})") from None


def _require(holds: bool, key: str, rule: str, value: object) -> None:
    if not holds:
        raise UserError(f"{key} must be {rule}, got {value!r}")


def _is_pair(value: Sequence[float], low: float, high: float) -> bool:
    return len(value) == 2 and all(low <= number <= high for number in value)


def _between(
    positions: npt.NDArray[np.int64], start: npt.NDArray[np.floating], size: npt.NDArray[np.floating]
) -> npt.NDArray[np.bool_]:
    return np.asarray((positions >= start[:, None]) & (positions < (start + size)[:, None]))
