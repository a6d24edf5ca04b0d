"""Transforms of a whole batch at once, with a draw of its own for every image.

Names, arguments, defaults and meaning are those of torchvision.transforms.v2, but for the interpolation, which is bilinear by
default. Images are float32 [B,C,H,W]; `fill` and `value` are on the scale of the images. Randomness comes as uniforms
[B, draws]: see `randomness.uniforms`. Arguments are checked by torchvision's own constructors, in `samples`; what has no
form for whole batches raises `NotInBatches`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracked_cls import randomness
from tracked_cls.config import TransformSpec
from tracked_cls.transforms.warps import Fill, Floats, Numbers, affine, crop, per_channel, within


class NotInBatches(Exception):  # noqa: N818 - a finding, from which `plan_training` draws its conclusion
    """A transform, or one of its arguments, that only torchvision has, image by image; the text names it."""


class BatchTransform(Protocol):
    """One transform: how many numbers it draws per image, and what it does with them."""

    draws: ClassVar[int]

    def __call__(self, images: Tensor, u: Floats) -> Tensor:
        """Return the transformed images."""
        ...


@dataclass(frozen=True)
class RandomAffine:
    """Rotate by `degrees`, move by up to a share `translate` of (width, height), zoom within `scale`, shear by degrees."""

    degrees: Numbers
    translate: Sequence[float] | None = None
    scale: Sequence[float] | None = None
    shear: Numbers | None = None
    interpolation: str = "bilinear"
    fill: Fill = 0.0
    draws: ClassVar[int] = 6

    def __post_init__(self) -> None:
        _only(self.interpolation in ("nearest", "bilinear"), "RandomAffine.interpolation")

    def __call__(self, images: Tensor, u: Floats) -> Tensor:
        """Map each image by its own draw; translations are whole pixels."""
        height, width = images.shape[-2:]
        reach = np.array(self.translate or (0.0, 0.0)) * (width, height)
        shear = (*_span(0.0 if self.shear is None else self.shear), 0.0, 0.0)[:4]
        return affine(
            images,
            angle=_between(u[:, 0], *_span(self.degrees)),
            translate=np.rint(_between(u[:, 1:3], -reach, reach)),
            scale=_between(u[:, 3], *(self.scale or (1.0, 1.0))),
            shear=np.stack([_between(u[:, 4], *shear[:2]), _between(u[:, 5], *shear[2:])], axis=1),
            interpolation=self.interpolation,
            fill=self.fill,
        )


@dataclass(frozen=True)
class RandomRotation:
    """Rotate counter-clockwise by `degrees`."""

    degrees: Numbers
    interpolation: str = "bilinear"
    fill: Fill = 0.0
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _only(self.interpolation in ("nearest", "bilinear"), "RandomRotation.interpolation")

    def __call__(self, images: Tensor, u: Floats) -> Tensor:
        """Turn each image by its own angle."""
        still = np.zeros((len(u), 2))
        # torchvision turns clockwise in affine and counter-clockwise in rotate
        angle = -_between(u[:, 0], *_span(self.degrees))
        return affine(images, angle, still, np.ones(len(u)), still, interpolation=self.interpolation, fill=self.fill)


@dataclass(frozen=True)
class RandomCrop:
    """Pad by `padding` (all | across, down | left, top, right, bottom) and cut `size` (default: the old one) at random."""

    size: int | Sequence[int] | None = None
    padding: int | Sequence[int] | None = None
    pad_if_needed: bool = False
    fill: Fill = 0.0
    padding_mode: str = "constant"
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _only(min(_sides(self.padding or 0)) >= 0, "RandomCrop.padding below 0")

    def __call__(self, images: Tensor, u: Floats) -> Tensor:
        """Cut each image at its own offset, every offset being equally likely."""
        old = np.array(images.shape[-2:])
        size = np.array(_pair(self.size) if self.size else old)
        before, after = np.array(_sides(self.padding or 0)).reshape(2, 2)  # (top, left), (bottom, right)
        if self.pad_if_needed:
            missing = np.maximum(size - (old + before + after), 0)
            before, after = before + missing, after + missing
        places = old + before + after - size + 1
        offsets = (u * places).astype(np.int64) - before
        return crop(images, offsets, (int(size[0]), int(size[1])), self.padding_mode, self.fill)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left and right with probability `p`."""

    p: float = 0.5
    draws: ClassVar[int] = 1
    axis: ClassVar[int] = -1

    def __call__(self, images: Tensor, u: Floats) -> Tensor:
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

    Ten shapes are drawn and the first that fits is taken; if none does, the image stays as it is.
    Source: Zhong et al., "Random Erasing Data Augmentation", 2017.
    """

    p: float = 0.5
    scale: Sequence[float] = (0.02, 0.33)
    ratio: Sequence[float] = (0.3, 3.3)
    value: float | Sequence[float] | str = 0.0
    draws: ClassVar[int] = 23

    def __post_init__(self) -> None:
        _only(not isinstance(self.value, str), "RandomErasing.value=random")

    def __call__(self, images: Tensor, u: Floats) -> Tensor:
        """Blank one rectangle per chosen image."""
        height, width = images.shape[-2:]
        tall, wide, fits = self._shapes(u[:, 1:11], u[:, 11:21], height, width)
        top, left = np.floor(u[:, 21] * (height - tall + 1)), np.floor(u[:, 22] * (width - wide + 1))
        rows, columns = within(np.arange(height), top, tall), within(np.arange(width), left, wide)
        blank = ((u[:, 0] < self.p) & fits)[:, None, None] & rows[:, :, None] & columns[:, None, :]
        assert not isinstance(self.value, str)
        return torch.where(torch.from_numpy(blank[:, None]).to(images.device), per_channel(self.value, images), images)

    def _shapes(
        self, area_u: Floats, aspect_u: Floats, height: int, width: int
    ) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Return height, width and whether it fits [B] of each image's first fitting shape among those drawn [B,10]."""
        area = _between(area_u, *self.scale) * height * width
        aspect = np.exp(_between(aspect_u, math.log(self.ratio[0]), math.log(self.ratio[1])))
        tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (tall < height) & (wide < width)
        images, first = np.arange(len(fits)), fits.argmax(axis=1)
        return tall[images, first], wide[images, first], fits[images, first]


TRANSFORMS: dict[str, type[BatchTransform]] = {
    "RandomAffine": RandomAffine,
    "RandomCrop": RandomCrop,
    "RandomErasing": RandomErasing,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "RandomRotation": RandomRotation,
    "RandomVerticalFlip": RandomVerticalFlip,
}
# a batch is float32 in [0, 1] from the start: these change nothing but what colours in arguments mean after them
TO_FLOAT: dict[str, list[dict[str, Any]]] = {
    "ToTensor": [{}],
    "ConvertImageDtype": [{}, {"dtype": "float32"}],
    "ToDtype": [{"dtype": "float32", "scale": True}],
}
NOTHING = ("Identity", "PILToTensor", "ToImage", "ToPureTensor")
_NEUTRAL: dict[str, tuple[Any, ...]] = {"center": (None,), "expand": (False,), "inplace": (False, True)}


@dataclass(frozen=True)
class BatchPipeline:
    """A list of transforms, drawn for each image from (seed, epoch, sample key, place in the list)."""

    transforms: tuple[BatchTransform, ...] = ()
    per_sample: ClassVar[bool] = False
    normalises: ClassVar[bool] = False

    @classmethod
    def from_specs(cls, specs: Sequence[TransformSpec], size: int | None = None) -> BatchPipeline:
        """Build from ``[{name: {argument: value}}]`` for images of side `size`; raises `NotInBatches`.

        Normalize is left to the loader, after the list: what may follow it here commutes with it, once its colours are
        those that Normalize maps to the given ones.
        """
        transforms: list[BatchTransform] = []
        scale = _Scale(255.0)
        for name, args in flat(specs):
            if name == "Normalize":
                scale = scale.normalised(args)
            elif name in TO_FLOAT:
                _only(args in TO_FLOAT[name], f"{name} {args}" if args else name)
                scale = scale.in_floats()
            elif name not in NOTHING:
                scale = scale.in_floats() if name == "RandomErasing" else scale
                transforms.append(_build(name, args, scale, size))
        return cls(tuple(transforms))

    def __call__(self, images: Tensor, keys: npt.NDArray[np.uint64], *, seed: int, epoch: int) -> Tensor:
        """Return transformed float32 images [B,C,H,W], or clips [B,T,C,H,W], for samples with `keys` [B].

        All frames of a clip share one draw.
        """
        out = images.flatten(1, -3)
        for stream, transform in enumerate(self.transforms):
            out = transform(out, randomness.uniforms(seed, epoch, keys, stream=stream, draws=transform.draws))
        return out.reshape(*images.shape[:-2], *out.shape[-2:]) if images.ndim > 4 else out


@dataclass(frozen=True)
class _Scale:
    """What colours in arguments mean at a place in the list: bytes, then floats in [0, 1], then normalised ones."""

    white: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def in_floats(self) -> _Scale:
        return replace(self, white=1.0)

    def normalised(self, args: dict[str, Any]) -> _Scale:
        _only(not self.is_normalised, "a second Normalize")
        return _Scale(1.0, tuple(args["mean"]), tuple(args["std"]))

    @property
    def is_normalised(self) -> bool:
        return (self.mean, self.std) != ((0.0,), (1.0,))

    def on_unit(self, colour: Numbers) -> list[float]:
        """Return a colour on the batch's own scale, 0 to 1."""
        values = np.atleast_1d(np.asarray(colour, np.float64)) / self.white
        return [float(value) for value in values * self.std + self.mean]


def flat(specs: Sequence[TransformSpec]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each (name, arguments), those inside a Compose in its place."""
    for spec in specs:
        for name, args in spec.items():
            if name == "Compose" and set(args) == {"transforms"}:
                yield from flat(args["transforms"])
            else:
                yield name, args


def _build(name: str, args: dict[str, Any], scale: _Scale, size: int | None) -> BatchTransform:
    _only(name in TRANSFORMS, name)
    kind = TRANSFORMS[name]
    given = {key: value for key, value in args.items() if key not in _NEUTRAL or value not in _NEUTRAL[key]}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for argument in given:
        _only(argument in known, f"{name}.{argument}")
    transform = kind(**given)
    if isinstance(transform, RandomCrop):
        keeps = size is None or transform.size is None or _pair(transform.size) == (size, size)
        _only(keeps, f"RandomCrop.size other than the input's ({size})")
    if isinstance(transform, RandomErasing):
        assert not isinstance(transform.value, str)
        return replace(transform, value=scale.on_unit(transform.value))
    if isinstance(transform, RandomCrop):
        return replace(transform, fill=scale.on_unit(transform.fill or 0.0))
    if isinstance(transform, (RandomAffine, RandomRotation)):
        _only(not scale.is_normalised, f"{name} after Normalize")  # torchvision's blend with `fill` is not linear
        return replace(transform, fill=None if transform.fill is None else scale.on_unit(transform.fill))
    return transform


def _only(holds: bool, what: str) -> None:
    if not holds:
        raise NotInBatches(what)


def _span(value: Numbers) -> tuple[float, ...]:
    """Return (-value, value) for a number, and numbers as they are."""
    return tuple(value) if isinstance(value, Sequence) else (-value, value)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of torchvision's all | across, down | left, top, right, bottom."""
    given = [padding] if isinstance(padding, int) else list(padding)
    left, top, right, bottom = given if len(given) == 4 else [given[0], given[-1]] * 2
    return top, left, bottom, right


def _between(u: Floats, low: float | Floats, high: float | Floats) -> Floats:
    return low + (high - low) * u
