"""The one place that turns pixels into a model's input for evaluation; described in ``meta.json``.

Shipped with every registered model: standard library, Pillow and numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import UserError, lookup  # noqa: TID252 - travels with models under another package name
from .decode import Pixels

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """How an image of any size becomes uint8 [S,S,channels].

    `fit`: ``crop`` cuts the middle square and resizes it, ``pad`` resizes the longer side and pads with black, ``stretch``
    distorts. All but ``nearest`` are antialiased when they shrink. An image that is already right stays as it is.
    """

    image_size: int
    channels: int
    fit: str = "crop"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.channels not in (1, 3):
            raise UserError(f"image_size must be positive and channels 1 or 3, got {self.image_size} and {self.channels}")
        lookup(self.fit, _FITS, "data.fit")
        lookup(self.interpolation, _FILTERS, "data.interpolation")

    def apply(self, pixels: Pixels) -> Pixels:
        """Return uint8 [H,W,C], C 1 or 3, as uint8 [S,S,channels]; of frames [T,H,W,C] each is treated alike."""
        if pixels.ndim == 4:
            return np.stack([self.apply(frame) for frame in pixels])
        converted = _to_grey(pixels) if self.channels < pixels.shape[2] else pixels
        if converted.shape[:2] != (self.image_size, self.image_size):
            converted = _FITS[self.fit](converted, self.image_size, _FILTERS[self.interpolation])
        # grey is repeated after the resize: the same values for a third of the work
        return np.repeat(converted, 3, axis=2) if self.channels > converted.shape[2] else converted


def _to_grey(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def _resize(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Pixels:
    """Return the pixels resized to (height, width)."""
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    resized = np.asarray(image.resize((size[1], size[0]), resample))
    return resized if resized.ndim == 3 else resized[:, :, None]


def _crop(pixels: Pixels, size: int, resample: Image.Resampling) -> Pixels:
    # cut first: resizing a 1 x 100,000 strip before cutting it would need gigabytes
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(np.ascontiguousarray(pixels[top : top + side, left : left + side]), (size, size), resample)


def _pad(pixels: Pixels, size: int, resample: Image.Resampling) -> Pixels:
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    inner = _resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))), resample)
    padded = np.zeros((size, size, pixels.shape[2]), dtype=np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def _stretch(pixels: Pixels, size: int, resample: Image.Resampling) -> Pixels:
    return _resize(pixels, (size, size), resample)


_FITS = {"crop": _crop, "pad": _pad, "stretch": _stretch}


@dataclass(frozen=True)
class Preprocess:
    """Geometry, then one mean and one standard deviation per channel, on the scale 0 to 1.

    `frames`: how many frames make one input; None for single images.
    """

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int | None = None

    def __post_init__(self) -> None:
        channels = self.geometry.channels
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise UserError(f"mean and std need {channels} values each, std above 0; got {self.mean} and {self.std}")

    def normalise(self, batch: Pixels) -> npt.NDArray[np.float32]:
        """Return uint8 [B,S,S,C] as float32 [B,C,S,S], frames [B,T,S,S,C] as [B,T,C,S,S]: (x / 255 - mean) / std."""
        scaled = batch.astype(np.float32) / np.float32(255)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(np.moveaxis(normal, -1, -3))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that `from_dict` reads back."""
        geometry = self.geometry
        return {
            "image_size": geometry.image_size,
            "channels": geometry.channels,
            "fit": geometry.fit,
            "interpolation": geometry.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "frames": self.frames,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Return what `to_dict` wrote; an unknown, missing or malformed value is a `UserError`."""
        known = {"image_size", "channels", "fit", "interpolation", "mean", "std"}
        unknown, missing = sorted(set(values) - known - {"frames"}), sorted(known - set(values))
        if unknown or missing:
            raise UserError(f"the description of the preprocessing has unknown keys {unknown} and lacks {missing}")
        try:
            geometry = Geometry(int(values["image_size"]), int(values["channels"]), values["fit"], values["interpolation"])
            frames = None if values.get("frames") is None else int(values["frames"])
            return cls(geometry, tuple(map(float, values["mean"])), tuple(map(float, values["std"])), frames)
        except (TypeError, ValueError) as error:
            raise UserError(f"the description of the preprocessing is malformed: {error}") from None
