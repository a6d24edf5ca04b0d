"""What a network must fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Shape:
    """What a network must fit: K classes and images [C,S,S], or clips of frames [T,C,S,S]."""

    num_classes: int
    channels: int
    image_size: int
    frames: int | None = None

    def blank(self, count: int) -> torch.Tensor:
        """Return so many black inputs, [B,C,S,S] or [B,T,C,S,S]."""
        frames = () if self.frames is None else (self.frames,)
        return torch.zeros(count, *frames, self.channels, self.image_size, self.image_size)

    @property
    def of_images(self) -> Shape:
        """The same for single images: what the network inside `PooledFrames` must fit."""
        return replace(self, frames=None)

    def sized(self, image_size: int) -> Shape:
        """Return the same for images of another size."""
        return replace(self, image_size=image_size)

    def __str__(self) -> str:
        return f"{self.channels}x{self.image_size}x{self.image_size} images"
