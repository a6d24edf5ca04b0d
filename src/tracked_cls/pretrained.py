"""A network's start from weights that were trained before: what fits is taken over, and every tensor is accounted for."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracked_cls import weights
from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import first_convolution, heads_of, published

Status = Literal["loaded", "adapted", "skipped", "missing"]
Values = tuple[float, ...]

ADDRESSES = ("runs:/", "models:/")
_COMPILED = "_orig_mod."  # torch.compile puts it anywhere
_WRAPPERS = {  # names under which programs keep a network inside another one
    *("module", "model", "network", "net", "backbone", "encoder", "base_model", "base_encoder", "encoder_q", "ema_model"),
    *("ema", "student", "teacher", "online_encoder", "image_encoder", "visual", "trunk", "body"),
}
_META = "meta.json"
_PREFIX_TOKENS = (0, 1, 2)  # positions of a transformer that stand for no part of the image


class Opened(NamedTuple):
    """Weights to start from: tensors by name, what they are called, and the (mean, std) per channel they were trained with."""

    tensors: dict[str, Tensor]
    source: str
    normalisation: tuple[Values, Values] | None


@dataclass(frozen=True)
class Row:
    """What became of one tensor. `shape` is the network's, `file_shape` the file's, None where it is not there."""

    name: str
    status: Status
    shape: tuple[int, ...] | None
    file_shape: tuple[int, ...] | None
    reason: str = ""

    @property
    def size(self) -> int:
        """How many numbers it holds: in the network, else in the file."""
        return math.prod(self.shape if self.shape is not None else self.file_shape or ())


@dataclass(frozen=True)
class Transfer:
    """The account of a transfer, one row for each tensor of the network, then one for each that only the file has."""

    source: str
    rows: tuple[Row, ...]

    @property
    def share(self) -> float:
        """Share of the network's numbers that came from the weights, in [0, 1]."""
        of_network = [row for row in self.rows if row.shape is not None]
        return sum(row.size for row in of_network if _is_taken(row)) / max(sum(row.size for row in of_network), 1)

    @property
    def summary(self) -> str:
        """The account in one line."""
        of_network = [row for row in self.rows if row.shape is not None]
        taken = sum(_is_taken(row) for row in of_network)
        rest = [f"{count} {status}" for status in ("adapted", "skipped", "missing") if (count := self._count(status))]
        line = f"loaded {taken} of {len(of_network)} tensors ({self.share:.1%} of the weights) from {self.source}"
        return "; ".join([line, *rest])

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows of the whole account, for a CSV."""
        rows = [[row.name, row.status, _written(row.shape), _written(row.file_shape), row.reason] for row in self.rows]
        return ["tensor", "status", "shape", "file_shape", "reason"], rows

    def text(self) -> str:
        """Return the account for a screen: a line for each kind of outcome, with an example."""
        groups: dict[tuple[Status, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.status, row.reason), []).append(row)
        lines = [f"{'':9}{'tensors':>8}{'numbers':>14}  for example"]
        for (status, reason), rows in sorted(groups.items(), key=lambda item: item[0][0]):
            size = sum(row.size for row in rows)
            lines.append(f"{status:9}{len(rows):8}{size:14,}  {rows[0].name}{': ' if reason else ''}{reason}")
        return "\n".join([self.summary, *lines])

    def _count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)


def is_address(text: str) -> bool:
    """Return whether ``model.weights`` names a run or a registered model, which the registry resolves to a file."""
    return text.startswith(ADDRESSES)


def open_weights(cfg: ModelConfig, local: Path | None = None) -> Opened:
    """Return what ``model.weights`` names; `local` is the file behind an address of a run or a registered model.

    A name that ends like a file of weights, or is one, is read; any other is looked for among the published weights. A
    ``meta.json`` of ours beside the file says what it was trained with.
    """
    assert cfg.weights is not None
    assert local is not None or not is_address(cfg.weights), "addresses are resolved by the registry"
    path = local or Path(cfg.weights)
    if local or path.suffix in weights.SUFFIXES or weights.is_file(path):
        return Opened(weights.read(path), cfg.weights, _normalisation_beside(path))
    found = published.find(cfg.name, cfg.weights)
    return Opened(found.tensors, found.source, (found.mean, found.std))


def _normalisation_beside(path: Path) -> tuple[Values, Values] | None:
    """Return (mean, std) of the model whose weights these are, where its description lies beside them."""
    try:
        described = json.loads(path.with_name(_META).read_text(encoding="utf-8"))["preprocess"]
        return tuple(map(float, described["mean"])), tuple(map(float, described["std"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or somebody else's meta.json
        return None


def transfer(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> Transfer:
    """Copy into a network what fits it, and return the account.

    Prefixes of wrappers are stripped, on both sides. A first convolution for other channels and positions of another image
    size are adapted; any other difference in shape leaves the network's own start, so that a head for other classes stays
    untouched. Raises `UserError`, the network unchanged, where no tensor of more than one dimension fits.
    """
    _require_finite(tensors, source)
    here = {name.replace(_COMPILED, ""): tensor for name, tensor in model.state_dict().items()}
    there = _under_names_of(here, tensors)
    plan = {name: _fitted(name, target, there.get(name), model) for name, target in here.items()}
    rows = [row for row, _ in plan.values()]
    if not any(_is_taken(row) and len(row.shape or ()) > 1 for row in rows):
        raise UserError(_no_fit(source, here, tensors))
    with torch.no_grad():
        for name, (_, value) in plan.items():
            if value is not None:
                here[name].copy_(value)
    strangers = [
        Row(name, "skipped", None, tuple(value.shape), "not in this network")
        for name, value in there.items()
        if name not in here
    ]
    return Transfer(source, (*rows, *strangers))


def _fitted(name: str, target: Tensor, value: Tensor | None, model: nn.Module) -> tuple[Row, Tensor | None]:
    """Return a tensor's row, and what to copy into it."""
    shape = tuple(target.shape)
    if value is None:
        return Row(name, "missing", shape, None, "not in the weights: keeps its fresh start"), None
    file_shape = tuple(value.shape)
    if file_shape == shape:
        return Row(name, "loaded", shape, file_shape), value
    if name == _first_filters(model) and file_shape[:1] + file_shape[2:] == shape[:1] + shape[2:]:
        reason = f"first filters turned from {file_shape[1]} channels to {shape[1]}"
        return Row(name, "adapted", shape, file_shape, reason), _for_channels(value, shape[1])
    if (resized := _resized_positions(name, value, shape)) is not None:
        return Row(name, "adapted", shape, file_shape, "positions resized to this image size"), resized
    return Row(name, "skipped", shape, file_shape, _difference(name, shape, file_shape, model)), None


def _difference(name: str, shape: Sequence[int], file_shape: Sequence[int], model: nn.Module) -> str:
    if name.startswith(tuple(f"{head}." for head in heads_of(model))):
        return f"the head: {file_shape[0] if file_shape else 1} classes there, {shape[0]} here"
    if name == _first_filters(model):
        return "another first convolution: model.stem=standard has the usual one"
    return "another shape"


def _is_taken(row: Row) -> bool:
    return row.status in ("loaded", "adapted")


def _written(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


def _require_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"weights {source}: {name} holds numbers that are not finite; the training that made them failed")


def _no_fit(source: str, here: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    def example(named: Mapping[str, Tensor]) -> str:
        name = next((name for name, tensor in named.items() if tensor.dim() > 1), next(iter(named)))
        return f"{name} ({_written(tuple(named[name].shape))})"

    return (
        f"weights {source}: none of {len(tensors)} tensors fits the network: they have, for example, {example(tensors)}, "
        f"the network {example(here)}; choose the model that they were made for"
    )


# ---- names -----------------------------------------------------------------------------------------------------------


def _under_names_of(here: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the network's names: those prefixes are taken off and put on that make most of them fit."""
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    shapes = {name: tensor.shape for name, tensor in here.items()}

    def fit(pair: tuple[str, str]) -> tuple[int, int, int]:
        found = [(shapes.get(_renamed(name, *pair, shapes)), tensor.shape) for name, tensor in plain.items()]
        same = sum(shape == file_shape for shape, file_shape in found)
        return same, sum(shape is not None for shape, _ in found), -len("".join(pair))

    strip, add = max(itertools.product(_wrappings(plain), _wrappings(here)), key=fit)
    wrapped_last = sorted(plain, key=lambda name: name.startswith(strip))  # stable; of two of one name the wrapped one counts
    return {_renamed(name, strip, add, shapes): plain[name] for name in wrapped_last}


def _renamed(name: str, strip: str, add: str, known: Iterable[str]) -> str:
    """Return a name without one prefix and with the other; a name the network has either way stays as it is there."""
    bare = name.removeprefix(strip)
    return next((word for word in (f"{add}{bare}", bare) if word in known), name)


def _wrappings(names: Iterable[str]) -> list[str]:
    """Return the prefixes that may be a wrapper's: runs of their usual words, and what all names begin with."""
    paths = [name.split(".")[:-1] for name in names]
    found = {""}
    for path in paths:
        words = itertools.takewhile(_WRAPPERS.__contains__, path)
        found |= {f"{prefix}." for prefix in itertools.accumulate(words, lambda one, other: f"{one}.{other}")}
    common = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*paths, strict=False))
    found.add("".join(f"{column[0]}." for column in common))
    return sorted(found)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _first_filters(model: nn.Module) -> str | None:
    """Return the name of the filters that see the image."""
    found = first_convolution(model)
    return f"{found[0]}.weight".replace(_COMPILED, "") if found else None


def _for_channels(filters: Tensor, channels: int) -> Tensor:
    """Return filters [O,C,h,w] for another number of channels, with the same response to a grey picture where one side is grey.

    One channel: the sum over the old ones. More: the old ones in turn, scaled by how many there were to how many there are.
    """
    if channels == 1:
        return filters.sum(dim=1, keepdim=True)
    old = filters.shape[1]
    repeated = filters.repeat(1, -(-channels // old), 1, 1)[:, :channels]
    return repeated * (old / channels)


def _resized_positions(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return a transformer's learned positions [1,P+N,D] for another image size, N a square grid; None where they are none.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.2, with bicubic interpolation.
    """
    is_positions = name.rpartition(".")[2] in ("pos_embed", "pos_embedding") and value.dim() == len(shape) == 3
    if not is_positions or value.shape[0] != 1 or value.shape[2] != shape[2]:
        return None
    for extra in _PREFIX_TOKENS:
        old, new = math.isqrt(value.shape[1] - extra), math.isqrt(shape[1] - extra)
        if old**2 + extra == value.shape[1] and new**2 + extra == shape[1]:
            grid = value[:, extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
            resized = functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
            return torch.cat([value[:, :extra].float(), resized.flatten(2).transpose(1, 2)], dim=1)
    return None
