"""Every image of a source decoded once, in parallel: the accepted ones column by column, the rejected ones by name."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from tracked_cls import failpoints
from tracked_cls.console import progress
from tracked_cls.data.decode import RejectedImage
from tracked_cls.data.decoders import Decoders, Limits
from tracked_cls.data.ingest import Outcome, Plan, Record, Rejection, Sums, digests, header_shapes, ingest_array, ingest_files
from tracked_cls.data.names import printable
from tracked_cls.data.sources import Sample, Source
from tracked_cls.errors import UserError

CHUNK = 256  # files per task of a decoding process, and images per write
_CHUNK_BYTES = 1 << 26  # what a task may bring back; some tasks per process are under way
_FILE_BYTES = 1 << 22  # a large photo
_HEADERS = 100  # files whose headers decide the automatic image size
_EXAMPLES = 5


@dataclass
class Intake:
    """The accepted images, column by column in manifest order; `outcomes` of all samples, pixels left out."""

    samples: list[Sample] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    pixel_digests: list[str] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)
    outcomes: list[tuple[Sample, Outcome]] = field(default_factory=list)

    @property
    def rejected(self) -> list[tuple[str, str, str]]:
        """The rejected samples as (path, code, reason)."""
        return [
            (printable(sample.path), outcome.code, outcome.reason)
            for sample, outcome in self.outcomes
            if isinstance(outcome, Rejection)
        ]

    @property
    def changes(self) -> list[tuple[str, str]]:
        """What decoding altered, as (path, change): every accepted file, for each change."""
        accepted = ((sample.path, outcome.changes) for sample, outcome in self.outcomes if not isinstance(outcome, Rejection))
        return [(path, change) for path, changes in accepted for change in changes]

    def changed(self) -> dict[str, dict[str, object]]:
        """Return what decoding altered -> how many accepted images it altered, and some of their paths."""
        paths: dict[str, list[str]] = {}
        for path, change in self.changes:
            paths.setdefault(change, []).append(path)
        return {change: {"count": len(found), "examples": found[:_EXAMPLES]} for change, found in sorted(paths.items())}


def take_in(
    source: Source,
    plan: Plan,
    *,
    workers: int,
    keep: Callable[[bytes], None],
    known: Mapping[str, Outcome] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
) -> Intake:
    """Decode every sample once, but for those whose outcome is `known` by path; `keep` gets what the cache keeps of each.

    Files are decoded in `workers` processes, also where there are few: no file can end or hold up the process that asks.
    """
    intake = Intake()
    with Decoders(partial(ingest_files, plan=plan), workers, limits) as decoders:
        outcomes = _outcomes(source, plan, workers, known or {}, decoders)
        seen = progress(outcomes, len(source.samples), f"decoding {source.name}", unit="image")
        _fill(intake, source, seen, keep)
    return intake


def _fill(intake: Intake, source: Source, outcomes: Iterator[Outcome], keep: Callable[[bytes], None]) -> None:
    for sample, outcome in zip(source.samples, outcomes, strict=True):
        if isinstance(outcome, Rejection):
            intake.outcomes.append((sample, outcome))
            continue
        keep(outcome.kept)
        failpoints.reach("prepare.mid_intake")
        without_pixels = Record(b"", *outcome[1:])  # _replace takes four times as long
        intake.outcomes.append((sample, without_pixels))
        intake.samples.append(sample)
        intake.sha256.append(outcome.sha256)
        intake.pixel_digests.append(outcome.pixel_digest)
        intake.shapes.append(outcome.shape)
        intake.sums.append(outcome.sums)


# ---- outcomes in order -----------------------------------------------------------------------------------------------


def _outcomes(
    source: Source, plan: Plan, workers: int, known: Mapping[str, Outcome], decoders: Decoders[Outcome]
) -> Iterator[Outcome]:
    """Yield what became of each sample, in the order of `source.samples`.

    Only so many chunks are under way that memory stays small where decoding outruns the writing.
    """
    under_way: deque[tuple[Sequence[Sample], Sequence[str | None], Callable[[], Sequence[Outcome]]]] = deque()
    size = _chunk_size(plan)
    for start in range(0, len(source.samples), size):
        samples = source.samples[start : start + size]
        paths = [source.path_of(sample) for sample in samples]
        new = [path for path, sample in zip(paths, samples, strict=True) if path is not None and sample.path not in known]
        under_way.append((samples, paths, decoders.submit(new) if new else list))
        if len(under_way) > 2 * workers:
            yield from _resolve(source, plan, known, *under_way.popleft())
    while under_way:
        yield from _resolve(source, plan, known, *under_way.popleft())


def _resolve(
    source: Source,
    plan: Plan,
    known: Mapping[str, Outcome],
    samples: Sequence[Sample],
    paths: Sequence[str | None],
    decoded: Callable[[], Sequence[Outcome]],
) -> Iterator[Outcome]:
    """Yield the outcomes of a chunk: known, decoded from files, or made of arrays here."""
    from_files = iter(decoded())
    for sample, path in zip(samples, paths, strict=True):
        if sample.path in known:
            yield known[sample.path]
        elif path is not None:
            yield next(from_files)
        else:
            yield _ingest_sample(source, sample, plan)


def _ingest_sample(source: Source, sample: Sample, plan: Plan) -> Outcome:
    try:
        return ingest_array(source.array(sample), plan)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)


def _chunk_size(plan: Plan) -> int:
    """Return how many images one task decodes, fewer where they are large."""
    each = _FILE_BYTES if plan.keep == "files" else 3 * plan.image_size**2 * (plan.frames or 1)
    return max(1, min(CHUNK, _CHUNK_BYTES // each))


# ---- a second look ---------------------------------------------------------------------------------------------------


def altered_files(
    source: Source,
    sha256_by_path: Mapping[str, str],
    workers: int,
    limits: Limits = Limits(),  # noqa: B008 - immutable
) -> list[tuple[str, str]]:
    """Return (path, what is wrong) of accepted files that are no longer what they were when they were prepared.

    Every file is read anew: size and time are not trusted, which a flipped bit leaves as they are.
    """
    paths = {sample.path: source.path_of(sample) for sample in source.samples if sample.path in sha256_by_path}
    files = [(name, path) for name, path in paths.items() if path is not None]
    with Decoders(digests, workers, limits) as decoders:
        parts = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        waiting = [decoders.submit([path for _, path in part]) for part in parts]
        found = [digest for wait in waiting for digest in wait()]
    lost = [(name, "no longer listed") for name in sha256_by_path if name not in paths]
    return lost + [
        (name, f"{digest.code}: {digest.reason}" if isinstance(digest, Rejection) else "its content has changed")
        for (name, _), digest in zip(files, found, strict=True)
        if digest != sha256_by_path[name]
    ]


# ---- a first look ----------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What the headers of some images tell: the automatic image size and, most probably, the channels."""

    side: int
    channels: int


def first_look(source: Source, limits: Limits = Limits()) -> Look:  # noqa: B008 - immutable
    """Return what up to 100 evenly spaced images have in common; the side is 32 below 24, and at most 224."""
    step = max(1, len(source.samples) // _HEADERS)
    shapes = _shapes(source, source.samples[::step], limits)
    if not shapes:
        return Look(32, 3)  # nothing is readable, which decoding will say
    middle = int(np.median([min(height, width) for height, width, _ in shapes]))
    return Look(32 if middle < 24 else min(middle, 224), max(channels for _, _, channels in shapes))


def _shapes(source: Source, samples: Sequence[Sample], limits: Limits) -> list[tuple[int, int, int]]:
    """Return the shapes of the samples that tell one; also headers are opened in a process of their own."""
    paths = [source.path_of(sample) for sample in samples]
    files = [path for path in paths if path is not None]
    found = [_shape_of(source, sample) for sample, path in zip(samples, paths, strict=True) if path is None]
    if files:
        with Decoders(header_shapes, 1, limits) as decoders:
            found += [None if isinstance(shape, Rejection) else shape for shape in decoders.submit(files)()]
    return [shape for shape in found if shape is not None]


def _shape_of(source: Source, sample: Sample) -> tuple[int, int, int] | None:
    try:
        shape = np.shape(source.array(sample))
    except RejectedImage:
        return None
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return (shape[-3], shape[-2], shape[-1]) if len(shape) in (3, 4) else None


# ---- what is left ----------------------------------------------------------------------------------------------------


def check_classes_left(intake: Intake, source: Source) -> None:
    """Raise `UserError` where a class, or the whole source, has lost every image."""
    rejected = intake.rejected
    if not intake.samples:
        first = "; ".join(f"{path} ({reason})" for path, _, reason in rejected[:3])
        raise UserError(f"{source.name}: none of the {len(rejected)} images can be used: {first}")
    left = Counter(label for sample in intake.samples for label in sample.labels)
    for name in source.class_names:
        if not left[name]:
            lost = {printable(sample.path) for sample in source.samples if name in sample.labels}
            path, _, reason = next(entry for entry in rejected if entry[0] in lost)
            raise UserError(f"class {name!r}: none of its {len(lost)} images can be used, e.g. {path} ({reason})")
