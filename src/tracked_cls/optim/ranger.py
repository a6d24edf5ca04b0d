"""RAdam that looks ahead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch


class Ranger(torch.optim.RAdam):
    """RAdam whose weights go back, every `k` steps, to a share `slow` of the way they went since the last time.

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", 2019; with RAdam: Wright, "Ranger", 2019.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        k: int = 6,
        slow: float = 0.5,
    ) -> None:
        if k < 1 or not 0 < slow <= 1:
            raise ValueError(f"k must be 1 or more and slow in (0, 1], got {k} and {slow}")
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay)
        for group in self.param_groups:
            group.update(k=k, slow=slow)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step."""
        moved = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        starts = {p: p.clone() for _, p in moved if not self.state[p]}
        result = inspect.unwrap(torch.optim.RAdam.step)(self, closure)  # see `eager`
        for p, start in starts.items():
            self.state[p]["anchor"] = start
        for group, p in moved:
            if int(self.state[p]["step"]) % group["k"] == 0:
                p.copy_(self.state[p]["anchor"].lerp_(p, group["slow"]))
        return result
