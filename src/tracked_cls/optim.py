"""Optimizers and learning-rate schedules by name, all of them torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedules

from tracked_cls.config import OptimizerConfig, SchedulerConfig
from tracked_cls.errors import lookup

_WARMUP_START = 1e-2


def make_optimizer(cfg: OptimizerConfig, model: nn.Module, *, fused: bool) -> Optimizer:
    """Build the optimizer over the trainable parameters; norms and biases get no weight decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return lookup(cfg.name, _OPTIMIZERS, "optimizer")(cfg, groups, fused)


def _sgd(cfg: OptimizerConfig, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
    return torch.optim.SGD(groups, lr=_set(cfg.lr), momentum=_set(cfg.momentum), nesterov=bool(cfg.nesterov), fused=fused)


def _adam(cfg: OptimizerConfig, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
    return torch.optim.Adam(groups, lr=_set(cfg.lr), betas=(_set(cfg.beta1), _set(cfg.beta2)), fused=fused)


def _adamw(cfg: OptimizerConfig, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
    return torch.optim.AdamW(groups, lr=_set(cfg.lr), betas=(_set(cfg.beta1), _set(cfg.beta2)), fused=fused)


_OPTIMIZERS: dict[str, Callable[[OptimizerConfig, list[dict[str, Any]], bool], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


class Schedule:
    """The learning rate over a run: `after_step` once per batch, `after_epoch` once per epoch.

    Warm-up runs in front of any schedule, plateau included; one-cycle (Smith and Topin, "Super-Convergence", 2018) rises
    over its own share of the run.
    """

    def __init__(self, cfg: SchedulerConfig, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> None:
        self.optimizer = optimizer
        total = epochs * steps_per_epoch
        warmup_steps = min(round((cfg.warmup_epochs or 0.0) * steps_per_epoch), total - 1)
        self._warmup_epochs = cfg.warmup_epochs or 0.0
        self._plateau = _make_plateau(cfg, optimizer) if cfg.name == "plateau" else None
        make_body = lookup(cfg.name, _BODIES, "scheduler")
        rise = torch_schedules.LinearLR(optimizer, _WARMUP_START, total_iters=warmup_steps) if warmup_steps else None
        body = make_body(cfg, optimizer, total - warmup_steps, steps_per_epoch)
        self._steps = _in_turn(optimizer, rise, body, warmup_steps)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def after_step(self) -> None:
        """Move on by one batch."""
        if self._steps is not None:
            self._steps.step()

    def after_epoch(self, epoch: int, val_loss: float) -> None:
        """Move on by one epoch (`epoch` counts from 1); only plateau looks at the loss, and not during warm-up."""
        if self._plateau is not None and epoch > self._warmup_epochs:
            self._plateau.step(val_loss)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values only, fit for `torch.load(weights_only=True)`."""
        parts = {"steps": self._steps, "plateau": self._plateau}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the optimizer's own state holds the current rate."""
        if self._steps is not None:
            self._steps.load_state_dict(state["steps"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])


Body = torch_schedules.LRScheduler | None


def _constant(cfg: SchedulerConfig, optimizer: Optimizer, steps: int, per_epoch: int) -> Body:
    return None


def _cosine(cfg: SchedulerConfig, optimizer: Optimizer, steps: int, per_epoch: int) -> Body:
    floor = _set(cfg.final_ratio) * optimizer.param_groups[0]["initial_lr" if _warming(optimizer) else "lr"]
    return torch_schedules.CosineAnnealingLR(optimizer, T_max=steps, eta_min=floor)


def _step(cfg: SchedulerConfig, optimizer: Optimizer, steps: int, per_epoch: int) -> Body:
    return torch_schedules.StepLR(optimizer, step_size=int(_set(cfg.step_epochs)) * per_epoch, gamma=_set(cfg.gamma))


def _onecycle(cfg: SchedulerConfig, optimizer: Optimizer, steps: int, per_epoch: int) -> Body:
    peak = optimizer.param_groups[0]["lr"]
    # one step more than will be taken: the schedule is asked for a rate after the last batch too
    share = _set(cfg.warmup_fraction)
    if share * (steps + 1) == 1:  # a rise of no steps at all, by whose length torch would divide
        share *= 1 + 1e-9
    return torch_schedules.OneCycleLR(optimizer, max_lr=peak, total_steps=steps + 1, cycle_momentum=False, pct_start=share)


_BODIES: dict[str, Callable[[SchedulerConfig, Optimizer, int, int], Body]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
    "plateau": _constant,
    "onecycle": _onecycle,
}


def _in_turn(optimizer: Optimizer, rise: Body, body: Body, warmup_steps: int) -> Body:
    """Return the warm-up followed by the body, or whichever of the two there is."""
    if rise is None or body is None:
        return rise or body
    return torch_schedules.SequentialLR(optimizer, [rise, body], milestones=[warmup_steps])


def _make_plateau(cfg: SchedulerConfig, optimizer: Optimizer) -> torch_schedules.ReduceLROnPlateau:
    return torch_schedules.ReduceLROnPlateau(optimizer, factor=_set(cfg.gamma), patience=int(_set(cfg.patience)))


def _warming(optimizer: Optimizer) -> bool:
    return "initial_lr" in optimizer.param_groups[0]


def _set(value: float | None) -> float:
    assert value is not None, "the configuration resolves every option of a chosen name"
    return value
