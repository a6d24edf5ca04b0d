"""PyTorch's optimizers without its compiler.

Each of them imports it, 2,000 modules and two seconds or more, the first time that it is used, only to tell it what to leave
alone; and networks alone are compiled here, never a step of an optimizer.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer

_KEPT_FROM_THE_COMPILER = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """Return an optimizer's class, of the same name, whose steps compute the same bits and do not import the compiler.

    It has no ``differentiable``. Where PyTorch has wrapped the steps of `kind` in nothing, it is `kind` itself.
    """
    for name in _KEPT_FROM_THE_COMPILER:
        plain = inspect.unwrap(getattr(Optimizer, name))
        if not hasattr(plain, "__dynamo_disable"):  # where PyTorch keeps what its compiler is not to look into
            setattr(plain, "__dynamo_disable", plain)
    plain_step = inspect.unwrap(kind.step)
    if plain_step is kind.step:
        return kind
    return type(kind.__name__, (kind,), {"step": torch.no_grad()(plain_step), "__module__": kind.__module__})
