"""The arguments of networks' constructors: what they take, and what a user may give."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from tracked_cls.errors import UserError, did_you_mean
from tracked_cls.models.shape import Shape

_NOT_FOR_USERS = ("device", "dtype")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class UnfitError(UserError):
    """A network that cannot be made for, or cannot take, images of some size."""


def named(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or a function that can be given by name, in their order."""
    parameters = inspect.signature(constructor).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in _BY_NAME}


def takes_any(constructor: Callable[..., Any]) -> bool:
    """Return whether it takes arguments of any name (``**kwargs``)."""
    return any(item.kind is inspect.Parameter.VAR_KEYWORD for item in inspect.signature(constructor).parameters.values())


def optional(network: type[nn.Module]) -> list[str]:
    """Return the arguments of a library's class that have a default.

    Where it passes on what it does not know (``**kwargs``), those of its parent classes and of its configuration class count.
    """
    names: dict[str, None] = {}
    for kind in network.__mro__[: network.__mro__.index(nn.Module)]:
        parameters = named(kind)
        names |= dict.fromkeys(name for name, item in parameters.items() if item.default is not item.empty)
        names |= dict.fromkeys(field.name for item in parameters.values() for field in _fields(item.annotation))
        if not takes_any(kind):
            break
    return [name for name in names if name not in _NOT_FOR_USERS]


def _fields(annotation: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(annotation) if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else ()


def check_names(
    what: str,
    given: Mapping[str, Any],
    takes: Collection[str],
    *,
    ours: Mapping[str, str] | None = None,
    where: str = "model.args",
) -> None:
    """Raise `UserError` for an argument that is not taken; it names those that are.

    `ours` maps arguments that we fill in to the option they follow.
    """
    ours = ours or {}
    free = [name for name in takes if name not in ours]
    for name in given:
        if name in ours:
            raise UserError(f"{where}.{name} has no effect with {what}: it follows {ours[name]}")
        if name not in takes:
            near = did_you_mean(name, free) if len(free) > 12 else ""
            raise UserError(f"{what} takes no argument {name!r}{near or ';'} it takes {', '.join(sorted(free)) or 'none'}")


def construct(what: str, constructor: Callable[..., Any], given: Mapping[str, Any], *, shape: Shape | None = None) -> nn.Module:
    """Call a constructor with arguments; what it raises is one line that begins with `what`.

    `shape`: the size of the images may be the reason, so that the line is an `UnfitError` that names it.
    """
    try:
        model = constructor(**given)
    except UserError:
        raise
    except Exception as error:  # whatever the values made a library or the user's own lines raise
        if shape is not None:
            raise UnfitError(f"{what} cannot be built for {shape}: {reason(error)}") from error
        raise UserError(f"{what} cannot be built: {reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{what} must give a torch.nn.Module, got {type(model).__name__}")
    return model


def reason(error: BaseException) -> str:
    """Return an error as one line, with its kind where the message alone says little."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    if not line:
        return type(error).__name__
    return line if isinstance(error, (ValueError, RuntimeError, AssertionError)) else f"{type(error).__name__}: {line}"
