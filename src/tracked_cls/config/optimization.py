"""Options of the optimizer and of the learning-rate schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from pydantic import model_validator

from tracked_cls.config.choice import Choice, Own, names_by_default, require_numbers
from tracked_cls.config.tree import option
from tracked_cls.errors import UserError

_MOMENTUM = {"momentum": 0.9, "nesterov": True}
_BETAS = {"beta1": 0.9, "beta2": 0.999}
_ADAM = {**_BETAS, "eps": 1e-8}
# Left out: LBFGS and AdaHessian (need the loss evaluated anew or second derivatives), SparseAdam (sparse gradients), Rprop
# (whole data set as one batch), Kron (compiles itself, draws from a generator of its own), and what needs apex or bitsandbytes.
_OPTIMIZERS: Own = {
    "sgd": {"lr": 0.05, "weight_decay": 5e-4, **_MOMENTUM},
    "adam": {"lr": 1e-3, "weight_decay": 0.0, **_ADAM},
    "adamw": {"lr": 2e-3, "weight_decay": 0.05, **_ADAM},
    "rmsprop": {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.0, "eps": 1e-8},
    "radam": {"lr": 1e-3, "weight_decay": 0.0, **_ADAM},
    "nadam": {"lr": 2e-3, "weight_decay": 0.0, **_ADAM},
    "adagrad": {"lr": 1e-2, "weight_decay": 0.0, "eps": 1e-10},
    "adadelta": {"lr": 1.0, "weight_decay": 0.0, "eps": 1e-6},
    "adamax": {"lr": 2e-3, "weight_decay": 0.0, **_ADAM},
    "asgd": {"lr": 0.05, "weight_decay": 5e-4},
    "adafactor": {"lr": 1e-2, "weight_decay": 0.0},
    "ranger": {"lr": 2e-3, "weight_decay": 0.0, **_ADAM},
    "adabelief": {"lr": 1e-3, "weight_decay": 0.01, **_BETAS, "eps": 1e-16},
    "adamp": {"lr": 1e-3, "weight_decay": 0.01, **_ADAM},
    "adamuon": {"lr": 2e-3, "weight_decay": 0.05, "momentum": 0.95, "nesterov": True, "beta1": 0.9, "beta2": 0.95, "eps": 1e-7},
    "adan": {"lr": 1e-3, "weight_decay": 0.02, "eps": 1e-8},
    "adopt": {"lr": 1e-3, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.9999, "eps": 1e-6},
    "lamb": {"lr": 2e-3, "weight_decay": 0.01, **_BETAS, "eps": 1e-6},
    "laprop": {"lr": 4e-4, "weight_decay": 0.01, **_BETAS, "eps": 1e-15},
    "lars": {"lr": 0.5, "weight_decay": 5e-4, **_MOMENTUM, "eps": 1e-8},
    "lion": {"lr": 3e-4, "weight_decay": 0.3, "beta1": 0.9, "beta2": 0.99},
    "madgrad": {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.9, "eps": 1e-6},
    "mars": {"lr": 2e-3, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8},
    "muon": {"lr": 2e-3, "weight_decay": 0.05, "momentum": 0.95, "nesterov": True, "beta1": 0.9, "beta2": 0.95, "eps": 1e-7},
    "nadamw": {"lr": 2e-3, "weight_decay": 0.05, **_ADAM},
    "novograd": {"lr": 1e-2, "weight_decay": 1e-3, "beta1": 0.95, "beta2": 0.98, "eps": 1e-8},
    "sgdp": {"lr": 0.05, "weight_decay": 5e-4, **_MOMENTUM, "eps": 1e-8},
    "sgdw": {"lr": 0.05, "weight_decay": 5e-3, **_MOMENTUM},
}


def _auto(own: Own, key: str, meaning: str) -> str:
    return f"{meaning}; auto: {names_by_default(own, key)}"


class OptimizerConfig(Choice):
    """How weights move. Unset options take the optimizer's own default."""

    title: ClassVar[str] = "optimizer"
    own: ClassVar[Own] = _OPTIMIZERS
    name: str = option("adamw", "the optimizer", choices=list(_OPTIMIZERS))
    lr: float | None = option(None, _auto(_OPTIMIZERS, "lr", "peak learning rate"), unset="auto", gt=0, le=100)
    weight_decay: float | None = option(
        None, _auto(_OPTIMIZERS, "weight_decay", "decay of weights, none on norms and biases"), unset="auto", ge=0, le=10
    )
    momentum: float | None = option(None, _auto(_OPTIMIZERS, "momentum", "momentum"), unset="auto", ge=0, lt=1)
    nesterov: bool | None = option(None, _auto(_OPTIMIZERS, "nesterov", "momentum that looks ahead"), unset="auto")
    beta1: float | None = option(
        None, _auto(_OPTIMIZERS, "beta1", "decay per step of the mean of gradients"), unset="auto", ge=0, lt=1
    )
    beta2: float | None = option(
        None, _auto(_OPTIMIZERS, "beta2", "decay per step of the mean of squared gradients"), unset="auto", ge=0, lt=1
    )
    eps: float | None = option(None, _auto(_OPTIMIZERS, "eps", "what keeps a division finite"), unset="auto", gt=0, le=1)
    args: dict[str, Any] = option({}, "other arguments of the optimizer's constructor, by their own names ({amsgrad: true})")
    layer_decay: float | None = option(
        None, "lr of each layer as a share of the lr of the layer above it; the head keeps lr", unset="off", gt=0, lt=1
    )
    lr_ratios: dict[str, Any] = option(
        {}, "{pattern: ratio}: parameters whose names match, with * and ?, learn at ratio times lr; the first match counts"
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0")
        return self

    @model_validator(mode="after")
    def _ratios_are_positive(self) -> OptimizerConfig:
        require_numbers("optimizer.lr_ratios", self.lr_ratios.values())
        for pattern, ratio in self.lr_ratios.items():
            if not 0 < ratio <= 1e4:
                raise UserError(
                    f"optimizer.lr_ratios: {pattern!r} must be above 0 and at most 10000, got {ratio:g}; to keep parameters "
                    "as they are use freeze.patterns"
                )
        return self


_WARM = {"warmup_epochs": 0.0}
_SCHEDULES: Own = {
    "constant": {**_WARM},
    "cosine": {**_WARM, "final_ratio": 0.0},
    "linear": {**_WARM, "final_ratio": 0.0},
    "polynomial": {**_WARM, "final_ratio": 0.0, "power": 2.0},
    "exponential": {**_WARM, "gamma": 0.95},
    "step": {**_WARM, "step_epochs": 10, "gamma": 0.1},
    "multistep": {**_WARM, "milestones": [], "gamma": 0.1},
    "plateau": {**_WARM, "patience": 3, "gamma": 0.1, "final_ratio": 0.0},
    "warm_restarts": {**_WARM, "cycle_epochs": 10.0, "cycle_factor": 1.0, "final_ratio": 0.0},
    "cyclic": {**_WARM, "cycle_epochs": 10.0, "gamma": 1.0, "start_ratio": 0.1},
    "onecycle": {"warmup_epochs": None, "warmup_fraction": 0.3, "start_ratio": 0.04, "final_ratio": 4e-6},
}


class SchedulerConfig(Choice):
    """How the learning rate moves over the run. Unset options take the schedule's own default."""

    title: ClassVar[str] = "scheduler"
    own: ClassVar[Own] = _SCHEDULES
    name: str = option("onecycle", "the schedule; steps after every batch, plateau after every epoch", choices=list(_SCHEDULES))
    warmup_epochs: float | None = option(
        None,
        "linear warm-up in front of the schedule, from a hundredth of lr; onecycle: length of its own rise; auto: 0, onecycle: "
        "by warmup_fraction",
        unit="epochs",
        unset="auto",
        ge=0,
        le=1000,
    )
    warmup_fraction: float | None = option(
        None, "onecycle: share of the run with rising lr; auto: 0.3", unset="auto", gt=0, lt=1
    )
    start_ratio: float | None = option(
        None, _auto(_SCHEDULES, "start_ratio", "lowest lr of a rise, as a share of the peak"), unset="auto", gt=0, le=1
    )
    final_ratio: float | None = option(
        None, _auto(_SCHEDULES, "final_ratio", "last or lowest lr as a share of the peak"), unset="auto", ge=0, lt=1
    )
    power: float | None = option(None, "polynomial: exponent; auto: 2", unset="auto", gt=0, le=100)
    step_epochs: int | None = option(None, "step: epochs between two drops; auto: 10", unit="epochs", unset="auto", ge=1)
    milestones: list[Any] | None = option(
        None, "multistep: epochs after which lr drops, counted from the start of the run", unit="epochs", unset="none"
    )
    gamma: float | None = option(
        None,
        _auto(_SCHEDULES, "gamma", "factor of each drop; exponential: of each epoch; cyclic: of the height of each cycle"),
        unset="auto",
        gt=0,
        le=1,
    )
    patience: int | None = option(
        None, "plateau: epochs without a lower val_loss before a drop; auto: 3", unit="epochs", unset="auto", ge=0
    )
    cycle_epochs: float | None = option(
        None, "warm_restarts: length of the first cycle; cyclic: of a rise and a fall; auto: 10", unit="epochs", unset="auto",
        ge=0.1,
    )  # fmt: skip
    cycle_factor: float | None = option(
        None, "warm_restarts: how much longer each cycle is than the one before; auto: 1", unset="auto", ge=1, le=100
    )

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Return what takes back onecycle's own rise where its length in epochs is given; both are an error."""
        if given.get("name", "onecycle") != "onecycle" or "warmup_epochs" not in given:
            return {}
        if "warmup_fraction" in given:
            raise UserError(
                "scheduler.warmup_epochs and scheduler.warmup_fraction both set the rise of onecycle; set one to auto"
            )
        return {"warmup_fraction": None}

    @model_validator(mode="after")
    def _milestones_follow_each_other(self) -> SchedulerConfig:
        if self.name != "multistep":
            return self
        if not self.milestones:
            raise UserError("scheduler=multistep needs scheduler.milestones, the epochs after which lr drops ([30, 60])")
        require_numbers("scheduler.milestones", self.milestones)
        marks = [self.warmup_epochs or 0.0, *self.milestones]
        if min(self.milestones) <= 0 or any(after <= before for before, after in pairwise(marks)):
            raise UserError(f"scheduler.milestones must rise, above 0 and after the warm-up, got {self.milestones}")
        return self
