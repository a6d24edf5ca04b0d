"""Networks of images made networks of clips."""

from __future__ import annotations

import torch
from torch import nn


class PooledFrames(nn.Module):
    """A network of images made one of clips: the mean of the frames' logits.

    Source: the late fusion of Karpathy et al., "Large-scale Video Classification with Convolutional Neural Networks", 2014.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K] for clips [B,T,C,H,W]."""
        frames = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.network(frames)
        return logits.reshape(-1, clips.shape[1], logits.shape[1]).mean(dim=1)
