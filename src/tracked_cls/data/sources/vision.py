"""torchvision's data sets by name: read where they are, downloaded where there is a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import Pixels, RejectedImage, pixels_of
from tracked_cls.data.sources.base import SPLITS, Arrays, ArraySource, Sample, digest, digest_of_files
from tracked_cls.errors import UserError, lookup

_BY_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME: dict[str, dict[str, Any]] = {name: {"split": name} for name in ("train", "test")}
_WITH_VAL: dict[str, dict[str, Any]] = {name: {"split": name} for name in SPLITS}


class _VisionSet(NamedTuple):
    """How a set takes its splits, and the path below the root that exists once it has been unpacked."""

    splits: Mapping[str | None, Mapping[str, Any]]
    marker: str


def _vision_set(marker: str, splits: Mapping[str, Mapping[str, Any]] | None, **every: Any) -> _VisionSet:
    """Describe a set; `splits` None: the set comes as one. `every` is passed for each split."""
    each: dict[str | None, Mapping[str, Any]] = {name: {**every, **kwargs} for name, kwargs in (splits or {}).items()}
    return _VisionSet(each or {None: every}, marker)


_VISION_SETS = {
    "MNIST": _vision_set("MNIST/raw", _BY_FLAG),
    "FashionMNIST": _vision_set("FashionMNIST/raw", _BY_FLAG),
    "KMNIST": _vision_set("KMNIST/raw", _BY_FLAG),
    "QMNIST": _vision_set("QMNIST/raw", _BY_FLAG),
    "EMNIST": _vision_set("EMNIST/raw", _BY_FLAG, split="balanced"),
    "USPS": _vision_set("usps.bz2", _BY_FLAG),
    "CIFAR10": _vision_set("cifar-10-batches-py", _BY_FLAG),
    "CIFAR100": _vision_set("cifar-100-python", _BY_FLAG),
    "SVHN": _vision_set("train_32x32.mat", _BY_NAME),
    "STL10": _vision_set("stl10_binary", _BY_NAME),
    "GTSRB": _vision_set("gtsrb", _BY_NAME),
    "Food101": _vision_set("food-101", _BY_NAME),
    "RenderedSST2": _vision_set("rendered-sst2", _WITH_VAL),
    "Flowers102": _vision_set("flowers-102", _WITH_VAL),
    "DTD": _vision_set("dtd", _WITH_VAL),
    "FGVCAircraft": _vision_set("fgvc-aircraft-2013b", _WITH_VAL),
    "OxfordIIITPet": _vision_set("oxford-iiit-pet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "EuroSAT": _vision_set("eurosat", None),
    "SUN397": _vision_set("SUN397", None),
}


class _VisionArrays(Mapping[Sample, Pixels]):
    """Samples of torchvision datasets, each decoded when it is asked for."""

    def __init__(self, datasets: Mapping[str | None, Any], name: str) -> None:
        self._place: dict[Sample, tuple[Any, int]] = {}
        for split, dataset in datasets.items():
            names = _class_names_of(dataset)
            for index, label in enumerate(_labels_of(dataset)):
                shown = names[label] if label < len(names) else str(label)
                sample = Sample(f"{name}/{split or 'all'}/{index:06d}", (shown,), split)
                self._place[sample] = (dataset, index)

    def __getitem__(self, sample: Sample) -> Pixels:
        dataset, index = self._place[sample]
        try:
            return pixels_of(dataset[index][0])
        except RejectedImage:
            raise
        except Exception as error:  # the image files are the user's: whatever Pillow meets in one of them
            raise RejectedImage("E_CORRUPT", f"the image is damaged: {error}") from None

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


def scan_torchvision(cfg: DataConfig, root: Path | None) -> ArraySource:
    """Return a torchvision set, fetched into `root` first where it is not there."""
    name = cfg.label
    wanted = lookup(name, _VISION_SETS, "torchvision set (data.name)")
    if root is None:
        raise UserError("data.source=torchvision needs data.root, the folder of the downloaded sets")
    marker = root / wanted.marker
    # what is not there yet is fetched now: the fingerprint is that of the files
    fetched = None if marker.exists() else _load_vision_set(name, root, cfg.download)
    files = [path for path in marker.rglob("*") if path.is_file()] if marker.is_dir() else [marker]
    fingerprint = digest((name, digest_of_files(path for path in files if path.exists())))

    def load() -> Arrays:
        return fetched or _load_vision_set(name, root, cfg.download)

    return ArraySource(name, fingerprint, load, group_pattern=cfg.group_pattern)


def _load_vision_set(name: str, root: Path, download: bool) -> Arrays:
    from torchvision import datasets  # torch takes seconds to import: only this source needs it

    # a dict literal of classes would import torch at the top; the name comes from our own table, never from the user
    factory = getattr(datasets, name)
    splits = _VISION_SETS[name].splits
    return _VisionArrays({split: _open_split(factory, root, kwargs, download) for split, kwargs in splits.items()}, name)


def _open_split(factory: Callable[..., Any], root: Path, kwargs: Mapping[str, Any], download: bool) -> Any:
    try:
        return factory(root, download=False, **kwargs)
    except (RuntimeError, OSError) as missing:
        name = factory.__name__
        if not download:
            raise UserError(f"{name}: not complete in {root} ({_line(missing)}); set data.download=true") from None
    try:
        root.mkdir(parents=True, exist_ok=True)
        return factory(root, download=True, **kwargs)
    except Exception as error:  # urllib, tarfile, zipfile, md5: all of them say that the set could not be had
        cure = "copy its files there, or run where the network is open"
        raise UserError(f"{name}: not complete in {root}, and it could not be downloaded ({_line(error)}); {cure}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _class_names_of(dataset: Any) -> list[str]:
    """Return the set's own names, ``0 - zero`` shortened to ``0``, made distinct; empty where it has none."""
    names = [re.sub(r"^(\d+) - \w+$", r"\1", str(name)) for name in getattr(dataset, "classes", [])]
    folded = Counter(name.strip().casefold() for name in names)
    # EMNIST has letters of both cases; they stay apart by their code
    return [f"{name} (U+{ord(name):04X})" if folded[name.casefold()] > 1 and len(name) == 1 else name for name in names]


def _labels_of(dataset: Any) -> list[int]:
    """Return the label of every item without decoding one: each set keeps them under one of these names."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            labels: npt.NDArray[Any] = np.asarray(getattr(dataset, attribute))
            return [int(label) for label in (labels if labels.ndim == 1 else labels[:, 0])]
    return [int(label) for _, label in dataset._samples]
