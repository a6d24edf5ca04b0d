"""Running sums over batches, and the numbers they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def hits(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    """Return for each image [B] whether the network is right.

    Labels [B]: the highest logit is the label's; shares [B,K] of a mixed image count as their largest. Several labels:
    exactly those of a share above one half have a logit above 0, a probability above one half.
    """
    if multi_label:
        return ((logits > 0) == (targets > 0.5)).all(dim=1)
    return logits.argmax(dim=1) == (targets if targets.dim() == 1 else targets.argmax(dim=1))


@dataclass
class Sums:
    """Loss and hits summed over samples, so that uneven batches weigh what they hold. Tensors stay on the device."""

    loss: Tensor
    correct: Tensor
    count: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> Sums:
        """Return empty sums on a device."""
        return cls(torch.zeros((), device=device, dtype=torch.float64), torch.zeros((), device=device, dtype=torch.int64))

    def add(self, mean_loss: Tensor, right: Tensor) -> None:
        """Add a batch: its mean loss, and for each image [B] whether the network was right."""
        self.loss += mean_loss.detach().double() * len(right)
        self.correct += right.sum()
        self.count += len(right)

    def add_totals(self, loss: float, correct: float, count: float) -> None:
        """Add the batch of a step that several processes took together: the sums over all its images."""
        self.loss += loss
        self.correct += int(correct)
        self.count += int(count)

    @property
    def mean_loss(self) -> float:
        """Mean over samples."""
        return float(self.loss) / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        """Share of samples that the network is right about, in [0, 1]."""
        return float(self.correct) / max(self.count, 1)

    def state_dict(self) -> dict[str, float | int]:
        """Return plain values."""
        return {"loss": float(self.loss), "correct": int(self.correct), "count": self.count}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from `state_dict`."""
        self.loss.fill_(state["loss"])
        self.correct.fill_(int(state["correct"]))
        self.count = int(state["count"])
