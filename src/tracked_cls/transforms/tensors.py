"""What an image can be between two transforms (a tensor of bytes or floats, an array, a PIL image), brought to one kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tracked_cls.errors import UserError


def plain(image: Any) -> Tensor:
    """Return an image of any kind as uint8 or float32 [...,C,H,W]; arrays and PIL images are [H,W] or [...,H,W,C]."""
    tensor = image.as_subclass(Tensor) if isinstance(image, Tensor) else _from_array(np.array(image))
    if tensor.ndim not in (3, 4) or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise UserError(f"the transforms leave {describe(tensor)} of {tensor.dtype}: an image is uint8 or float [C,H,W]")
    return tensor.float() if tensor.is_floating_point() else tensor


def to_float(image: Any) -> Tensor:
    """Return an image of any kind as floats: bytes as float32 in [0, 1], floats as they are."""
    tensor = image if isinstance(image, Tensor) else plain(image)
    return tensor if tensor.is_floating_point() else tensor.as_subclass(Tensor).float().div_(255.0)


def with_channels(tensor: Tensor, channels: int) -> Tensor:
    """Return [...,C,H,W] with 1 or 3 channels: grey is repeated, colour weighted as Pillow does."""
    have = tensor.shape[-3]
    if have == channels:
        return tensor
    if have == 1:
        return tensor.repeat_interleave(channels, dim=-3)
    if have != 3:
        raise UserError(f"the transforms leave {have} channels; an image has 1 or 3")
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.float64)[:, None, None] / 65536
    grey = (tensor * weights).sum(dim=-3, keepdim=True)
    return grey.add(0.5).floor().to(tensor.dtype) if tensor.dtype == torch.uint8 else grey.to(tensor.dtype)


def describe(image: Any) -> str:
    """Return the shape of an image in words."""
    if isinstance(image, Image.Image):
        return f"{image.mode} {image.height} x {image.width}"
    return " x ".join(map(str, np.shape(image)))


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    with_axis = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(with_axis, -1, -3)))
