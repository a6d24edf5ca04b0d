"""What in an image speaks for a class: Grad-CAM, by captum.

Looking changes nothing: modes, gradients, random numbers and running statistics are afterwards what they were.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tracked_cls.anatomy import at_rest, placed_like, watched

_FEWEST_CELLS = 4  # along a side: fewer show no place
_BATCH = 16

Heatmaps = npt.NDArray[np.float32]


def heatmaps(network: nn.Module, images: Tensor, targets: npt.NDArray[np.int64]) -> Heatmaps | None:
    """Return how much each place of images [N,C,H,W] speaks for a class, `targets` [N]: float32 [N,H,W] in [0, 1].

    1 is the strongest place of an image; an image in which nothing speaks for the class is 0. Of clips [N,T,C,H,W] the
    middle frame. None where a network does not end in maps, as transformers, or where no gradient reaches them. The layer
    looked at is the last with maps of 4 x 4 cells or more (of more than one, where there is none).
    Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", 2017.
    """
    placed = placed_like(images, network)
    classes = torch.from_numpy(targets).to(placed.device)
    with at_rest(network):
        layer = _last_maps(network, placed[:1])
        if layer is None:
            return None
        try:
            chunks = zip(torch.split(placed, _BATCH), torch.split(classes, _BATCH), strict=True)
            maps = torch.cat([_grad_cam(network, layer, *chunk) for chunk in chunks])
        except Exception:  # a network of the user's that has no gradient there, or too little memory for one: no heat maps
            return None
    sized = functional.interpolate(maps[:, None], size=tuple(images.shape[-2:]), mode="bilinear", align_corners=False)[:, 0]
    strongest = sized.amax(dim=(1, 2), keepdim=True)
    return np.asarray((sized / strongest.where(strongest > 0, 1)).cpu().numpy(), np.float32)


def _grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return maps [B,h,w], negative values cut; of clips those of the middle frame, which a network sees as B*T images."""
    from captum.attr import LayerGradCam  # half a second, for the few trainings that come to their end

    maps: Tensor = LayerGradCam(network, layer).attribute(images, targets, relu_attributions=True)
    by_image = maps.detach().float().reshape(len(images), -1, *maps.shape[2:])
    return by_image[:, by_image.shape[1] // 2]


def _last_maps(network: nn.Module, images: Tensor) -> nn.Module | None:
    """Return the last layer that answers with maps large enough; None where what comes last are tokens, or no maps at all."""
    seen: dict[nn.Module, torch.Size] = {}

    def note(_: str, module: nn.Module, output: object) -> None:
        stretches = isinstance(module, nn.AdaptiveAvgPool2d)  # one cell to 7 x 7 equal ones, in VGG
        if isinstance(output, Tensor) and _is_spatial(output.shape) and not stretches:
            seen.pop(module, None)  # of a layer that is called often, captum takes the last call
            seen[module] = output.shape

    with watched(network, note):
        network(images)
    last = list(takewhile(lambda module: _is_map(seen[module]), reversed(seen)))  # before tokens there are only patches
    large = (module for module in last if seen[module][-1] >= _FEWEST_CELLS)
    return next(large, last[0] if last else None)


def _is_map(shape: torch.Size) -> bool:
    """Return whether a shape is [B,C,h,w]: images are square, which tells it from channels that stand last."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _is_spatial(shape: torch.Size) -> bool:
    """Return whether a shape is that of maps, or of rows of tokens [B,N,C], or [B,h,w,C]."""
    return _is_map(shape) or (len(shape) == 3 and shape[1] > 1) or (len(shape) == 4 and shape[1] == shape[2] > 1)
