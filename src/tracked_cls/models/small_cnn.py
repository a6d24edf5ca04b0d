"""A network of our own for small grey images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from tracked_cls.errors import UserError
from tracked_cls.models.shape import Shape


class SmallCnn(nn.Module):
    """Pairs of 3x3 convolutions with BatchNorm, pooled between: three of them, 72 thousand parameters, for small grey images.

    `width` is the number of channels of the first of the `pairs`; the second has twice as many, all others four times.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0, width: int = 16, pairs: int = 3) -> None:
        super().__init__()
        for name, value in {"width": width, "pairs": pairs}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"model small_cnn: model.args.{name} must be a whole number >= 1, got {value!r}")
        widths = [shape.channels, *(width * 2 ** min(pair, 2) for pair in range(pairs) for _ in range(2))]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if index % 2 and index < 2 * pairs - 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], shape.num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K] for images [B,C,H,W]."""
        pooled: torch.Tensor = self.features(images).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(pooled)
        return logits
