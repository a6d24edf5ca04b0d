"""Optimizers by name: torch's own, and timm's for what torch lacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tracked_cls.config import OptimizerConfig
from tracked_cls.errors import UserError, did_you_mean, lookup
from tracked_cls.optim.eager import eager
from tracked_cls.optim.groups import parameter_groups
from tracked_cls.optim.ranger import Ranger

Make = Callable[..., Optimizer]
_LEAST = 4  # rows and columns of a matrix that muon takes for one
# what would turn learning round, or belongs to `performance`
_NOT_OFFERED = {"params", "maximize", "fused", "foreach", "capturable", "differentiable", "verbose"}

_TORCH: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
    "ranger": Ranger,
}
# name -> timm's class, and what is set for it
_TIMM: Mapping[str, tuple[str, dict[str, Any]]] = {
    "adabelief": ("AdaBelief", {"rectify": False}),
    "adamp": ("AdamP", {"wd_ratio": 0.01, "nesterov": True}),
    "adamuon": ("Muon", {"algo": "adamuon"}),
    "adan": ("Adan", {}),
    "adopt": ("Adopt", {"decoupled": True}),
    "lamb": ("Lamb", {}),
    "laprop": ("LaProp", {}),
    "lars": ("Lars", {}),
    "lion": ("Lion", {}),
    "madgrad": ("MADGRAD", {}),
    "mars": ("Mars", {}),
    "muon": ("Muon", {}),
    "nadamw": ("NAdamW", {}),
    "novograd": ("NvNovoGrad", {}),
    "sgdp": ("SGDP", {}),
    "sgdw": ("SGDW", {}),
}


def make_optimizer(cfg: OptimizerConfig, model: nn.Module, *, fused: bool, frozen: Set[str] = frozenset()) -> Optimizer:
    """Build the optimizer over all parameters but the `frozen` ones, by name; `fused` where it can.

    Not where some are frozen for a while: torch's fused SGD fails on a parameter whose first gradient comes later.
    Raises `UserError` for arguments that its constructor does not take, and for patterns that match nothing.
    """
    groups = parameter_groups(cfg, model, frozen)
    all_learn = all(parameter.requires_grad for group in groups for parameter in group["params"])
    return _build(cfg, groups, fused=fused and all_learn)


def check(cfg: OptimizerConfig) -> None:
    """Raise `UserError` for arguments that the optimizer does not take, before any network is there.

    Some values fail in a step only: in the second one what looks back, in fused ones what a plain one takes for true.
    """
    parameters = [nn.Parameter(torch.zeros(_LEAST, _LEAST)), nn.Parameter(torch.zeros(_LEAST))]
    optimizer = _build(cfg, [{"params": parameters}], fused=True)
    try:
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    except Exception as error:  # whatever a library says of values it did not look at before
        raise _unfit(cfg, error) from None


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what ``state_dict`` gave, each tensor with its parameter's strides.

    Fused optimizers on CPU read raw memory and do not check: with other strides their update would be silently wrong.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _build(cfg: OptimizerConfig, groups: list[dict[str, Any]], *, fused: bool) -> Optimizer:
    make, fixed = _maker(cfg.name)
    taken, common = set(inspect.signature(make).parameters), _common(cfg)
    _require_taken(cfg, taken - set(common) - _NOT_OFFERED)
    quick = {"fused": True} if fused and "fused" in taken else {}
    try:
        return make(groups, **{**common, **fixed, **quick, **cfg.args})
    except Exception as error:  # whatever a library says of the values
        raise _unfit(cfg, error) from None


def _unfit(cfg: OptimizerConfig, error: Exception) -> UserError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"optimizer={cfg.name} cannot be built with optimizer.args={cfg.args}: {line}")


def _common(cfg: OptimizerConfig) -> dict[str, Any]:
    """Return the options that have a name of their own, as a constructor takes them."""
    options = {key: getattr(cfg, key) for key in cfg.own[cfg.name]}
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    return options


def _require_taken(cfg: OptimizerConfig, known: Set[str]) -> None:
    for key in cfg.args:
        if key in _common(cfg):
            own = "optimizer.beta1 and optimizer.beta2" if key == "betas" else f"optimizer.{key}"
            raise UserError(f"optimizer.args: set {key} as {own}")
        if key not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise UserError(f"optimizer.args: {cfg.name} takes no {key!r}{did_you_mean(key, known)}; it takes {takes}")


def _maker(name: str) -> tuple[Make, dict[str, Any]]:
    if name in _TIMM:
        import timm.optim  # seconds of import that torch's own optimizers do without

        kind, fixed = _TIMM[name]
        made: Make = getattr(timm.optim, kind)
        return made, fixed
    return eager(lookup(name, _TORCH, "optimizer")), {}
