"""Networks by name, fitted to the number of classes, the input channels and the image size."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError, lookup

_FAMILIAR = {"mobilenetv3": "mobilenet_v3_large", "mobilenetv3_small": "mobilenet_v3_small", "mobilenetv2": "mobilenet_v2"}
_RIGID_STEMS = ("swin", "vit", "maxvit", "convnext", "vgg", "alexnet")


@dataclass(frozen=True)
class Shape:
    """What a network must fit: K classes and images [C,S,S], or clips of frames [T,C,S,S]."""

    num_classes: int
    channels: int
    image_size: int
    frames: int | None = None

    def blank(self, count: int) -> torch.Tensor:
        """Return so many black inputs, [B,C,S,S] or [B,T,C,S,S]."""
        frames = () if self.frames is None else (self.frames,)
        return torch.zeros(count, *frames, self.channels, self.image_size, self.image_size)


class SmallCnn(nn.Module):
    """Three pairs of 3x3 convolutions with BatchNorm, pooled between: 72 thousand parameters, for small grey images."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [shape.channels, 16, 16, 32, 32, 64, 64]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if index in (1, 3):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], shape.num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K] for images [B,C,H,W]."""
        pooled: torch.Tensor = self.features(images).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(pooled)
        return logits


class PooledFrames(nn.Module):
    """A network of images made one of clips: the mean of the frames' logits.

    Source: the late fusion of Karpathy et al., "Large-scale Video Classification with Convolutional Neural Networks", 2014.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return logits [B,K] for clips [B,T,C,H,W]."""
        frames = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.network(frames)
        return logits.reshape(-1, clips.shape[1], logits.shape[1]).mean(dim=1)


def check_name(name: str) -> None:
    """Raise `UserError` with the near match for a name that no network has."""
    if name not in _FAMILIAR and name != "small_cnn":
        lookup(name, _torchvision_builders(), "model")


def make_model(cfg: ModelConfig, shape: Shape) -> nn.Module:
    """Build a network with fresh weights, drawn from torch's global generator.

    Raises `UserError` for an unknown name, and for a network that cannot take images of this size.
    """
    if cfg.name == "small_cnn":
        if cfg.stem is not None:
            raise UserError(f"model.stem={cfg.stem} has no effect with model=small_cnn, which has one stem")
        model: nn.Module = SmallCnn(shape, dropout=cfg.dropout or 0.0)
    else:
        model = _torchvision_model(cfg, shape)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = cfg.bn_momentum
    if shape.frames is not None:
        model = PooledFrames(model)
    _try_out(model, cfg.name, shape)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision_builders() -> dict[str, Callable[..., nn.Module]]:
    from torchvision import models as zoo  # 4 s of import that small_cnn and evaluation of it do without

    builders = {name: zoo.get_model_builder(name) for name in zoo.list_models(module=zoo)}
    return {**builders, **{familiar: builders[name] for familiar, name in _FAMILIAR.items()}, "small_cnn": SmallCnn}


def _torchvision_model(cfg: ModelConfig, shape: Shape) -> nn.Module:
    builder = lookup(cfg.name, _torchvision_builders(), "model")
    name = _FAMILIAR.get(cfg.name, cfg.name)
    try:
        model = builder(weights=None, num_classes=shape.num_classes, **_arguments(name, shape))
    except (ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model {cfg.name} cannot be built for {shape.image_size}x{shape.image_size} images: {reason}"
        ) from None
    _fit_stem(model, name, cfg.stem, shape)
    if cfg.dropout is not None:
        _set_dropout(model, cfg.dropout)
    return model


def _arguments(name: str, shape: Shape) -> dict[str, Any]:
    """Return what some architectures want to know beforehand."""
    if name.startswith("vit_"):
        return {"image_size": shape.image_size}
    if name.startswith("maxvit"):
        return {"input_size": (shape.image_size, shape.image_size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True, "transform_input": False}
    return {}


def _fit_stem(model: nn.Module, name: str, stem: str | None, shape: Shape) -> None:
    """Give the first convolution the right number of channels and, for small images, stride 1 and no pooling.

    The rule of ``model.stem: auto``: small where the side of the image is below 12 times what the standard stem divides
    it by (24 pixels for stride 2, 48 for stride 2 with pooling); the body divides by 16 once more.
    """
    path, first = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    pool = next((path for path in ("maxpool", "features.pool0", "maxpool1") if _has(model, path)), None)
    divides_by = first.stride[0] * (2 if pool else 1)
    can_shrink = not name.startswith(_RIGID_STEMS) and divides_by > 1
    if stem == "small" and not can_shrink:
        raise UserError(f"model.stem=small has no effect with model={name}: its first layer is not a strided convolution")
    small = can_shrink and (stem == "small" or (stem is None and shape.image_size < 12 * divides_by))
    if small or first.in_channels != shape.channels:
        _replace(model, path, _first_convolution(first, shape.channels, small=small))
    if small and pool:
        _replace(model, pool, nn.Identity())


def _first_convolution(old: nn.Conv2d, channels: int, *, small: bool) -> nn.Conv2d:
    kernel = min(old.kernel_size[0], 3) if small else old.kernel_size[0]
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel,
        stride=1 if small else old.stride,  # type: ignore[arg-type]
        padding=kernel // 2 if small else old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _set_dropout(model: nn.Module, p: float) -> None:
    """Set the dropout before the head, adding one where the architecture has none."""
    heads = (nn.Linear, nn.Conv2d)  # a convolution in squeezenet
    path, head = [(path, module) for path, module in model.named_modules() if isinstance(module, heads)][-1]
    parent = model.get_submodule(path.rpartition(".")[0])
    dropouts = [module for module in parent.children() if isinstance(module, nn.Dropout)]
    for dropout in dropouts:
        dropout.p = p
    if not dropouts:
        _replace(model, path, nn.Sequential(nn.Dropout(p), head))


def _has(model: nn.Module, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), nn.MaxPool2d)
    except AttributeError:
        return False


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _try_out(model: nn.Module, name: str, shape: Shape) -> None:
    """Run two blank images through, so that a network that cannot take them fails here, with a clear line."""
    try:
        with torch.inference_mode():
            logits = model.eval()(shape.blank(2))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"model {name} cannot take {shape.channels}x{shape.image_size}x{shape.image_size} images: "
            f"{str(error).splitlines()[0]}; try a larger data.image_size or another model"
        ) from None
    assert logits.shape == (2, shape.num_classes), f"{inspect.getmodule(model)}: logits {tuple(logits.shape)}"
