"""Networks by name, fitted to the number of classes, the input channels and the image size."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import names, own, sequential, timm_zoo, torchvision_zoo
from tracked_cls.models.arguments import UnfitError, check_names, construct, reason
from tracked_cls.models.clips import PooledFrames
from tracked_cls.models.names import canonical, check_name
from tracked_cls.models.paths import first_convolution, heads_of
from tracked_cls.models.shape import Shape
from tracked_cls.models.small_cnn import SmallCnn

__all__ = [
    "PooledFrames",
    "Shape",
    "SmallCnn",
    "canonical",
    "check_name",
    "count_parameters",
    "first_convolution",
    "heads_of",
    "make_model",
]

_MOST = 512  # pixels: sizes that are tried for an error message
_STEPS = (14, 16)  # what patches and strides divide


def make_model(cfg: ModelConfig, shape: Shape) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises `UserError` for an unknown name or argument, and for a network that cannot take images of this size; it names
    the next size that can be taken.
    """
    _check_options(cfg)
    try:
        return _tried(cfg, shape)
    except UnfitError as error:
        raise UserError(f"{error}{_cure(cfg, shape)}") from error


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def _tried(cfg: ModelConfig, shape: Shape) -> nn.Module:
    model = _network(cfg, shape.of_images)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = cfg.bn_momentum
    if shape.frames is not None:
        model = PooledFrames(model)
    _try_out(model, cfg.name, shape)
    return model


def _network(cfg: ModelConfig, shape: Shape) -> nn.Module:
    name = canonical(cfg.name)
    if name == names.SMALL_CNN:
        check_names(f"model {name}", cfg.args, ["width", "pairs"])
        return construct(f"model {name}", SmallCnn, {"shape": shape, "dropout": cfg.dropout or 0.0, **cfg.args})
    if name == names.SEQUENTIAL:
        return sequential.build(cfg, shape)
    if names.is_own(name):
        return own.build(cfg, shape)
    if name.startswith(names.TIMM):
        return timm_zoo.build(cfg, name.removeprefix(names.TIMM), shape)
    return torchvision_zoo.build(cfg, name, shape)


def _is_ours(name: str) -> bool:
    """Return whether a network is ours or the user's, not a library's."""
    return name in (names.SMALL_CNN, names.SEQUENTIAL) or names.is_own(name)


def _check_options(cfg: ModelConfig) -> None:
    check_name(cfg.name)
    if cfg.stem is not None and _is_ours(cfg.name):
        raise UserError(f"model.stem={cfg.stem} has no effect with model={cfg.name}, which has one stem")
    if cfg.dropout is not None and cfg.name == names.SEQUENTIAL:
        raise UserError("model.dropout has no effect with model=sequential; write {Dropout: {p: ...}} into model.args.layers")


def _try_out(model: nn.Module, name: str, shape: Shape) -> None:
    """Run two blank images through, so that a network that cannot take them fails here, with a clear line."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():  # inference_mode would spoil the weights that lazy layers make now
            logits = model.eval()(shape.blank(2).to(device))
    except Exception as error:  # whatever a library or the user's own lines raise
        raise UnfitError(f"model {name} cannot take {shape}: {reason(error)}") from error
    found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != [2, shape.num_classes]:
        raise UserError(f"model {name} must give logits [B,K], {[2, shape.num_classes]} for two {shape}; it gives {found}")


def _cure(cfg: ModelConfig, shape: Shape) -> str:
    if _is_ours(cfg.name):
        return ""
    if cfg.args:
        return "; change model.args or data.image_size"
    size = _next_size(cfg, shape)
    return f"; the next data.image_size that works is {size}" if size else "; take another model"


def _next_size(cfg: ModelConfig, shape: Shape) -> int | None:
    """Return the least larger size that a library's network takes, by running networks without memory.

    None where the network takes nothing of the size it was designed for: then the size is not what is wrong.
    """
    if not _fits(cfg, shape.sized(_designed_for(cfg.name))):
        return None
    sizes = [size for size in range(shape.image_size + 1, _MOST + 1) if any(size % step == 0 for step in _STEPS)]
    works = next((size for size in sizes if _fits(cfg, shape.sized(size))), None)
    fails = max([shape.image_size, *(size for size in sizes if works and size < works)])
    while works and works - fails > 1:
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _fits(cfg, shape.sized(middle)) else (works, middle)
    return works


def _designed_for(name: str) -> int:
    known = canonical(name)
    return timm_zoo.image_size(known.removeprefix(names.TIMM)) if known.startswith(names.TIMM) else torchvision_zoo.IMAGE_SIZE


def _fits(cfg: ModelConfig, shape: Shape) -> bool:
    try:
        with torch.device("meta"):
            _tried(cfg, shape)
    except UserError:
        return False
    return True
