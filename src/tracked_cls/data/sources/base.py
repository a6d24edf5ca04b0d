"""What a source is: a list of samples, and a cheap fingerprint of the input that tells whether it has changed."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tracked_cls.data.decode import Pixels
from tracked_cls.data.files import Stamp
from tracked_cls.data.names import is_utf8, natural_key
from tracked_cls.data.sources.patterns import captured
from tracked_cls.errors import UserError

SPLITS = ("train", "val", "test")
SPLIT_OF_WORD = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}  # as folders and columns say it


class Sample(NamedTuple):
    """One image as the source lists it: a unique path, its class names, and its split where the source gives one.

    There is exactly one class unless the source is multi-label. `group` names what must stay in one split.
    """

    path: str
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None
    weight: float = 1.0


class Source(ABC):
    """A named list of samples. `fingerprint` changes when the input does and costs no reading of images.

    `group_pattern` takes the group of each sample from its path.
    """

    def __init__(
        self,
        name: str,
        fingerprint: str,
        *,
        multi_label: bool = False,
        group_pattern: str | None = None,
        num_ignored: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.multi_label = multi_label
        self.num_ignored = num_ignored
        self._group_pattern = group_pattern
        self._notes = tuple(notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences worth telling the user: files that no row names, columns that nothing reads."""
        return self._notes

    @cached_property
    def samples(self) -> Sequence[Sample]:
        """The samples by (split, natural path): an order that no file system has a say in."""
        listed = self.listed()
        _check_classes(listed, self.name, multi_label=self.multi_label)
        return sorted(listed, key=lambda sample: (split_order(sample.split), natural_key(sample.path)))

    def listed(self) -> list[Sample]:
        """Return every sample once, in any order, with its group; whether the classes make sense is not checked."""
        samples = list(self._list())
        if self._group_pattern is None:
            return samples
        if any(sample.group is not None for sample in samples):
            raise UserError(
                f"{self.name}: gives groups of its own, which data.group_pattern contradicts; leave one of them out"
            )
        shown = f"data.group_pattern {self._group_pattern!r}"
        groups = captured(self._group_pattern, [sample.path for sample in samples], shown, self.name)
        return [sample._replace(group=group) for sample, group in zip(samples, groups, strict=True)]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes in natural order: "10" after "9"."""
        return tuple(sorted({label for sample in self.samples for label in sample.labels}, key=natural_key))

    @abstractmethod
    def _list(self) -> Iterable[Sample]:
        """Return every sample once, in any order."""

    @abstractmethod
    def path_of(self, sample: Sample) -> str | None:
        """Return the file of a sample (the folder of its frames); None for one that comes decoded."""

    @abstractmethod
    def array(self, sample: Sample) -> Pixels:
        """Return the uint8 array of a sample that comes decoded; raises `RejectedImage` for one that cannot be used."""

    @abstractmethod
    def stamp(self, sample: Sample) -> Stamp | None:
        """Return what tells that a sample's file has not changed since it was last read; None where nothing does."""


class FileSource(Source):
    """Samples that are image files, or folders of frames, below `root`."""

    def __init__(
        self, name: str, root: Path, fingerprint: str, samples: Sequence[Sample], stamps: Mapping[str, Stamp], **about: Any
    ) -> None:
        super().__init__(name, fingerprint, **about)
        self._prefix = os.path.join(root, "")  # noqa: PTH118 - as a text, once
        self._samples = samples
        self._stamps = stamps

    def _list(self) -> Iterable[Sample]:
        return self._samples

    def path_of(self, sample: Sample) -> str:
        """Return the file of a sample, or the folder of its frames."""
        return sample.path if sample.path.startswith("/") else self._prefix + sample.path  # os.path.join is ten times as slow

    def array(self, sample: Sample) -> Pixels:
        """Never called: a file is decoded."""
        raise AssertionError(f"{sample.path} is a file")

    def stamp(self, sample: Sample) -> Stamp | None:
        """Return size and time of the sample's file."""
        return self._stamps.get(sample.path)


class ArraySource(Source):
    """Samples that come decoded. `load` returns the arrays and is called once, when the first of them is asked for."""

    def __init__(self, name: str, fingerprint: str, load: Callable[[], Arrays], **about: Any) -> None:
        super().__init__(name, fingerprint, **about)
        self._load = load

    @cached_property
    def _arrays(self) -> Arrays:
        return self._load()

    @cached_property
    def _as_loaded(self) -> Mapping[str, Sample]:
        """Path -> sample before its group was filled in."""
        return {sample.path: sample for sample in self._arrays}

    def _list(self) -> Iterable[Sample]:
        return self._arrays

    def array(self, sample: Sample) -> Pixels:
        """Return uint8 [H,W] or [H,W,C], or [T,H,W,C] for frames; raises `RejectedImage` for one that cannot be decoded."""
        return self._arrays[self._as_loaded[sample.path]]

    def path_of(self, sample: Sample) -> None:
        """There is no file."""

    def stamp(self, sample: Sample) -> None:
        """Arrays are cheap to read again."""


Arrays = Mapping[Sample, Pixels]


def split_order(split: str | None) -> int:
    """Return the place of a split among the splits; samples without one come first."""
    return -1 if split is None else SPLITS.index(split)


def digest(rows: object) -> str:
    """Return 32 hex digits for plain values; odd file names included."""
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest of the names, sizes and times of files, which are not read."""
    return digest(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns // 1_000_000) for path in files))


def _check_classes(samples: Sequence[Sample], where: str, *, multi_label: bool) -> None:
    """Refuse lists of classes that cannot be learnt from, or that are probably not meant."""
    names = sorted({label for sample in samples for label in sample.labels}, key=natural_key)
    fewest = 1 if multi_label else 2
    if len(names) < fewest:
        found = ", ".join(map(repr, names)) or "none"
        raise UserError(f"{where}: a classifier needs at least {fewest} classes, found {len(names)}: {found}")
    odd = next((name for name in names if not is_utf8(name)), None)
    if odd is not None:
        raise UserError(f"{where}: the class name {odd!r} is not valid UTF-8; rename it")
    by_folded: dict[str, str] = {}
    for name in names:
        twin = by_folded.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), name)
        if twin != name:
            raise UserError(f"{where}: classes {twin!r} and {name!r} differ only in case or spelling; merge or rename them")
    given = {sample.split for sample in samples} - {None}
    learnt = {label for sample in samples if sample.split in (None, "train") for label in sample.labels}
    for sample in samples if given else ():
        for label in sample.labels:
            if label not in learnt:
                raise UserError(f"{where}: class {label!r} is in {sample.split}, but has no images in train")
