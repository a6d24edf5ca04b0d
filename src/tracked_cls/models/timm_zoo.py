"""All networks of timm, as ``timm/<name>``. The one module of the package that imports it: it takes seconds.

timm (PyTorch Image Models) is by Ross Wightman: https://github.com/huggingface/pytorch-image-models
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError, did_you_mean
from tracked_cls.models import arguments
from tracked_cls.models.paths import set_dropout
from tracked_cls.models.shape import Shape
from tracked_cls.models.stems import fit_stem

_OURS = {
    "num_classes": "the data",
    "in_chans": "the data's channels",
    "img_size": "data.image_size",
    "drop_rate": "model.dropout",
}


def names() -> list[str]:
    """Return timm's names, without tags of weights and without its deprecated ones."""
    import timm  # seconds, and only networks of timm need it

    return list(timm.list_models())


def check_name(name: str) -> None:
    """Raise `UserError` with the near match for what timm does not know: ``<architecture>`` or ``<architecture>.<tag>``."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"unknown model 'timm/{name}'{did_you_mean(f'timm/{name}', [f'timm/{known}' for known in names()])}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(f"unknown weights {tag!r} of model timm/{architecture}{did_you_mean(tag, tags)}")


def image_size(name: str) -> int:
    """Return the side in pixels of the images that a network was designed for."""
    import timm

    facts: Any = timm.get_pretrained_cfg(name)
    return int(facts.input_size[1])


def build(cfg: ModelConfig, name: str, shape: Shape) -> nn.Module:
    """Build timm's network `name` (without the prefix) for single images, with fresh weights."""
    check_name(name)
    ours: dict[str, Any] = {"num_classes": shape.num_classes, "in_chans": shape.channels}
    with torch.device("meta"):  # shapes only: no memory, and no random numbers
        takes = arguments.optional(type(_create(cfg, name, shape, {})))
    if "img_size" in takes:
        ours["img_size"] = shape.image_size
    if "drop_rate" in takes and cfg.dropout is not None:
        ours["drop_rate"] = cfg.dropout
    arguments.check_names(f"model {cfg.name}", cfg.args, takes, ours=_OURS)
    model = _create(cfg, name, shape, {**ours, **cfg.args})
    fit_stem(model, cfg.name, cfg.stem, shape, rigid=_is_rigid(model), fits_channels=True)
    if cfg.dropout is not None and "drop_rate" not in takes:
        set_dropout(model, cfg.dropout)
    return model


def _create(cfg: ModelConfig, name: str, shape: Shape, given: dict[str, Any]) -> nn.Module:
    import timm

    return arguments.construct(
        f"model {cfg.name}", timm.create_model, {"model_name": name, "pretrained": False, **given}, shape=shape
    )


def _is_rigid(model: nn.Module) -> bool:
    """Return whether the grid is laid out for one size, or several convolutions read the image side by side."""
    facts: Any = getattr(model, "pretrained_cfg", {})
    return bool(facts.get("fixed_input_size")) or not isinstance(facts.get("first_conv"), str)
