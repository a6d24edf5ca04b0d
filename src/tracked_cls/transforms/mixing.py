"""Images mixed with their neighbours in the batch, and labels with them: MixUp and CutMix.

As in torchvision the partner is the previous image of the batch; unlike there, each image has a draw of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor

from tracked_cls import randomness
from tracked_cls.config import MIXES, TransformSpec
from tracked_cls.errors import UserError, lookup

Floats = npt.NDArray[np.float64]
Shares = npt.NDArray[np.float32]
_STREAM = 2**31  # apart from the places of a list of transforms


class Mix(Protocol):
    """One way to mix: how much of each pixel, and of each label, an image keeps."""

    draws: ClassVar[int]

    def kept(self, u: Floats, height: int, width: int) -> tuple[Shares, Shares]:
        """Return the kept share of each pixel, [B,H,W] or [B,1,1], and of each label [B]."""
        ...


@dataclass(frozen=True)
class MixUp:
    """Add images, the share of each drawn from Beta(alpha, alpha).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """

    alpha: float = 1.0
    draws: ClassVar[int] = 1

    def kept(self, u: Floats, height: int, width: int) -> tuple[Shares, Shares]:
        """Return the same share for all pixels and the label."""
        share = _beta(u[:, 0], self.alpha).astype(np.float32)
        return share[:, None, None], share


@dataclass(frozen=True)
class CutMix:
    """Paste a box of the partner; the area that it leaves is drawn from Beta(alpha, alpha) and cut at the border.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019.
    """

    alpha: float = 1.0
    draws: ClassVar[int] = 3

    def kept(self, u: Floats, height: int, width: int) -> tuple[Shares, Shares]:
        """Return 0 inside the box and 1 outside; the label keeps the share of what lies outside."""
        side = 0.5 * np.sqrt(1 - _beta(u[:, 0], self.alpha))
        rows, columns = _strip(u[:, 1], side, height), _strip(u[:, 2], side, width)
        outside = ~(rows[:, :, None] & columns[:, None, :])
        return outside.astype(np.float32), outside.mean(axis=(1, 2), dtype=np.float32)


KINDS: dict[str, type[MixUp | CutMix]] = {"MixUp": MixUp, "CutMix": CutMix}
assert tuple(KINDS) == MIXES


@dataclass(frozen=True)
class Mixing:
    """One or more mixes; with several, each image takes one of them with equal chance."""

    mixes: tuple[Mix, ...]

    @classmethod
    def from_specs(cls, specs: Sequence[TransformSpec]) -> Mixing | None:
        """Build from ``[{MixUp: {alpha: 0.2}}]``; None for an empty list."""
        mixes = tuple(_build(name, args) for spec in specs for name, args in spec.items())
        return cls(mixes) if mixes else None

    def __call__(
        self, images: Tensor, targets: Tensor, keys: npt.NDArray[np.uint64], *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images [B,...,H,W] and targets [B,K], given as floats (one-hot or smoothed), for `keys` [B]."""
        pixels, labels = self._kept(keys, *images.shape[-2:], seed=seed, epoch=epoch)
        between = (1,) * (images.ndim - 3)
        keep = torch.from_numpy(pixels.reshape(len(keys), *between, *pixels.shape[1:])).to(images)
        share = torch.from_numpy(labels[:, None]).to(targets)
        return _blend(images, keep), _blend(targets, share)

    def _kept(self, keys: npt.NDArray[np.uint64], height: int, width: int, *, seed: int, epoch: int) -> tuple[Shares, Shares]:
        """Return the kept shares of pixels, [B,H,W] or [B,1,1], and labels [B], each image's by the mix that it takes."""
        u = randomness.uniforms(seed, epoch, keys, stream=_STREAM, draws=4)
        taken = (u[:, 0] * len(self.mixes)).astype(np.int64)
        pixels, labels = zip(*(mix.kept(u[:, 1:], height, width) for mix in self.mixes), strict=True)
        each = np.arange(len(keys))
        return np.stack(np.broadcast_arrays(*pixels))[taken, each], np.stack(labels)[taken, each]


def _blend(values: Tensor, keep: Tensor) -> Tensor:
    return values * keep + values.roll(1, 0) * (1 - keep)


def _beta(u: Floats, alpha: float) -> Floats:
    return np.asarray(special.betaincinv(alpha, alpha, u))


def _strip(u: Floats, half: Floats, size: int) -> npt.NDArray[np.bool_]:
    """Return which of `size` positions [B,size] lie within a share `half` of a random one, cut off at the ends."""
    middle, reach = np.floor(u * size), np.floor(half * size)
    positions = np.arange(size)
    return np.asarray((positions >= (middle - reach)[:, None]) & (positions < (middle + reach)[:, None]))


def _build(name: str, args: dict[str, object]) -> Mix:
    kind = lookup(name, KINDS, "transform")
    for argument in args:
        if argument != "alpha":
            raise UserError(f"transform {name} takes no argument {argument!r}; it takes alpha")
    alpha = args.get("alpha", 1.0)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < float("inf"):
        raise UserError(f"{name}.alpha must be a number above 0, got {alpha!r}")
    return kind(alpha=float(alpha))
