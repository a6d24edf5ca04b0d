"""Weights that others trained and published: torchvision's and timm's, by name, fetched once and kept.

What is fetched stays in the libraries' own caches (``$TORCH_HOME/hub/checkpoints``, ``$HF_HOME/hub``); where there is no
network, a file put there by hand does.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from tracked_cls import weights
from tracked_cls.console import say
from tracked_cls.errors import UserError
from tracked_cls.models import names
from tracked_cls.redaction import redacted

DEFAULT = "default"
_SHOWN = 200  # characters of a name in a message
_PATIENCE_SECONDS = 10.0  # without any byte
_HALF = ((0.5,) * 3, (0.5,) * 3)
_TRANSFORM_INPUT = ("googlenet", "inception_v3")  # torchvision turns ImageNet's scale into x*2-1 inside; our builders do not
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")  # old names that torchvision mends as well
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """Tensors by name, the mean and std per channel (0 to 1) that they were trained with, and what they are called."""

    tensors: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def find(model_name: str, weights_name: str) -> Published:
    """Return published weights of a network: ``default``, or the name torchvision or timm gives them.

    Raises `UserError` for an unknown name, with those there are, and where the file is neither kept nor to be had.
    """
    name = names.canonical(model_name)
    if name.startswith(names.TIMM):
        return _of_timm(name.removeprefix(names.TIMM), weights_name)
    if name in (names.SMALL_CNN, names.SEQUENTIAL) or names.is_own(name):
        raise UserError(
            f"model.weights={weights_name[:_SHOWN]}: no such file, and nobody publishes weights of model {name}; give a file, "
            "runs:/<id> or models:/<name>@<alias>"
        )
    return _of_torchvision(name, weights_name)


def _choose(model: str, name: str, known: Iterable[str], same: Callable[[str], str] = str) -> str:
    """Return the one of the known names that is meant."""
    by_spelling = {same(word): word for word in known}
    if same(name) not in by_spelling:
        near = get_close_matches(same(name), by_spelling, n=1)
        raise UserError(
            f"model.weights={name[:_SHOWN]}: no such file, and no published weights of model {model} have that name"
            f"{f'; did you mean {by_spelling[near[0]]!r}?' if near else ''}"
            f"; there are {', '.join([DEFAULT, *by_spelling.values()]) if by_spelling else 'none at all'}"
        )
    return by_spelling[same(name)]


# ---- torchvision -----------------------------------------------------------------------------------------------------


def _of_torchvision(name: str, weights_name: str) -> Published:
    from torchvision import models as zoo  # 4 s of import

    members = zoo.get_model_weights(name).__members__
    if weights_name.lower() == DEFAULT and members:
        entry = members["DEFAULT"]
    else:
        bare = weights_name.rpartition(".")[2]  # ResNet18_Weights.IMAGENET1K_V1, as torchvision's pages have it
        entry = members[_choose(name, bare, (word for word in members if word != "DEFAULT"), str.upper)]
    source = f"torchvision {name} {entry.name}"
    tensors = weights.read(_fetched(entry.url, source))
    values = entry.transforms()
    mean, std = _HALF if name in _TRANSFORM_INPUT else (tuple(values.mean), tuple(values.std))
    return Published({_DENSE_LAYER.sub(r"\1\2", key): tensor for key, tensor in tensors.items()}, mean, std, source)


def _fetched(url: str, source: str) -> Path:
    """Return the file of an address in torch's cache; what is fetched is checked against the digest in its name."""
    path = _by_hand(Path(urlsplit(url).path).name)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching weights {source} from {redacted(url)}")
    digest = torch.hub.HASH_REGEX.search(path.name)
    with _fetching(source, url, path):
        torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
    return path


def _by_hand(file_name: str) -> Path:
    """Return where torch keeps a file, and where a person may put it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file_name


@contextmanager
def _fetching(source: str, url: str, path: Path) -> Iterator[None]:
    """Turn what goes wrong with a network into one line that says what to do; give up on one that is silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = redacted(" ".join(str(error).split())[:200])
        raise UserError(
            f"weights {source} cannot be fetched from {redacted(url)}: {reason}; put the file by hand at {path}"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


# ---- timm ------------------------------------------------------------------------------------------------------------


def _of_timm(name: str, weights_name: str) -> Published:
    import timm  # seconds of import
    from timm.models import get_pretrained_cfg, list_pretrained

    bare, _, own_tag = name.partition(".")
    tags = [found.partition(".")[2] for found in list_pretrained(f"{bare}.*")]
    wanted = own_tag if weights_name.lower() == DEFAULT else weights_name.removeprefix(f"{bare}.")
    default = get_pretrained_cfg(bare)
    tag = default.tag if not wanted and tags and default else _choose(f"timm/{bare}", wanted or DEFAULT, tags)
    cfg = get_pretrained_cfg(f"{bare}.{tag}")
    source = f"timm {bare}.{tag}"
    found = weights.read(_timm_file(cfg, f"{bare}.{tag}", source))
    with torch.random.fork_rng(devices=[]):  # the network to train is drawn as it is without weights
        network = _filled(timm.create_model, bare, tag, found, source)
    return Published(network.state_dict(), tuple(cfg.mean), tuple(cfg.std), source)


def _filled(create: Callable[..., Any], bare: str, tag: str, tensors: dict[str, Tensor], source: str) -> torch.nn.Module:
    """Return timm's network of that name with these tensors: timm knows how to turn old files into today's names."""
    overlay = {"state_dict": tensors, "custom_load": False}
    try:
        network = create(bare, pretrained=True, pretrained_cfg=tag, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"weights {source}: the file holds another network: {str(error).splitlines()[-1].strip()}") from None
    assert isinstance(network, torch.nn.Module)
    return network


def _timm_file(cfg: Any, name: str, source: str) -> Path:
    for suffix in (".safetensors", ".pth"):
        if (path := _by_hand(name + suffix)).exists():
            return path
    return _from_hub(cfg, name, source) if cfg.hf_hub_id else _fetched(cfg.url, source)


def _from_hub(cfg: Any, name: str, source: str) -> Path:
    """Return a file of the Hugging Face hub from its cache, else from the network."""
    import huggingface_hub as hub  # comes with timm

    repository, _, revision = cfg.hf_hub_id.partition("@")
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else _HUB_FILES
    for file in files:
        kept = hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(kept, str):
            return Path(kept)
    address = f"{hub.constants.ENDPOINT}/{repository}"
    with _fetching(source, address, _by_hand(f"{name}.safetensors")):
        _reach(address)
        say(f"fetching weights {source} from {redacted(address)}")
        return _download(hub, repository, files, revision or None)


def _download(hub: Any, repository: str, files: Iterable[str], revision: str | None) -> Path:
    for file in files:
        try:
            return Path(hub.hf_hub_download(repository, file, revision=revision))
        except hub.errors.LocalEntryNotFoundError:  # a kind of EntryNotFoundError that means: no network
            raise
        except hub.errors.EntryNotFoundError:
            continue
    raise FileNotFoundError(f"it holds no {' or '.join(files)}")


def _reach(url: str) -> None:
    """Raise `OSError` at once where there is no way to a host: the hub's own client tries on for most of a minute."""
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return  # a proxy finds the way; offline, the client itself refuses
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=_PATIENCE_SECONDS).close()
