"""A user's own network, by import path. Import paths stand in the configuration, which is trusted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from tracked_cls import plugins
from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import arguments
from tracked_cls.models.paths import set_dropout
from tracked_cls.models.shape import Shape


def build(cfg: ModelConfig, shape: Shape) -> nn.Module:
    """Call the class or function that the name (``my_pkg.nets:Net``) stands for, for single images.

    It gets ``model.args``, and those of num_classes, in_channels (channels, in_chans), image_size (img_size) and dropout
    that it takes by name.
    """
    name = cfg.name
    constructor = plugins.load(name, "model")
    if isinstance(constructor, nn.Module) or not callable(constructor):
        raise UserError(f"model {name} is no class or function: name what makes the network, so that each run gets a fresh one")
    takes = arguments.named(constructor)
    offered = {key: value for key, value in _offered(cfg, shape).items() if key in takes}
    if not arguments.takes_any(constructor):
        arguments.check_names(f"model {name}", cfg.args, takes)
    given = {**offered, **cfg.args}
    _check_complete(name, constructor, given)
    model = arguments.construct(f"model {name}", constructor, given)
    if cfg.dropout is not None and "dropout" not in takes:
        set_dropout(model, cfg.dropout)
    return model


def _offered(cfg: ModelConfig, shape: Shape) -> dict[str, Any]:
    return {
        "num_classes": shape.num_classes,
        **dict.fromkeys(("in_channels", "channels", "in_chans"), shape.channels),
        **dict.fromkeys(("image_size", "img_size"), shape.image_size),
        **({} if cfg.dropout is None else {"dropout": cfg.dropout}),
    }


def _check_complete(name: str, constructor: Callable[..., Any], given: dict[str, Any]) -> None:
    parameters = arguments.named(constructor).items()
    missing = [key for key, item in parameters if item.default is item.empty and key not in given]
    if missing:
        raise UserError(f"model {name} needs the argument {missing[0]!r}; set model.args.{missing[0]}")
    try:
        inspect.signature(constructor).bind(**given)
    except TypeError as error:  # arguments that have a place and no name
        raise UserError(f"model {name} cannot be called with arguments by name: {error}") from None
