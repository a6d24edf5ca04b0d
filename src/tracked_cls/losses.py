"""What training minimises."""

from __future__ import annotations

from torch import nn

from tracked_cls.config import LossConfig


def make_loss(cfg: LossConfig) -> nn.Module:
    """Return a loss of (logits [B,K], labels [B]) whose value is the mean over the batch.

    Label smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7.
    """
    return nn.CrossEntropyLoss(label_smoothing=cfg.smoothing)
