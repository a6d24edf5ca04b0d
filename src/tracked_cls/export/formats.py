"""The files of an export, each made of the model that is registered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tracked_cls import conversion
from tracked_cls.errors import UserError
from tracked_cls.models import PooledFrames, Shape, canonical, first_convolution
from tracked_cls.models.names import SEQUENTIAL, SMALL_CNN, TIMM, is_own
from tracked_cls.provenance import environment
from tracked_cls.redaction import reason_of
from tracked_cls.serving.packaging import EXPORTED_WEIGHTS, META, ONNX, Bundle

FILE_BY_FORMAT = {"onnx": ONNX, "pt2": "model.pt2", "safetensors": EXPORTED_WEIGHTS}
CONFIG = "config.json"


def write(bundle: Bundle, network: nn.Module, meta: Mapping[str, Any], formats: Sequence[str], folder: Path) -> None:
    """Write a model in some formats, and its description, into an empty folder.

    The ONNX graph and the tensors are those that are registered; `network` was built of them.
    """
    (folder / META).write_bytes(as_json(meta))
    if "onnx" in formats:
        conversion.annotate(bundle.onnx, folder / ONNX, conversion.metadata_of(meta))
    if "pt2" in formats:
        _write_pt2(network, meta, folder / FILE_BY_FORMAT["pt2"])
    if "safetensors" in formats:
        shutil.copyfile(bundle.weights, folder / EXPORTED_WEIGHTS)
        (folder / CONFIG).write_bytes(as_json({**meta, **how_to_build(network, meta)}))


def _write_pt2(network: nn.Module, meta: Mapping[str, Any], path: Path) -> None:
    try:
        conversion.to_pt2(network, Shape(**meta["architecture"]["shape"]), path, meta)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever the network's lines lead to
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"torch.export cannot take this network ({reason}); leave pt2 out of export.formats") from error


def as_json(content: Mapping[str, Any]) -> bytes:
    """Return a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def how_to_build(network: nn.Module, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what somebody without this project needs to build the network: the library's name for it, and what differs.

    ``first_convolution`` was fitted to the channels and the size of the images; ``without`` names modules that do nothing,
    among them the pooling that small images do without.
    """
    architecture, inner = meta["architecture"], network.network if isinstance(network, PooledFrames) else network
    assert isinstance(inner, nn.Module)
    library, name = _library(str(architecture["model"]["name"]))
    return {
        "library": library,
        "name": name,
        "arguments": architecture["model"].get("args") or {},
        "num_classes": len(meta["classes"]),
        "first_convolution": _described(first_convolution(inner)),
        "without": [path for path, module in inner.named_modules() if type(module) is nn.Identity],
        "prefix": "network." if isinstance(network, PooledFrames) else "",
        "versions": environment()["packages"],
    }


def _library(name: str) -> tuple[str, str]:
    """Return who builds a network, and what it is called there."""
    known = canonical(name)
    if is_own(known):
        return "own", known
    if known in (SMALL_CNN, SEQUENTIAL):
        return "tracked_cls", known
    return ("timm", known.removeprefix(TIMM)) if known.startswith(TIMM) else ("torchvision", known)


def _described(found: tuple[str, nn.Conv2d] | None) -> dict[str, Any] | None:
    """Return the path and the arguments of a convolution, as `torch.nn.Conv2d` takes them."""
    if found is None:
        return None
    path, layer = found
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {"path": path, "arguments": {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}}
