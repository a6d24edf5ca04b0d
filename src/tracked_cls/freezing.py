"""Parameters that stay as they are: which ones, for how long, and the BatchNorm that goes with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls.config import FreezeConfig
from tracked_cls.errors import UserError, did_you_mean
from tracked_cls.models import PooledFrames, heads_of

_IN_CLIPS = "network."  # where `PooledFrames` keeps the network of images; people name the layers of the latter
_HELD = "held_in_evaluation"


def chosen(cfg: FreezeConfig, model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters to freeze.

    Raises `UserError` for an option that chooses nothing, for a layer there is not, and where nothing would be left to learn.
    """
    prefix = _IN_CLIPS if isinstance(model, PooledFrames) else ""
    names = [name.removeprefix(prefix) for name, _ in model.named_parameters()]
    found = _by_pattern(cfg, names) | _by_layer(cfg, names) | set(names[: cfg.first or 0])
    if cfg.all_but_head:
        found |= _but_head(names, [head.removeprefix(prefix) for head in heads_of(model)])
    if found and found.issuperset(names):
        raise UserError(f"freeze chooses all {len(names)} parameters: nothing would learn; leave out the head at least")
    return frozenset(f"{prefix}{name}" for name in found)


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Take these parameters out of training: they get no gradient, and torch's optimizers pass over such."""
    for name in names:
        parameter = model.get_parameter(name)
        parameter.requires_grad_(False)
        parameter.grad = None
    _mark(model)


def thaw(model: nn.Module, names: Iterable[str]) -> None:
    """Let these parameters learn again, and their BatchNorm with the next ``model.train()``.

    A moving average of the network is a copy, and wants its own thaw.
    """
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    _mark(model)


def summary(model: nn.Module, frozen: Collection[str]) -> str:
    """Return in one line how much is frozen, and what still learns."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(sizes[name] for name in frozen) / sum(sizes.values())
    learns = [name for name in sizes if name not in frozen]
    some = ", ".join(learns[:4]) + (f" and {len(learns) - 4} more" if len(learns) > 4 else "")
    return f"{len(frozen)} of {len(sizes)} parameters ({share:.1%} of the weights); learning: {some}"


def hold_batchnorm(model: nn.Module) -> None:
    """Keep the BatchNorm of frozen parts in evaluation, so that its statistics stay; call it after every ``model.train()``."""
    for module in model.modules():
        if is_held(module):
            module.eval()


def is_held(module: nn.Module) -> bool:
    """Return whether a module is the BatchNorm of a frozen part, whose statistics stay; in a copy of the network too."""
    return bool(getattr(module, _HELD, False))


def _mark(model: nn.Module) -> None:
    """Note at every BatchNorm whether it is held: all its parameters are frozen.

    One without parameters goes with the nearest module around it that has some.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, _BatchNorm):
            setattr(module, _HELD, _is_frozen(name, modules))


def _is_frozen(name: str, modules: Mapping[str, nn.Module]) -> bool:
    parameters = list(modules[name].parameters())
    if not parameters and name:
        return _is_frozen(name.rpartition(".")[0], modules)
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


# ---- the ways to choose ----------------------------------------------------------------------------------------------


def _by_pattern(cfg: FreezeConfig, names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in cfg.patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            known = {*names, *(f"{layer}.*" for layer in _layers(names))}
            raise UserError(f"freeze.patterns: {pattern!r} matches no parameter{did_you_mean(pattern, known)}{_parts(names)}")
        found |= matched
    return found


def _by_layer(cfg: FreezeConfig, names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for layer in cfg.layers:
        matched = {name for name in names if name.startswith(f"{layer}.")}
        if not matched:
            near = did_you_mean(layer, _layers(names))
            raise UserError(f"freeze.layers: there is no layer {layer!r} with parameters{near}{_parts(names)}")
        found |= matched
    return found


def _but_head(names: Sequence[str], heads: Sequence[str]) -> set[str]:
    within = tuple(f"{head}." for head in heads)
    body = {name for name in names if not name.startswith(within)}
    if not body:
        raise UserError("freeze.all_but_head has no effect: the network is its head")
    return body


def _layers(names: Sequence[str]) -> set[str]:
    """Return every module that has parameters, by name."""
    parts = [name.split(".")[:-1] for name in names]
    return {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}


def _parts(names: Sequence[str]) -> str:
    """Return the network's outermost parts as the end of an error."""
    outer = list(dict.fromkeys(name.split(".")[0] for name in names))
    return f"; its outermost parts are {', '.join(outer[:12])}{', ...' if len(outer) > 12 else ''}"
