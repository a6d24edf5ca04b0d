"""First layers fitted to the channels and the size of the images."""

from __future__ import annotations

import copy

from torch import nn

from tracked_cls.errors import UserError
from tracked_cls.models.paths import first_convolution, replace
from tracked_cls.models.shape import Shape

_POOLS = ("maxpool", "maxpool1", "pool0", "features.pool0", "features.conv1_pool", "stem.pool")


def fit_stem(model: nn.Module, name: str, stem: str | None, shape: Shape, *, rigid: bool, fits_channels: bool = False) -> None:
    """Give the first convolution the right number of channels and, for small images, stride 1 and no pooling.

    The rule of ``model.stem: auto``, for torchvision's networks and timm's: small where the side of the image is below
    12 times what the standard stem divides it by (24 pixels for stride 2, 48 for stride 2 with pooling); the body divides
    by 16 once more. The convolution keeps its name, its kind and its width; of a kernel wider than 3, 3 are left. Rigid, so
    never small, are networks whose first convolution has stride 1 or cuts patches (a stride above 2, or as wide as the
    kernel), and those that the caller calls so: with grids laid out for one size, or branches beside the convolution.
    `fits_channels`: the network was built for the channels, and may hand other ones to its first convolution.
    """
    path, first = first_convolution(model) or (None, None)
    can_shrink = first is not None and not rigid and first.stride[0] == 2 < first.kernel_size[0]
    if stem == "small" and not can_shrink:
        raise UserError(f"model.stem=small has no effect with model={name}: its first layer is not a strided convolution")
    if path is None or first is None:
        return
    pool = next((pool for pool in _POOLS if _pools(model, pool)), None)
    divides_by = first.stride[0] * (2 if pool else 1)
    small = can_shrink and (stem == "small" or (stem is None and shape.image_size < 12 * divides_by))
    channels = first.in_channels if fits_channels else shape.channels
    if small or first.in_channels != channels:
        replace(model, path, _refitted(first, channels, small=small))
    if small and pool:
        replace(model, pool, nn.Identity())


def _refitted(old: nn.Conv2d, channels: int, *, small: bool) -> nn.Conv2d:
    """Return a convolution of the same kind with fresh filters, so that kinds of timm's own (padding, norm) stay."""
    new = copy.deepcopy(old)
    new.in_channels = channels
    if small:
        kernel = min(old.kernel_size[0], 3)
        new.kernel_size, new.stride = (kernel, kernel), (1, 1)
        new.padding = old.padding if isinstance(old.padding, str) else (kernel // 2, kernel // 2)
    new.weight = nn.Parameter(old.weight.new_empty(old.out_channels, channels, *new.kernel_size))
    new.reset_parameters()  # draws what a convolution made anew draws
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def _pools(model: nn.Module, path: str) -> bool:
    """Return whether a path halves the resolution without weights, so that pretrained ones fit what remains."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    halves = any(getattr(part, "stride", 1) in (2, (2, 2)) for part in module.modules())
    return halves and not list(module.parameters())
