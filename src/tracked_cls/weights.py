"""Network weights as safetensors files, named by a digest of what they hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tracked_cls.errors import UserError


def digest(model: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 over every tensor's name, type, shape and bytes, in the order of names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(_tensors(model).items()):
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()[:16]


def save(model: nn.Module, path: Path) -> None:
    """Write the weights and buffers of a network."""
    save_file(_tensors(model), path)


def load(model: nn.Module, path: Path) -> None:
    """Load a file that `save` wrote into a network of the same architecture.

    Raises `UserError` where the file is damaged or does not fit; no code in it is ever run.
    """
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a sound safetensors file: {error}") from None
    except RuntimeError as error:
        raise UserError(f"{path}: the weights do not fit the network: {str(error).splitlines()[-1].strip()}") from None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
