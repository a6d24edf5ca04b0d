"""Which parameters learn, each with its own rate and decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tracked_cls.config import OptimizerConfig
from tracked_cls.errors import UserError, did_you_mean

_NUMBERED = re.compile(r"\d$")


def parameter_groups(cfg: OptimizerConfig, model: nn.Module, frozen: Set[str]) -> list[dict[str, Any]]:
    """Return one group per learning rate and decay, of all parameters but the `frozen` ones, by name.

    Norms, biases and what the network itself exempts (timm's ``no_weight_decay``) get no weight decay. A parameter that is
    frozen for a while belongs in: an optimizer passes over one without a gradient.
    """
    ratios, exempt = _ratios(cfg, model, frozen), _exempt(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    assert cfg.lr is not None
    assert cfg.weight_decay is not None
    for name, parameter in model.named_parameters():
        if name in frozen:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in exempt else cfg.weight_decay
        lr = cfg.lr * ratios[name]
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
    assert groups, "freezing everything is refused before"
    return list(groups.values())


def _ratios(cfg: OptimizerConfig, model: nn.Module, frozen: Set[str]) -> dict[str, float]:
    """Return each parameter's learning rate as a share of the configured one."""
    names = [name for name, _ in model.named_parameters()]
    depths = layers_of(model)
    last = max(depths.values())
    if cfg.layer_decay is not None and last == 0:
        raise UserError("optimizer.layer_decay has no effect on a network of one layer")
    _require_effect(cfg.lr_ratios, names, frozen)
    own = {name: _first_match(cfg.lr_ratios, name) for name in names}
    return {name: own[name] * (cfg.layer_decay or 1.0) ** (last - depths[name]) for name in names}


def _first_match(ratios: Mapping[str, float], name: str) -> float:
    return next((ratio for pattern, ratio in ratios.items() if fnmatchcase(name, pattern)), 1.0)


def _require_effect(patterns: Iterable[str], names: list[str], frozen: Set[str]) -> None:
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise UserError(f"optimizer.lr_ratios: no parameter matches {pattern!r}{did_you_mean(pattern, names)}")
        if matched <= frozen:
            raise UserError(f"optimizer.lr_ratios: all that {pattern!r} matches is frozen")


def layers_of(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter by name, counted from 0 in the network's own order; the head comes last.

    A layer is the outermost numbered part a parameter lies in (``features.3``, ``layer2``, ``encoder_layer_0``), else its
    module; what holds norms and biases only belongs to the layer before it.
    """
    depths: dict[str, int] = {}
    depth, current = -1, None
    for name, parameter in model.named_parameters():
        layer = _layer(name)
        if depth < 0 or (layer != current and parameter.ndim > 1):
            depth, current = depth + 1, layer
        depths[name] = depth
    return depths


def _layer(name: str) -> str:
    """Return the path of a parameter up to its first numbered part, or of its module."""
    parts = name.split(".")[:-1]
    numbered = next((place for place, part in enumerate(parts) if _NUMBERED.search(part)), len(parts))
    return ".".join(parts[: numbered + 1])


def _exempt(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a network of timm exempts from weight decay."""
    owners = {path: module for path, module in model.named_modules() if callable(getattr(module, "no_weight_decay", None))}
    return {f"{path}.{name}".lstrip(".") for path, module in owners.items() for name in module.no_weight_decay()}
