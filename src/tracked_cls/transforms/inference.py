"""Transforms of images that nobody trains on: a user's own lists for evaluation and prediction, and the normalisation."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tracked_cls.config import TransformsConfig, TransformSpec
from tracked_cls.errors import UserError, lookup
from tracked_cls.transforms import photo_size, trimmed
from tracked_cls.transforms.samples import Fit, SamplePipeline

Pixels = npt.NDArray[np.uint8]
Values = tuple[float, ...]

_HARMLESS = {"Identity", "PILToTensor", "ToImage", "ToPILImage", "ToPureTensor"}  # change the kind of an image, not its values
_NORMALISATIONS: dict[str, tuple[Values, Values]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of torchvision's ImageNet weights
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


def lasting(specs: Sequence[TransformSpec]) -> list[str]:
    """Return the names in a list that a model's own preprocessing cannot do, in their order."""
    return [name for spec in trimmed(specs) for name in spec if name not in _HARMLESS]


def normalisation(
    cfg: TransformsConfig, own: tuple[Values, Values], of_weights: tuple[Values, Values] | None = None
) -> tuple[Values, Values]:
    """Return (mean, std) per channel as ``transforms.normalize``, or a Normalize in the lists, says.

    `own` are the data's, `of_weights` those of the weights that training starts from, which ``auto`` follows.
    """
    channels = len(own[0])
    if cfg.own_normalisation is not None:
        return _as_given(cfg.own_normalisation.get("mean"), channels), _as_given(cfg.own_normalisation.get("std"), channels)
    named = {**_NORMALISATIONS, "data": own, "auto": of_weights or own}
    mean, std = lookup(cfg.normalize, named, "transforms.normalize")
    return _for_channels(mean, channels), _for_channels(std, channels)


def _for_channels(values: Values, channels: int) -> Values:
    """Return numbers for so many channels: grey takes the mean of the colours', and colours take grey's."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _as_given(values: object, channels: int) -> Values:
    """Return a Normalize's mean or std, one number for each channel."""
    numbers = tuple(float(value) for value in values) if isinstance(values, (list, tuple)) else ()
    if len(numbers) not in (1, channels):
        raise UserError(f"transform Normalize: mean and std need one number per channel ({channels}), got {values!r}")
    return numbers * channels if len(numbers) == 1 else numbers


def plan_evaluation(
    cfg: TransformsConfig, shape: tuple[int, int], *, whole_photos: bool, fit: Fit | None = None, search: Sequence[Path] = ()
) -> SamplePipeline | None:
    """Return ``transforms.eval`` for images of `shape` (channels, side); None where the model's preprocessing does it all."""
    if not lasting(cfg.eval):
        return None
    trial_size = photo_size(shape) if whole_photos else None
    return SamplePipeline.from_specs(trimmed(cfg.eval), shape, search, fit=fit, trial_size=trial_size)


def pixel_transform(
    specs: Sequence[TransformSpec], shape: tuple[int, int], *, search: Sequence[Path] = ()
) -> Callable[[Pixels], Pixels]:
    """Return a list as a function of decoded images uint8 [H,W,C], which may change their size.

    What is drawn depends on the image alone. A Normalize is a `UserError`: the model's own preprocessing follows.
    """
    pipeline = SamplePipeline.from_specs(trimmed(specs), shape, search, trial_size=photo_size(shape))
    if pipeline.normalises:
        raise UserError("transforms.predict: leave out Normalize: the model's own preprocessing follows")

    def apply(pixels: Pixels) -> Pixels:
        image = torch.from_numpy(np.require(pixels, requirements=["C", "W", "E"])).movedim(-1, -3)
        (out,) = pipeline.run(image, zlib.crc32(pixels.tobytes()))
        levels = out if out.dtype == torch.uint8 else out.clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(levels.movedim(-3, -1).numpy())

    return apply
