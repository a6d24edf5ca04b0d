"""Several sources as one: training images from the main source, validation or test images from others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from tracked_cls.data.decode import Pixels
from tracked_cls.data.files import Stamp
from tracked_cls.data.sources.base import Sample, Source, digest
from tracked_cls.errors import UserError


class CompositeSource(Source):
    """The samples of `main`, and those of each other source in the split it stands for, whatever split they had.

    Paths begin with the split, so that no two sources share one; an image of `main` without a split is below ``train/``.
    """

    def __init__(self, main: Source, others: Mapping[str, Source], **about: Any) -> None:
        parts = [(split, other.fingerprint) for split, other in sorted(others.items())]
        num_ignored = main.num_ignored + sum(other.num_ignored for other in others.values())
        super().__init__(main.name, digest((main.fingerprint, parts)), num_ignored=num_ignored, **about)
        self._main = main
        self._others = others

    @cached_property
    def _parts(self) -> dict[str, list[Sample]]:
        """Split -> what the source that stands for it lists; the main source under an empty name."""
        return {"": self._main.listed(), **{split: other.listed() for split, other in self._others.items()}}

    @cached_property
    def _origin(self) -> dict[str, tuple[Sample, Source, Sample]]:
        """Path -> the sample as it is listed here, its source, and the sample as it is listed there."""
        self._check_splits()
        origin: dict[str, tuple[Sample, Source, Sample]] = {}
        for part, samples in self._parts.items():
            for sample in samples:
                split = part or sample.split
                listed = sample._replace(path=f"{split or 'train'}/{sample.path}", split=split)
                origin[listed.path] = listed, self._others.get(part, self._main), sample
        return origin

    def _check_splits(self) -> None:
        for sample in self._parts[""]:
            if sample.split in self._others:
                raise UserError(
                    f"data.{sample.split}.source: {self._main.name} gives a {sample.split} split itself, e.g. {sample.path!r}; "
                    f"leave out data.{sample.split}.source, or remove that split from the main source"
                )

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all parts, and the splits that do not count."""
        own = [*self._main.notes]
        for split, other in self._others.items():
            own += other.notes
            had = sorted({sample.split for sample in self._parts[split] if sample.split not in (None, split)}, key=str)
            if had:
                own.append(
                    f"data.{split}: {other.name} has the splits {', '.join(map(str, had))}; all of its images are {split} here"
                )
        return tuple(own)

    def _list(self) -> Iterable[Sample]:
        return [listed for listed, _, _ in self._origin.values()]

    def path_of(self, sample: Sample) -> str | None:
        """Return the file of a sample; None for one that comes decoded."""
        _, source, original = self._origin[sample.path]
        return source.path_of(original)

    def array(self, sample: Sample) -> Pixels:
        """Return the array of a sample that comes decoded."""
        _, source, original = self._origin[sample.path]
        return source.array(original)

    def stamp(self, sample: Sample) -> Stamp | None:
        """Return the stamp of a sample's file, where it has one."""
        _, source, original = self._origin[sample.path]
        return source.stamp(original)
