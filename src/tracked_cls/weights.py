"""Network weights as files: read without running code in them, written as safetensors, named by a digest of what they hold."""

from __future__ import annotations

import hashlib
import os
import pickle  # the error's name alone: torch reports refused code with it
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tracked_cls.errors import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
_SAFE = ".safetensors"
_SHOWN = 200  # characters of a path in a message
_AVERAGES = ("average", "state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights", "params")
_KEYS = (*_AVERAGES, *_PLAIN, "student", "teacher")  # averaged weights first: those are the ones that were validated


def digest(model: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 over every tensor's name, type, shape and bytes, in the order of names."""
    return digest_of(model.state_dict())


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of tensors that a network does not hold yet."""
    sha = hashlib.sha256()
    for name, tensor in sorted(_plain(tensors).items()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # bytes: numpy has no bfloat16
    return sha.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the digest of the network whose weights a file holds; it does not depend on the file's format."""
    return digest_of(read(path))


def save(model: nn.Module, path: Path) -> None:
    """Write the weights and buffers of a network."""
    save_file(_plain(model.state_dict()), path)


def load(model: nn.Module, path: Path) -> None:
    """Load a file that `save` wrote into a network of the same architecture.

    Raises `UserError` where the file is damaged or does not fit; no code in it is ever run.
    """
    try:
        model.load_state_dict(_read_safetensors(path))
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the network: {str(error).splitlines()[-1].strip()}") from None


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a network by name, on the CPU: of a .safetensors file, or of what `torch.save` wrote.

    In a training program's checkpoint the network is looked for under the usual keys, averaged weights first. Raises
    `UserError` for a file that is missing, damaged, without tensors, or that only running its code could read.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{str(path)[:_SHOWN]}: weights are files that end in {', '.join(SUFFIXES)}")
    if not is_file(path):
        raise UserError(f"{str(path)[:_SHOWN]}: there is no such file of weights")
    content = _read_safetensors(path) if path.suffix == _SAFE else _read_torch(path)
    tensors = _network_in(content)
    if not tensors:
        held = ", ".join(str(key) for key in list(content)[:8]) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"{path}: no tensors by name in it, nor under {', '.join(_KEYS)}; it holds: {held or 'nothing'}")
    return tensors


def is_file(path: Path) -> bool:
    """Tell whether there is a file of that name, also of a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - the method of Path raises where a name is too long


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a sound safetensors file: {error}") from None
    return tensors


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise UserError(f"{path}: damaged, or not written by torch.save: {_line(error)}") from None
        raise UserError(
            f"{path}: holds more than tensors{_code_in(path)}, which only running code from the file could read; "
            "convert it where it was made: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from None
    except Exception as error:  # an untrusted file: torch raises whatever its bytes lead to
        raise UserError(f"{path}: damaged, or not written by torch.save: {_line(error)}") from None


def _code_in(path: Path) -> str:
    """Return the names in a file that are no tensors, as a remark."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # an old or odd format: the names are a courtesy
        return ""
    return f" ({', '.join(sorted(names)[:4])})" if names else ""


def _network_in(content: Any) -> dict[str, Tensor]:
    """Return the tensors by name under the first usual key that holds a network's state, else those of the mapping itself."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    for key in _KEYS:
        if found := _network_in(content.get(key)):
            return found
    return tensors if any(tensor.dim() > 1 for tensor in tensors.values()) else {}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
