"""Which transforms are plainly right as they stand, so that nobody needs to ask torchvision, whose import takes a second.

What is not plain may be right as well: torchvision's own constructors judge it, and its words say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tracked_cls.config import TransformSpec

Rule = Callable[[Any], bool]
_WHITE = 255


def _is_number(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_range(value: Any, low: float = -1e6, high: float = 1e6) -> bool:
    """Whether a list is [from, to]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(one, low, high) for one in value)
        and value[0] <= value[1]
    )


def _is_angle(value: Any) -> bool:
    return _is_number(value, 0) or _is_range(value)


def _is_zoom(value: Any) -> bool:
    return _is_range(value, 1e-3)


def _is_move(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(one, 0, 1) for one in value)


def _is_share(value: Any) -> bool:
    return _is_number(value, 0, 1)


def _is_way(value: Any) -> bool:
    return value in ("nearest", "bilinear")


def _is_grey(value: Any) -> bool:
    return _is_number(value, 0, _WHITE)


def _is_padding(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _WHITE


_RULES: Mapping[str, Mapping[str, Rule]] = {
    "RandomAffine": {
        "degrees": _is_angle,
        "translate": _is_move,
        "scale": _is_zoom,
        "shear": _is_angle,
        "interpolation": _is_way,
        "fill": _is_grey,
    },
    "RandomRotation": {"degrees": _is_angle, "interpolation": _is_way, "fill": _is_grey},
    "RandomCrop": {"padding": _is_padding, "fill": _is_grey},
    "RandomErasing": {
        "p": _is_share,
        "scale": lambda value: _is_range(value, 1e-3, 1),
        "ratio": _is_zoom,
        "value": lambda value: _is_number(value, 0, 1),
    },
    "RandomHorizontalFlip": {"p": _is_share},
    "RandomVerticalFlip": {"p": _is_share},
}
_NEEDED = {"RandomAffine": {"degrees"}, "RandomRotation": {"degrees"}}


def are_plain(specs: Sequence[TransformSpec]) -> bool:
    """Whether a list is certain to be one that torchvision takes, and that has a form for whole batches."""
    return all(_is_plain(name, args) for spec in specs for name, args in spec.items())


def _is_plain(name: str, args: Mapping[str, Any]) -> bool:
    rules = _RULES.get(name)
    if rules is None or not _NEEDED.get(name, set()) <= set(args):
        return False
    return all(key in rules and rules[key](value) for key, value in args.items())
