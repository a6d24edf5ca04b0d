"""What a source is: a list of samples, and a cheap fingerprint of the input that tells whether it has changed."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tracked_cls.data.decode import Pixels
from tracked_cls.errors import UserError

SPLITS = ("train", "val", "test")


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
        return sorted(listed, key=lambda sample: (split_order(sample.split), natural_key(sample.path)))

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes in natural order: "10" after "9"."""
        return tuple(sorted({sample.label for sample in self.samples}, key=natural_key))

    @abstractmethod
    def _list(self) -> Iterable[Sample]:
        """Return every sample once, in any order."""


class FileSource(Source):
    """Samples that are image files below `root`."""

    def __init__(self, name: str, root: Path, fingerprint: str, samples: Sequence[Sample], num_ignored: int) -> None:
        super().__init__(name, fingerprint)
        self.root = root
        self.num_ignored = num_ignored
        self._samples = samples

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


def natural_key(text: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key that orders runs of digits by value, and equal ones by spelling."""
    parts = re.split(r"([0-9]+)", text)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), text


def split_order(split: str | None) -> int:
    """Return the place of a split among the splits; samples without one come first."""
    return -1 if split is None else SPLITS.index(split)


def digest(rows: object) -> str:
    """Return 32 hex digits for plain values; odd file names included."""
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest of the names, sizes and times of files, which are not read."""
    return digest(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns // 1_000_000) for path in files))


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
