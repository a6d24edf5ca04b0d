"""The modules of a network by their dotted paths: the one that classifies, and how one is put in another's place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from tracked_cls.errors import UserError
from tracked_cls.models.clips import PooledFrames

_CLASSIFYING = (nn.Linear, nn.Conv2d)  # a convolution in squeezenet


def heads_of(model: nn.Module) -> list[str]:
    """Return the paths of the layers that give logits, a Linear or a Conv2d each, without the dropout before it.

    Each is the last such layer of what ``get_classifier()`` returns, where the network has that method, as timm's have; else
    the last of the network, in the order of its declaration. There are two in distilled networks, which take the mean.
    Raises `UserError` for a network without such a layer.
    """
    if isinstance(model, PooledFrames):
        return [f"network.{path}" for path in heads_of(model.network)]
    paths = [path for path, module in model.named_modules() if isinstance(module, _CLASSIFYING)]
    named = [_last_below(place, paths) for place in _classifiers(model)]
    heads = [path for path in named if path is not None] or paths[-1:]
    if not heads:
        raise UserError(f"the network {type(model).__name__} has no Linear and no Conv2d layer that could be its head")
    return heads


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the path and the module of the convolution that sees the image, the first declared; None where there is none."""
    return next(((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the dropout before the head, adding one where the architecture has none."""
    for path in heads_of(model):
        parent = model.get_submodule(path.rpartition(".")[0])
        dropouts = [module for module in parent.children() if isinstance(module, nn.Dropout)]
        for dropout in dropouts:
            dropout.p = p
        if not dropouts:
            replace(model, path, nn.Sequential(nn.Dropout(p), model.get_submodule(path)))


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _classifiers(model: nn.Module) -> Iterable[str]:
    """Yield the paths of what the network itself calls its classifier."""
    own = model.get_classifier() if callable(getattr(model, "get_classifier", None)) else ()  # type: ignore[operator]
    wanted = own if isinstance(own, (tuple, list, nn.ModuleList)) else (own,)
    return [path for path, module in model.named_modules() if any(module is classifier for classifier in wanted)]


def _last_below(place: str, paths: list[str]) -> str | None:
    return next((path for path in reversed(paths) if path == place or path.startswith(f"{place}.")), None)
