"""Options of the network: which one, with which weights, and what of it learns."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from tracked_cls.config.tree import Section, option
from tracked_cls.errors import UserError


class ModelConfig(Section):
    """The network."""

    choice: ClassVar[bool] = True
    name: str = option(
        "mobilenetv3",
        "mobilenetv3, resnet18, small_cnn, any torchvision classifier, timm/<name> for any of timm, sequential (layers in "
        "model.args.layers), or my_pkg.nets:Net for your own",
    )
    stem: Literal["standard", "small"] | None = option(
        None, "first layers: standard, or small (stride 1, no pooling) for small images; auto: by image size", unset="auto"
    )
    dropout: float | None = option(None, "dropout before the head; auto: the architecture's own", unset="auto", ge=0, lt=1)
    args: dict[str, Any] = option(
        {}, "arguments of the network's constructor, by their own names; the layers of model=sequential"
    )
    weights: str | None = option(
        None,
        "start from: default or a name of published weights (IMAGENET1K_V2, a timm tag), a file (.safetensors, .pt, .pth), "
        "runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>",
        unset="none",
    )
    bn_momentum: float = option(
        0.1,
        "BatchNorm momentum, where training.bn_images=off; torchvision's mobilenets ship 0.01, too slow for short trainings",
        gt=0,
        le=1,
    )


class FreezeConfig(Section):
    """Which parameters stay as they are. What the options choose is frozen together; BatchNorm of it stays in evaluation."""

    patterns: list[str] = option(
        [], "names of parameters, with * and ? (features.*); several in quotes: ['features.*', '*.bn1.*']"
    )
    first: int | None = option(None, "the first so many parameters, in the network's order", unset="off", ge=1)
    layers: list[str] = option([], "names of whole layers (features.0, layer1)")
    all_but_head: bool = option(False, "everything except the last layer")
    epochs: int | None = option(
        None, "thaw everything after so many epochs; off: frozen to the end", unit="epochs", unset="off", ge=1
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is chosen."""
        return bool(self.patterns or self.first or self.layers or self.all_but_head)

    @model_validator(mode="after")
    def _epochs_need_a_choice(self) -> FreezeConfig:
        if self.epochs is not None and not self.is_on:
            raise UserError("freeze.epochs has no effect without freeze.patterns, first, layers or all_but_head")
        return self
