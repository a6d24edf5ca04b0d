"""Learning-rate schedules by name, each a formula of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.optim import Optimizer

from tracked_cls.config import SchedulerConfig
from tracked_cls.errors import lookup

_WARMUP_START = 1e-2
_THRESHOLD = 1e-4  # by which share a loss must be lower to count as lower, as in torch's plateau


class Span(NamedTuple):
    """The steps that a formula covers: `total` of them after `warmup` ones, `per_epoch` in an epoch."""

    total: int
    per_epoch: int
    warmup: int


Formula = Callable[[SchedulerConfig, int, Span], float]


@dataclass
class Plateau:
    """How often a loss has stopped falling: counted once it was not lower for more than `patience` epochs."""

    patience: int
    best: float = math.inf
    stale: int = 0
    drops: int = 0

    def see(self, loss: float) -> None:
        """Take in the loss of an epoch."""
        self.stale += 1
        if loss < self.best * (1 - _THRESHOLD):
            self.best, self.stale = loss, 0
        if self.stale > self.patience:
            self.drops, self.stale = self.drops + 1, 0


class Schedule:
    """The learning rate over a run: `after_step` once per batch, `after_epoch` once per epoch.

    Every group of parameters keeps its own peak. Warm-up runs in front of any schedule, plateau included; one-cycle (Smith
    and Topin, "Super-Convergence", 2018) has a rise of its own. `scale` multiplies every rate inside `scaled`.
    """

    def __init__(self, cfg: SchedulerConfig, optimizer: Optimizer, *, total_steps: int, steps_per_epoch: int) -> None:
        self.optimizer, self.scale = optimizer, 1.0
        self._cfg, self._formula = cfg, lookup(cfg.name, _FORMULAS, "scheduler")
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        own_rise = cfg.name == "onecycle"
        warmup = 0 if own_rise else min(round((cfg.warmup_epochs or 0.0) * steps_per_epoch), total_steps - 1)
        self._span = Span(total_steps - warmup, steps_per_epoch, warmup)
        self._plateau = Plateau(int(_set(cfg.patience))) if cfg.name == "plateau" else None
        self._step = 0
        self._apply()

    @property
    def lr(self) -> float:
        """The rate of the next step, for parameters whose own ratio is 1."""
        return float(self.optimizer.defaults["lr"]) * self._factor() * self.scale

    def after_step(self) -> None:
        """Move on by one batch."""
        self._step += 1
        self._apply()

    def after_epoch(self, epoch: int, val_loss: float) -> None:
        """Move on by one epoch (`epoch` counts from 1); only plateau looks at the loss, and not during warm-up."""
        if self._plateau is not None and epoch > (self._cfg.warmup_epochs or 0.0):
            self._plateau.see(val_loss)
            self._apply()

    @contextmanager
    def scaled(self) -> Iterator[None]:
        """Multiply every rate by `scale` for the time of a step."""
        self._apply(self.scale)
        try:
            yield
        finally:
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values only, fit for `torch.load(weights_only=True)`."""
        plateau = {} if self._plateau is None else {name: getattr(self._plateau, name) for name in ("best", "stale", "drops")}
        return {"step": self._step, "scale": self.scale, "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._step, self.scale = int(state["step"]), float(state["scale"])
        for name, value in state["plateau"].items():
            setattr(self._plateau, name, value)
        self._apply()

    def _apply(self, scale: float = 1.0) -> None:
        factor = self._factor() * scale
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    def _factor(self) -> float:
        """Return the rate of the next step as a share of the peak."""
        cfg, span = self._cfg, self._span
        if self._step < span.warmup:
            return _WARMUP_START + (1 - _WARMUP_START) * self._step / span.warmup
        if self._plateau is not None:
            return max(_set(cfg.gamma) ** self._plateau.drops, _set(cfg.final_ratio))
        return self._formula(cfg, min(self._step - span.warmup, span.total), span)


# ---- the rate at a step after warm-up, as a share of the peak -------------------------------------------------------------


def _constant(cfg: SchedulerConfig, step: int, span: Span) -> float:
    return 1.0


def _cosine(cfg: SchedulerConfig, step: int, span: Span) -> float:
    return _swing(1.0, _set(cfg.final_ratio), step / span.total)


def _linear(cfg: SchedulerConfig, step: int, span: Span) -> float:
    return _between(_set(cfg.final_ratio), 1.0, 1 - step / span.total)


def _polynomial(cfg: SchedulerConfig, step: int, span: Span) -> float:
    return _between(_set(cfg.final_ratio), 1.0, (1 - step / span.total) ** _set(cfg.power))


def _exponential(cfg: SchedulerConfig, step: int, span: Span) -> float:
    """Return a smooth fall, by gamma in every epoch."""
    return float(_set(cfg.gamma) ** (step / span.per_epoch))


def _step(cfg: SchedulerConfig, step: int, span: Span) -> float:
    return float(_set(cfg.gamma) ** (step // (int(_set(cfg.step_epochs)) * span.per_epoch)))


def _multistep(cfg: SchedulerConfig, step: int, span: Span) -> float:
    """Return a drop at every milestone, in epochs from the start of the run, warm-up included."""
    passed = [mark for mark in cfg.milestones or [] if step + span.warmup >= round(mark * span.per_epoch)]
    return float(_set(cfg.gamma) ** len(passed))


def _warm_restarts(cfg: SchedulerConfig, step: int, span: Span) -> float:
    """Return Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5."""
    length, into = _set(cfg.cycle_epochs) * span.per_epoch, float(step)
    while into >= length:
        into, length = into - length, length * _set(cfg.cycle_factor)
    return _swing(1.0, _set(cfg.final_ratio), into / length)


def _cyclic(cfg: SchedulerConfig, step: int, span: Span) -> float:
    """Return Smith, "Cyclical Learning Rates", 2017: a triangle from the lowest rate, its height times gamma each cycle."""
    cycles, into = divmod(step / (_set(cfg.cycle_epochs) * span.per_epoch), 1)
    low = _set(cfg.start_ratio)
    return float(_between(low, 1.0, (1 - abs(2 * into - 1)) * _set(cfg.gamma) ** cycles))


def _onecycle(cfg: SchedulerConfig, step: int, span: Span) -> float:
    """Return a cosine up to the peak and a cosine down. The peak lies where torch's OneCycleLR has it."""
    if cfg.warmup_epochs is None:
        top = max(_set(cfg.warmup_fraction) * (span.total + 1) - 1, 0.0)
    else:
        top = min(cfg.warmup_epochs * span.per_epoch, span.total - 1.0)
    if step < top:
        return _swing(_set(cfg.start_ratio), 1.0, step / top)
    return _swing(1.0, _set(cfg.final_ratio), (step - top) / (span.total - top))


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _swing(start: float, end: float, progress: float) -> float:
    """Return half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


_FORMULAS: Mapping[str, Formula] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "exponential": _exponential,
    "step": _step,
    "multistep": _multistep,
    "plateau": _constant,
    "warm_restarts": _warm_restarts,
    "cyclic": _cyclic,
    "onecycle": _onecycle,
}


def schedule_warnings(cfg: SchedulerConfig, epochs: float) -> list[str]:
    """Return a line for every part of a schedule that a run of so many epochs does not reach."""
    left = epochs - (cfg.warmup_epochs or 0.0)
    run = f"the run has {epochs:g} epochs" + (f", {cfg.warmup_epochs:g} of them warm-up" if cfg.warmup_epochs else "")
    if left <= 0:
        return [f"scheduler.warmup_epochs={cfg.warmup_epochs:g} is no shorter than the run: lr never gets past the warm-up"]
    late = [mark for mark in cfg.milestones or [] if mark >= epochs]
    found = {
        f"scheduler.step_epochs={cfg.step_epochs}: lr never drops": cfg.name == "step" and _set(cfg.step_epochs) >= left,
        f"scheduler.milestones: lr never drops at {late}": bool(late),
        f"scheduler.patience={cfg.patience}: lr never drops": cfg.name == "plateau" and _set(cfg.patience) + 1 >= left,
        f"scheduler.cycle_epochs={cfg.cycle_epochs or 0:g}: lr never gets through a cycle": (cfg.cycle_epochs or 0.0) > left,
    }
    return [f"{what}, for {run}" for what, is_so in found.items() if is_so]


def _set(value: float | None) -> float:
    assert value is not None, "the configuration resolves every option of a chosen name"
    return value
