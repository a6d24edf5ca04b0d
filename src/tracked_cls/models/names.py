"""What networks are called: by people, by torchvision and by timm."""

from __future__ import annotations

import difflib

from tracked_cls import plugins
from tracked_cls.errors import UserError
from tracked_cls.models import timm_zoo, torchvision_zoo

TIMM = "timm/"
SMALL_CNN, SEQUENTIAL = "small_cnn", "sequential"
FAMILIAR = {
    "convnext": "convnext_tiny",
    "densenet": "densenet121",
    "efficientnet": "efficientnet_b0",
    "efficientnetv2": "efficientnet_v2_s",
    **{f"efficientnet-b{size}": f"efficientnet_b{size}" for size in range(8)},
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3": "mobilenet_v3_large",
    "mobilenetv3_large": "mobilenet_v3_large",
    "mobilenetv3_small": "mobilenet_v3_small",
    "regnet": "regnet_y_400mf",
    "resnet": "resnet18",
    "resnext": "resnext50_32x4d",
    "shufflenetv2": "shufflenet_v2_x1_0",
    "swin": "swin_t",
    "vgg": "vgg16",
    "vit": "vit_b_16",
    "xception": "timm/legacy_xception",
    "se_resnext50_32x4d": "timm/legacy_seresnext50_32x4d",
    "adv-efficientnet": "timm/tf_efficientnet_b0.ap_in1k",
    **{f"adv-efficientnet-b{size}": f"timm/tf_efficientnet_b{size}.ap_in1k" for size in range(9)},
}


def canonical(name: str) -> str:
    """Return what torchvision calls a network, or ``timm/`` and what timm calls it; other names stay."""
    return FAMILIAR.get(name, name)


def is_own(name: str) -> bool:
    """Return whether a name is the import path of a user's own network."""
    return ":" in name


def check_name(name: str) -> None:
    """Raise `UserError` with the near match for a name that no network has, torchvision's and timm's included."""
    if is_own(name):
        plugins.load(name, "model")
    elif name.startswith(TIMM):
        timm_zoo.check_name(name.removeprefix(TIMM))
    elif name not in (*FAMILIAR, SMALL_CNN, SEQUENTIAL) and name not in torchvision_zoo.builders():
        raise UserError(f"unknown model {name!r}{_near(name)}")


def _near(name: str) -> str:
    """Return the near match among the names without a prefix, else among timm's."""
    plain = {SMALL_CNN, SEQUENTIAL, *FAMILIAR, *torchvision_zoo.builders()}
    by_bare = {**{known: f"{TIMM}{known}" for known in timm_zoo.names()}, **{known: known for known in plain}}
    near = difflib.get_close_matches(name.lower(), by_bare, n=1)
    return f"; did you mean {by_bare[near[0]]!r}?" if near else ""
