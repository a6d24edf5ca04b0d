"""Networks built from a list of layers in the configuration: ``model: {name: sequential, args: {layers: [...]}}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError, lookup
from tracked_cls.models import arguments
from tracked_cls.models.shape import Shape

LAYERS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm, nn.LocalResponseNorm),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
        *(nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Softsign),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
        *(nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    )
}
_INFERRED: dict[str, tuple[str, Callable[[torch.Tensor], Any]]] = {
    **dict.fromkeys(("Conv2d", "ConvTranspose2d"), ("in_channels", lambda x: x.shape[1])),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "InstanceNorm2d"), ("num_features", lambda x: x.shape[1])),
    "GroupNorm": ("num_channels", lambda x: x.shape[1]),
    "LayerNorm": ("normalized_shape", lambda x: tuple(x.shape[1:])),
    "Linear": ("in_features", lambda x: x.shape[-1]),
}
_NO_ENDING = ("Softmax", "LogSoftmax", "Softmax2d")


def build(cfg: ModelConfig, shape: Shape) -> nn.Sequential:
    """Build the layers one after the other, each for what arrives there.

    in_channels, in_features, num_features and their like may be left out; the last Linear without out_features gives the
    logits. Raises `UserError` with the number of the layer, counted from 1, and the shape that arrives.
    """
    arguments.check_names("model sequential", cfg.args, ["layers"])
    specs = [_Spec(number, entry) for number, entry in enumerate(_entries(cfg.args.get("layers")), 1)]
    _give_classes(specs, shape.num_classes)
    arriving = shape.blank(2)
    modules = []
    for spec in specs:
        module = spec.module(arriving)
        arriving = spec.leaving(module, arriving)
        modules.append(module)
    if arriving.shape != (2, shape.num_classes):
        raise UserError(
            f"{specs[-1].where} gives {_show(arriving)} for each image, not {shape.num_classes} logits; "
            "end the layers with Flatten and a Linear without out_features"
        )
    return nn.Sequential(*modules)


class _Spec:
    """One entry of the list: ``Name`` or ``{Name: {argument: value}}``."""

    def __init__(self, number: int, entry: Any) -> None:
        items = list(entry.items()) if isinstance(entry, Mapping) else [(entry, None)]
        if len(items) != 1 or not isinstance(items[0][0], str) or not isinstance(items[0][1], Mapping | None):
            raise UserError(f"model sequential, layer {number}: must be Name or {{Name: {{argument: value}}}}, got {entry!r}")
        self.name, given = items[0]
        self.args = dict(given or {})
        self.where = f"model sequential, layer {number} ({self.name})"
        if self.name in _NO_ENDING:
            raise UserError(f"{self.where}: leave it out: the losses take logits and do this themselves")
        self.kind = lookup(self.name, LAYERS, f"layer {number} of model sequential:")
        takes = [key for key in arguments.named(self.kind) if key not in ("device", "dtype")]
        arguments.check_names(self.where, self.args, takes, where="args")

    def module(self, arriving: torch.Tensor) -> nn.Module:
        """Return the layer, with what was left out taken from the shape that arrives."""
        if self.name == "Linear" and "out_features" not in self.args:
            raise UserError(f"{self.where} needs out_features: only the last Linear may leave out out_features")
        inferred = {}
        if self.name in _INFERRED and arriving.dim() > 1:
            argument, infer = _INFERRED[self.name]
            inferred = {argument: infer(arriving)}
        return arguments.construct(self.where, self.kind, {**inferred, **self.args})

    def leaving(self, module: nn.Module, arriving: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of what arrives."""
        try:
            with torch.no_grad():
                leaving: torch.Tensor = module.eval()(arriving)
        except Exception as error:  # whatever a layer says of a shape that it cannot take
            raise UserError(
                f"{self.where} cannot take what arrives there, {_show(arriving)}: {arguments.reason(error)}"
            ) from None
        return leaving


def _entries(layers: Any) -> list[Any]:
    if not isinstance(layers, list) or not layers:
        raise UserError(
            "model=sequential needs model.args.layers, a list of Name or {Name: {argument: value}}, such as "
            "[{Conv2d: {out_channels: 16, kernel_size: 3}}, ReLU, Flatten, Linear]" + (f", got {layers!r}" if layers else "")
        )
    return layers


def _give_classes(specs: list[_Spec], num_classes: int) -> None:
    """Give the last Linear one output per class, where it does not say how many it has."""
    linears = [spec for spec in specs if spec.name == "Linear"]
    if linears:
        linears[-1].args.setdefault("out_features", num_classes)


def _show(x: torch.Tensor) -> str:
    return f"[{', '.join(map(str, x.shape[1:]))}]"
