"""Running sums over batches, and the numbers they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def add(self, mean_loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, its logits [B,K] and labels [B]."""
        self.loss += mean_loss.detach().double() * len(labels)
        self.correct += (logits.argmax(dim=1) == labels).sum()
        self.count += len(labels)

    @property
    def mean_loss(self) -> float:
        """Mean over samples."""
        return float(self.loss) / max(self.count, 1)

    @property
    def accuracy(self) -> float:
        """Share of samples whose highest logit is their label, in [0, 1]."""
        return float(self.correct) / max(self.count, 1)

    def state_dict(self) -> dict[str, float | int]:
        """Return plain values."""
        return {"loss": float(self.loss), "correct": int(self.correct), "count": self.count}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from `state_dict`."""
        self.loss.fill_(state["loss"])
        self.correct.fill_(int(state["correct"]))
        self.count = int(state["count"])
