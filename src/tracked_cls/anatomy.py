"""What a network is made of: its layers, its size, its cost, its first filters and what its layers answer.

Looking changes nothing: modes, random numbers and running statistics are afterwards what they were.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tracked_cls.models import Shape, count_parameters, first_convolution

_REPEATS, _WARM_UP = 21, 3
_SHOWN_LAYERS = 5
_MOST_DEPTH = 4
_MOST_PREFIXES = 5  # tokens before those of patches: class, distillation, registers

Pictures = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One module: its dotted path, its type, what it gives for one input (without the batch), and its weights.

    `output_shape` is None where it gives no single tensor; `num_parameters` counts the modules inside it.
    """

    path: str
    type: str
    output_shape: tuple[int, ...] | None
    num_parameters: int

    @property
    def depth(self) -> int:
        """How many modules it is inside of."""
        return self.path.count(".")

    @property
    def output_text(self) -> str:
        """The output's shape as people write it: ``64 x 28 x 28``."""
        return " x ".join(map(str, self.output_shape)) if self.output_shape is not None else ""


@dataclass(frozen=True)
class Anatomy:
    """The layers that took part in a forward pass, in the order of their first call, and what it costs for one input.

    `flops` are those of convolutions, matrix products and attention, a multiply-add counted as two, as torch counts.
    `latency_ms` is the median of single-input forward passes in evaluation mode, in milliseconds.
    """

    name: str
    layers: tuple[Layer, ...]
    num_parameters: int
    num_trainable: int
    flops: int
    latency_ms: float

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        return {"num_parameters": self.num_parameters, "flops": self.flops, "latency_ms": self.latency_ms}

    def table(self) -> list[list[Any]]:
        """Return a header and one row per layer."""
        rows = [[item.path, item.type, item.output_text, item.num_parameters] for item in self.layers]
        return [["path", "type", "output_shape", "parameters"], *rows]


def describe(model: nn.Module, shape: Shape, *, repeats: int = _REPEATS) -> Anatomy:
    """Run black inputs [1,C,S,S] (or a clip [1,T,C,S,S]) through a network, on its own device and layout, and look."""
    blank = placed_like(shape.blank(1), model)
    with at_rest(model):
        layers = _layers(model, blank)
        flops = _flops(model, blank)
        latency_ms = _latency_ms(model, blank, repeats)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Anatomy(type(model).__name__, layers, count_parameters(model), trainable, flops, latency_ms)


def first_filters(model: nn.Module) -> Pictures:
    """Return the filters of the first convolution as pictures uint8 [N,H,W,3], or [N,H,W,1] for other than 3 channels.

    Each is stretched from its own least value (black) to its largest (white); more channels are averaged. N is 0 where a
    network has no convolution.
    """
    found = first_convolution(model)
    if found is None:
        return np.zeros((0, 1, 1, 1), np.uint8)
    filters = found[1].weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    filters = filters if filters.shape[3] == 3 else filters.mean(axis=3, keepdims=True)
    low, high = filters.min(axis=(1, 2, 3), keepdims=True), filters.max(axis=(1, 2, 3), keepdims=True)
    stretched: Pictures = np.round(255 * (filters - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    return stretched


def feature_maps(model: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> dict[str, Maps]:
    """Return what layers answer to images [B,C,S,S] (or clips): path -> float32 [B,C,H,W] in the order of their calls.

    `layers` are dotted paths; without them, a handful spread over the network. Layers whose answers are no maps are left
    out; those of transformers, a row of tokens, are laid out as maps again. The frames of clips count as images: [B*T,C,H,W].
    """
    found: dict[str, Maps] = {}

    def keep(path: str, module: nn.Module, output: Any) -> None:
        maps = _as_maps(output)
        if maps is not None and (layers is None or path in layers):
            found[path] = np.array(maps.detach().float().cpu())  # a copy: layers after it may work in place

    with at_rest(model), watched(model, keep):
        model(placed_like(images, model))
    return found if layers is not None else _spread(found)


# ---- one forward pass, watched ---------------------------------------------------------------------------------------


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; give every module its own mode back, and the generators their states."""
    modes = [(module, module.training) for module in model.modules()]
    device = _device(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides the layers inside attention, and their operations
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def watched(model: nn.Module, seen: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Call `seen` with path, module and output after every module's forward pass."""
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                hook = module.register_forward_hook(lambda module, _, output, path=path: seen(path, module, output))
                stack.callback(hook.remove)
        yield


def _layers(model: nn.Module, blank: Tensor) -> tuple[Layer, ...]:
    order: list[str] = []
    outputs: dict[str, tuple[int, ...] | None] = {}

    def note(path: str, module: nn.Module, output: Any) -> None:
        outputs[path] = tuple(output.shape[1:]) if isinstance(output, Tensor) else None

    with ExitStack() as stack, watched(model, note):
        for path, module in model.named_modules():
            if path:
                stack.callback(module.register_forward_pre_hook(lambda *_, path=path: order.append(path)).remove)
        model(blank)
    modules = dict(model.named_modules())
    return tuple(
        Layer(path, type(modules[path]).__name__, outputs.get(path), count_parameters(modules[path]))
        for path in dict.fromkeys(order)
    )


def _flops(model: nn.Module, blank: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # takes Triton along, which a training does without

    with FlopCounterMode(display=False) as counter:
        model(blank)
    return int(counter.get_total_flops())


def _latency_ms(model: nn.Module, blank: Tensor, repeats: int) -> float:
    """Return the median time of forward passes; the first ones, which also choose kernels, do not count."""
    seconds = []
    for _ in range(_WARM_UP + repeats):
        started = time.perf_counter()
        model(blank)
        if blank.device.type == "cuda":
            torch.cuda.synchronize(blank.device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[_WARM_UP:])


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def placed_like(images: Tensor, model: nn.Module) -> Tensor:
    """Move images to the network's device, number format and memory layout."""
    weight = next((item for item in model.parameters() if item.dim() == 4), None)
    images = images.to(next((item for item in model.parameters()), images))
    is_last = weight is not None and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return images.contiguous(memory_format=torch.channels_last) if is_last and images.dim() == 4 else images


# ---- feature maps ----------------------------------------------------------------------------------------------------


def _as_maps(output: Any) -> Tensor | None:
    """Return an answer as maps [B,C,H,W] of more than one pixel; images are square, which tells the layouts apart."""
    if not isinstance(output, Tensor):
        return None
    if output.dim() == 3:
        output = _tokens_as_maps(output)
    if output.dim() == 4 and output.shape[2] != output.shape[3] and output.shape[1] == output.shape[2]:
        output = output.permute(0, 3, 1, 2)  # channels last, as in Swin
    return output if output.dim() == 4 and output.shape[2] == output.shape[3] > 1 else None


def _tokens_as_maps(tokens: Tensor) -> Tensor:
    """Return tokens [B,N,C] as maps [B,C,H,W], without those before the patches; unchanged where N is no such number."""
    for prefixes in range(_MOST_PREFIXES + 1):
        side = math.isqrt(max(tokens.shape[1] - prefixes, 0))
        if side > 1 and side**2 == tokens.shape[1] - prefixes:
            return tokens[:, prefixes:].transpose(1, 2).reshape(len(tokens), -1, side, side)
    return tokens


def _spread(found: Mapping[str, Maps]) -> dict[str, Maps]:
    """Return a handful of layers, evenly spread from first to last: outer ones, where there are enough of them."""
    enough = (outer for depth in range(_MOST_DEPTH) if len(outer := _outer(found, depth)) >= _SHOWN_LAYERS)
    paths = next(enough, list(found))
    chosen = np.linspace(0, len(paths) - 1, min(_SHOWN_LAYERS, len(paths))).round().astype(int)
    return {paths[index]: found[paths[index]] for index in chosen}


def _outer(found: Mapping[str, Maps], depth: int) -> list[str]:
    """Return the paths inside at most so many modules, without those that answer what the one before them did."""
    paths = [path for path in found if path.count(".") <= depth]
    pairs = zip(paths, [None, *paths[:-1]], strict=False)
    return [path for path, before in pairs if before is None or not np.array_equal(found[path], found[before])]
