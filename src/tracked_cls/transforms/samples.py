"""Transforms of one image after the other, by torchvision.transforms.v2 or by the user's own code.

Images are uint8 until a transform makes floats of them (ToTensor, ToDtype, ConvertImageDtype) or needs floats: before the
latter (Normalize, LinearTransformation, GaussianNoise, RandomErasing) they become float32 in [0, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tracked_cls.config import CROPS, TransformSpec
from tracked_cls.errors import UserError
from tracked_cls.transforms.batch import flat
from tracked_cls.transforms.steps import MAKE_FLOATS, Builder, Step, certain, names_in, place_of, seeded
from tracked_cls.transforms.tensors import plain, to_float, with_channels

Fit = Callable[[Tensor], Tensor]
_TRIALS = 8  # enough that a RandomChoice takes most of its branches


@dataclass(frozen=True)
class SamplePipeline:
    """A list of transforms applied to one image: a function of (image, seed).

    `shape` is (channels, side) of the model's input. `fit` makes uint8 [C,S,S] of uint8 [C,H,W] where the list leaves
    another size. It travels to worker processes as its specs.
    """

    specs: tuple[TransformSpec, ...]
    shape: tuple[int, int]
    search: tuple[Path, ...]
    fit: Fit | None
    steps: tuple[Step, ...]
    per_sample: ClassVar[bool] = True

    @classmethod
    def from_specs(
        cls,
        specs: Sequence[TransformSpec],
        shape: tuple[int, int],
        search: Sequence[Path] = (),
        *,
        fit: Fit | None = None,
        frames: int | None = None,
        trial_size: int | None = None,
    ) -> SamplePipeline:
        """Build from ``[{name: {argument: value}}]`` and try it on an image of side `trial_size` (default: the model's).

        `frames`: images are clips of so many. Raises `UserError` for an unknown name or argument, a wrong value, and for
        what does not work on such an image.
        """
        built = cls.untried(specs, shape, search, fit=fit, frames=frames)
        cls.untried([certain(spec) for spec in specs], shape, search, fit=fit, frames=frames)._try(trial_size, frames)
        return built

    @classmethod
    def untried(
        cls,
        specs: Sequence[TransformSpec],
        shape: tuple[int, int],
        search: Sequence[Path] = (),
        *,
        fit: Fit | None = None,
        frames: int | None = None,
    ) -> SamplePipeline:
        """Build as `from_specs` does, where the size of the images is not known yet, or a trial has been made elsewhere."""
        top = [name for spec in specs for name in spec]
        for name in set(names_in(specs)) - set(top):
            if name == "Normalize":
                raise UserError("Normalize cannot stand within another transform; put it into the list itself")
        builder = Builder(*shape, frames, tuple(search))
        steps = tuple(builder.step(name, args) for name, args in flat(specs))
        return cls(tuple(specs), shape, tuple(search), fit, steps)

    def __reduce__(self) -> tuple[Any, ...]:
        # the steps may hold what cannot be pickled, and a user's module must be found anew in a spawned worker
        return _rebuilt, (self.specs, self.shape, self.search, self.fit)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """All names in the list, nested ones included."""
        return frozenset(names_in(self.specs))

    @property
    def normalises(self) -> bool:
        """Whether the images leave normalised."""
        return "Normalize" in self.names

    def __call__(self, image: Tensor, seed64: int) -> Tensor:
        """Return uint8 or float32 [C,S,S] of an image uint8 [C,H,W]; [V,C,S,S] after crops; clips [T,C,S,S] likewise.

        The type is the same for every image of one list. A float image of another size is a `UserError`.
        """
        finished = [self._finished(view) for view in self.run(image, seed64)]
        return torch.stack(finished) if self.names & set(CROPS) else finished[0]

    def run(self, image: Tensor, seed64: int) -> list[Tensor]:
        """Return the views that the list makes of an image, of any size, uint8 or float32, with the model's channels."""
        own = any(step.own for step in self.steps)
        with seeded(int(seed64), everywhere=own):
            # a user's code may write into what it gets
            views: list[Any] = [with_channels(image.clone() if own else image, self.shape[0])]
            for step in self.steps:
                views = [out for view in views for out in step(view)]
        tensors = [with_channels(plain(view), self.shape[0]) for view in views]
        if any(tensor.shape[:-3] != image.shape[:-3] for tensor in tensors):
            raise UserError(
                f"the transforms make {tuple(tensors[0].shape)} of {tuple(image.shape)}: the number of frames must stay "
                "as it is; set data.frames"
            )
        return tensors

    def _finished(self, tensor: Tensor) -> Tensor:
        """Return a view in the model's size and the list's one type."""
        if tuple(tensor.shape[-2:]) != (self.shape[1],) * 2:
            tensor = self._resized(tensor)
        return to_float(tensor).contiguous() if self.names & MAKE_FLOATS else tensor.contiguous()

    def _resized(self, tensor: Tensor) -> Tensor:
        (height, width), side = tensor.shape[-2:], self.shape[1]
        if tensor.is_floating_point():
            raise UserError(
                f"the transforms leave a float image of {height} x {width} pixels, the model takes {side} x {side}; end the "
                "list with CenterCrop or Resize, or put one before it becomes float"
            )
        return tensor if self.fit is None else _fitted(tensor, self.fit)

    def _try(self, size: int | None, frames: int | None) -> None:
        """Run on an image of side `size`, a few times; raises `UserError` that names the transform that fails."""
        image = (self.shape[0], size or self.shape[1], size or self.shape[1])
        clip = image if frames is None else (frames, *image)
        ramp = torch.arange(math.prod(clip)).remainder(251).to(torch.uint8).reshape(clip)
        for seed in range(_TRIALS if self.steps else 0):
            try:
                self(ramp, seed)
            except UserError:
                raise
            except Exception as error:  # whatever the user's own lines raise
                raise UserError(place_of(error)) from error


def _rebuilt(specs: Sequence[TransformSpec], shape: tuple[int, int], search: Sequence[Path], fit: Fit | None) -> SamplePipeline:
    return SamplePipeline.untried(specs, shape, search, fit=fit)


def _fitted(tensor: Tensor, fit: Fit) -> Tensor:
    return fit(tensor) if tensor.ndim == 3 else torch.stack([fit(frame) for frame in tensor])
