"""Where images come from: a list of samples, and a cheap fingerprint of the input that tells whether it has changed."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import math
import os
import re
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from tracked_cls.config import DataConfig
from tracked_cls.data.decode import EXTENSIONS, Pixels, RejectedImage, pixels_of
from tracked_cls.errors import UserError, lookup

SPLITS = ("train", "val", "test")
_SPLIT_OF_FOLDER = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SKIPPED_FOLDERS = {"__MACOSX"}


class Sample(NamedTuple):
    """One image as the source lists it: a unique path, its class, and its split where the source gives one."""

    path: str
    label: str
    split: str | None


class Source(ABC):
    """A named list of samples. `fingerprint` changes when the input does and costs no reading of images."""

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.num_ignored = 0

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """The samples by (split, natural path): an order that no file system has a say in."""
        listed = list(self._list())
        _check_classes(listed, self.name)
        return sorted(listed, key=lambda sample: (_split_order(sample.split), natural_key(sample.path)))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes in natural order: "10" after "9"."""
        return tuple(sorted({sample.label for sample in self.samples}, key=natural_key))

    @abstractmethod
    def _list(self) -> Iterable[Sample]:
        """Return every sample once, in any order."""


class FileSource(Source):
    """Samples that are image files below `root`."""

    def __init__(self, name: str, root: Path, files: Sequence[_File], layout: _Layout) -> None:
        super().__init__(name, _digest(sorted(files)))
        self.root = root
        self.num_ignored = layout.num_ignored
        self._samples = layout.samples

    def _list(self) -> Iterable[Sample]:
        return self._samples

    def path_of(self, sample: Sample) -> str:
        """Return the file of a sample."""
        return str(self.root / sample.path)


class ArraySource(Source):
    """Samples that come decoded. `load` returns the arrays and is called once, when the first of them is asked for."""

    def __init__(self, name: str, fingerprint: str, load: Callable[[], Arrays]) -> None:
        super().__init__(name, fingerprint)
        self._load = load

    @cached_property
    def _arrays(self) -> Arrays:
        return self._load()

    def _list(self) -> Iterable[Sample]:
        return self._arrays

    def array(self, sample: Sample) -> Pixels:
        """Return the uint8 [H,W] or [H,W,C] array of a sample; raises `RejectedImage` for one that cannot be decoded."""
        return self._arrays[sample]


Arrays = Mapping[Sample, Pixels]


def scan(cfg: DataConfig, root: Path | None) -> Source:
    """Return the source that `cfg.source` names. Lists files, reads no image."""
    return lookup(cfg.source, _SCANNERS, "data.source")(cfg, root)


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key that orders runs of digits by value, and equal ones by spelling."""
    parts = re.split(r"([0-9]+)", text)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), text


def _split_order(split: str | None) -> int:
    return -1 if split is None else SPLITS.index(split)


def _digest(rows: object) -> str:
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogateescape")).hexdigest()[:32]


# ---- digits ----------------------------------------------------------------------------------------------------------


def _scan_digits(cfg: DataConfig, root: Path | None) -> ArraySource:
    version = importlib.metadata.version("scikit-learn")
    return ArraySource(cfg.label, _digest(("digits", version)), _load_digits)


def _load_digits() -> Arrays:
    from sklearn.datasets import load_digits  # a second to import, not needed when the digits are prepared already

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return {
        Sample(f"digits/{index:04d}", str(label), None): image
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True))
    }


# ---- one folder per class --------------------------------------------------------------------------------------------

_File = tuple[str, int, int]  # path relative to the root, size in bytes, mtime in ms


@dataclass
class _Layout:
    samples: list[Sample]
    num_ignored: int


def _scan_folder(cfg: DataConfig, root: Path | None) -> FileSource:
    if root is None or not root.exists():
        raise UserError(f"data.root: {str(root)!r} does not exist; give the folder that holds one folder per class")
    if not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is a file; give the folder that holds one folder per class")
    images, num_ignored = _walk(root)
    top = sorted(_folders(root), key=natural_key)
    stray = [path for path, _, _ in images if "/" not in path]
    if stray:
        raise UserError(
            f"{root}: {len(stray)} images lie directly in it, e.g. {min(stray)!r}; move each into the folder of its class"
        )
    if not images and not any(_is_split_layout(root, folder) for folder in top):
        raise UserError(f"{root}: no images in it; known extensions are {' '.join(sorted(EXTENSIONS))}")
    split_folders = _split_folders(root, top, images)
    samples = list(_samples_of(root, images, split_folders))
    return FileSource(cfg.label, root, images, _Layout(samples, num_ignored))


def _walk(root: Path) -> tuple[list[_File], int]:
    """Return every image file below root, and the number of other visible files. Links are followed, circles are not."""
    images: list[_File] = []
    num_ignored = 0
    pending: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", (os.path.realpath(root),))]
    while pending:
        folder, prefix, ancestors = pending.pop()
        for entry in _visible(folder):
            path = prefix + entry.name
            is_image = os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122 - hot, and names may be odd
            if is_image:  # also a folder or a pipe of that name: decoding rejects it by name
                images.append(_stat(entry, path))
            elif entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{ancestors[-1]}/{entry.name}"
                if real not in ancestors:
                    pending.append((entry.path, path + "/", (*ancestors, real)))
            else:
                num_ignored += 1
    return images, num_ignored


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SKIPPED_FOLDERS)
    except PermissionError:
        raise UserError(f"{folder}: this folder may not be read; change its permissions or move it away") from None


def _stat(entry: os.DirEntry[str], path: str) -> _File:
    try:
        status = entry.stat()
    except OSError:  # a dangling link; decoding rejects it by name
        return path, -1, 0
    return path, status.st_size, status.st_mtime_ns // 1_000_000


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _visible(str(folder)) if entry.is_dir()]


def _is_split_layout(root: Path, name: str) -> bool:
    return name in _SPLIT_OF_FOLDER and bool(_folders(root / name))


def _split_folders(root: Path, top: Sequence[str], images: Sequence[_File]) -> dict[str, str]:
    """Return folder -> split where the root holds split folders, which hold class folders; else nothing.

    A class may be called ``train``: its images then lie directly in it.
    """
    direct = {path.split("/")[0] for path, _, _ in images if path.count("/") == 1}
    if "train" not in top or "train" in direct or not _is_split_layout(root, "train"):
        if top and set(top) <= set(_SPLIT_OF_FOLDER) and not direct:
            raise UserError(f"{root}: there is no folder 'train' beside {', '.join(top)}; add it, with one folder per class")
        return {}
    found = {name: _SPLIT_OF_FOLDER[name] for name in top if name in _SPLIT_OF_FOLDER}
    doubled = [split for split, count in Counter(found.values()).items() if count > 1]
    if doubled:
        names = ", ".join(name for name, split in found.items() if split in doubled)
        raise UserError(f"{root}: {names} all mean the split {doubled[0]!r}; keep one of them")
    with_images = {path.split("/")[0] for path, _, _ in images}
    extra = sorted(with_images - set(found))
    if extra:
        raise UserError(f"{root}: {extra[0]!r} lies beside the split folders {', '.join(found)} and holds images; move it away")
    loose = sorted(set(found) & direct)
    if loose:
        raise UserError(f"{root / loose[0]}: images lie directly in it; move each into a folder named after its class")
    return found


def _samples_of(root: Path, images: Sequence[_File], split_folders: Mapping[str, str]) -> Iterator[Sample]:
    depth = 1 if split_folders else 0
    with_images: set[str] = set()
    for path, _, _ in images:
        parts = path.split("/", depth + 1)
        with_images.add("/".join(parts[: depth + 1]))
        yield Sample(path, parts[depth], split_folders[parts[0]] if split_folders else None)
    tops = [f"{name}/" for name in split_folders] or [""]
    for folder in (top + name for top in tops for name in _folders(root / top)):
        if folder not in with_images:
            raise UserError(f"{root / folder}: the class folder holds no images; add some or remove the folder")


def _check_classes(samples: Sequence[Sample], where: str) -> None:
    """Refuse lists of classes that cannot be learnt from, or that are probably not meant."""
    names = sorted({sample.label for sample in samples}, key=natural_key)
    if len(names) < 2:
        raise UserError(f"{where}: a classifier needs at least 2 classes, found {len(names)}: {', '.join(names) or 'none'}")
    odd = next((name for name in names if not _is_utf8(name)), None)
    if odd is not None:
        raise UserError(f"{where}: the class name {odd!r} is not valid UTF-8; rename the folder")
    by_folded: dict[str, str] = {}
    for name in names:
        twin = by_folded.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), name)
        if twin != name:
            raise UserError(f"{where}: classes {twin!r} and {name!r} differ only in case or spelling; merge or rename them")
    given = {sample.split for sample in samples} - {None}
    learnt = {sample.label for sample in samples if sample.split in (None, "train")}
    for sample in samples:
        if given and sample.label not in learnt:
            raise UserError(f"{where}: class {sample.label!r} is in {sample.split}, but has no images in train")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- IDX, the format of MNIST ----------------------------------------------------------------------------------------

_IDX_SPLITS = {"train": "train", "val": "val", "t10k": "test", "test": "test"}
_IDX_KINDS = {"images": ("images-idx3-ubyte", 3), "labels": ("labels-idx1-ubyte", 1)}
_MAX_GZIP_RATIO = 1032  # deflate cannot do better, so a header that promises more lies


def _scan_idx(cfg: DataConfig, root: Path | None) -> ArraySource:
    if root is None or not root.is_dir():
        raise UserError(f"data.root: {str(root)!r} is no folder; give the folder that holds train-images-idx3-ubyte[.gz]")
    pairs = _find_idx(root)
    files = [path for pair in pairs.values() for path in pair]
    return ArraySource(cfg.label, _digest_of_files(files), lambda: _load_idx(pairs))


def _find_idx(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return prefix -> (images file, labels file) from the first folder that has any."""
    folders = [root, root / "raw", root / "MNIST" / "raw"]
    for folder in folders:
        pairs: dict[str, tuple[Path, Path]] = {}
        for prefix in _IDX_SPLITS:
            images, labels = (_idx_file(folder, f"{prefix}-{kind}") for kind, _ in _IDX_KINDS.values())
            if (images is None) != (labels is None):
                there = images or labels
                raise UserError(f"{there}: the file of its {'labels' if images else 'images'} is missing beside it")
            if images and labels:
                pairs[prefix] = images, labels
        if pairs:
            _check_idx_splits(folder, pairs)
            return pairs
    raise UserError(f"{root}: no *-images-idx3-ubyte[.gz] in it, nor in its raw or MNIST/raw")


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _check_idx_splits(folder: Path, pairs: Mapping[str, object]) -> None:
    if "train" not in pairs:
        raise UserError(f"{folder}: train-images-idx3-ubyte[.gz] is missing")
    if "t10k" in pairs and "test" in pairs:
        raise UserError(f"{folder}: t10k-* and test-* both mean the test split; keep one of them")


def _digest_of_files(files: Iterable[Path]) -> str:
    return _digest(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns // 1_000_000) for path in files))


def _load_idx(pairs: Mapping[str, tuple[Path, Path]]) -> Arrays:
    arrays: dict[Sample, Pixels] = {}
    for prefix, (images_file, labels_file) in pairs.items():
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise UserError(f"{images_file}: {len(images)} images, but {labels_file.name} has {len(labels)} labels")
        for index, label in enumerate(labels.tolist()):
            arrays[Sample(f"{prefix}/{index:05d}", str(label), _IDX_SPLITS[prefix])] = images[index]
    return arrays


def read_idx(path: Path, ndim: int) -> Pixels:
    """Return an IDX file of unsigned bytes, plain or gzipped; whatever is wrong with it is a `UserError` naming it."""
    is_gzip = path.suffix == ".gz"
    try:
        with path.open("rb") as raw, cast(BinaryIO, gzip.open(raw)) if is_gzip else raw as stream:
            return _read_idx(stream, path, ndim, path.stat().st_size * (_MAX_GZIP_RATIO if is_gzip else 1))
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: the file is cut short or damaged ({error}); fetch it anew") from None


def _read_idx(stream: BinaryIO, path: Path, ndim: int, most_bytes: int) -> Pixels:
    header = stream.read(4 + 4 * ndim)
    if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
        raise UserError(f"{path}: not an IDX file of {ndim}-dimensional bytes (its first bytes are {header[:4].hex(' ')})")
    shape = [int.from_bytes(header[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim)]
    size = math.prod(shape)
    if 0 in shape:
        raise UserError(f"{path}: its header says that it is empty: {shape}")
    if size > most_bytes:
        raise UserError(f"{path}: cut short: its header promises {size} bytes, which a file of its length cannot hold")
    content = stream.read(size + 1)
    if len(content) != size:
        more = "more" if len(content) > size else f"only {len(content)}"
        raise UserError(f"{path}: its header promises {size} bytes, but {more} follow; fetch it anew")
    return np.frombuffer(content, np.uint8).reshape(shape)


# ---- torchvision's sets ----------------------------------------------------------------------------------------------

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
                sample = Sample(f"{name}/{split or 'all'}/{index:06d}", shown, split)
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


def _scan_torchvision(cfg: DataConfig, root: Path | None) -> ArraySource:
    name = cfg.label
    wanted = lookup(name, _VISION_SETS, "torchvision set (data.name)")
    if root is None:
        raise UserError("data.source=torchvision needs data.root, the folder of the downloaded sets")
    marker = root / wanted.marker
    # what is not there yet is fetched now: the fingerprint is that of the files
    fetched = None if marker.exists() else _load_vision_set(name, root, cfg.download)
    files = [path for path in marker.rglob("*") if path.is_file()] if marker.is_dir() else [marker]
    fingerprint = _digest((name, _digest_of_files(path for path in files if path.exists())))
    return ArraySource(name, fingerprint, lambda: fetched or _load_vision_set(name, root, cfg.download))


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


_SCANNERS: dict[str, Callable[[DataConfig, Path | None], Source]] = {
    "digits": _scan_digits,
    "folder": _scan_folder,
    "idx": _scan_idx,
    "torchvision": _scan_torchvision,
}


def list_images(root: Path) -> list[str]:
    """Return the path of every image below a folder, relative to it, in natural order."""
    return sorted((path for path, _, _ in _walk(root)[0]), key=natural_key)
