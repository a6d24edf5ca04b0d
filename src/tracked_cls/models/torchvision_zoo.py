"""All classification networks of torchvision. The one module of the package that imports it: it takes four seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tracked_cls.config import ModelConfig
from tracked_cls.errors import lookup
from tracked_cls.models import arguments
from tracked_cls.models.paths import set_dropout
from tracked_cls.models.shape import Shape
from tracked_cls.models.stems import fit_stem

IMAGE_SIZE = 224  # pixels, which every one of them takes
_RIGID = ("alexnet", "convnext", "maxvit", "swin", "vgg", "vit")
_SIZE_ARGUMENT = {"vit": "image_size", "maxvit": "input_size"}
_WITHOUT_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True, "transform_input": False}
_OURS = {
    "num_classes": "the data",
    "image_size": "data.image_size",
    "input_size": "data.image_size",
    "aux_logits": "our loop, which has no loss for auxiliary heads",
    "transform_input": "transforms.normalize",
    "init_weights": "model.weights",
}


def builders() -> dict[str, Callable[..., nn.Module]]:
    """Return the functions that build torchvision's classification networks, by name."""
    from torchvision import models as zoo  # 4 s of import that small_cnn and evaluation of it do without

    return {name: zoo.get_model_builder(name) for name in zoo.list_models(module=zoo)}


def build(cfg: ModelConfig, name: str, shape: Shape) -> nn.Module:
    """Build torchvision's network `name` for single images, with fresh weights."""
    builder = lookup(name, builders(), "model")
    ours = {"num_classes": shape.num_classes, **_arguments(name, shape)}
    if cfg.args:
        _check_arguments(cfg, builder, ours, shape)
    model = arguments.construct(f"model {cfg.name}", builder, {"weights": None, **ours, **cfg.args}, shape=shape)
    fit_stem(model, cfg.name, cfg.stem, shape, rigid=name.startswith(_RIGID))
    if cfg.dropout is not None:
        set_dropout(model, cfg.dropout)
    return model


def _arguments(name: str, shape: Shape) -> dict[str, Any]:
    """Return what some architectures want to know beforehand."""
    size_argument = _SIZE_ARGUMENT.get(name.partition("_")[0])
    if size_argument:
        return {size_argument: shape.image_size if size_argument == "image_size" else (shape.image_size,) * 2}
    return _WITHOUT_AUXILIARY_HEADS if name in ("googlenet", "inception_v3") else {}


def _check_arguments(cfg: ModelConfig, builder: Callable[..., nn.Module], ours: dict[str, Any], shape: Shape) -> None:
    """Compare with the class behind the builder, which takes any argument and passes it on."""
    with torch.device("meta"):  # shapes only: no memory, and no random numbers
        network = arguments.construct(f"model {cfg.name}", builder, {"weights": None, **ours}, shape=shape)
    arguments.check_names(f"model {cfg.name}", cfg.args, arguments.optional(type(network)), ours=_OURS)
