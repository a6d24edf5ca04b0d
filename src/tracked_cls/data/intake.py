"""Every image of a source decoded once, in parallel: the accepted ones column by column, the rejected ones by name."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from tracked_cls.console import progress
from tracked_cls.data.decode import RejectedImage, header_shape
from tracked_cls.data.files import frame_files
from tracked_cls.data.ingest import Outcome, Plan, Rejection, Sums, ingest_array, ingest_files, start_worker
from tracked_cls.data.names import printable
from tracked_cls.data.sources import Sample, Source
from tracked_cls.errors import UserError

CHUNK = 256  # files per task of a decoding process, and images per write
_CHUNK_BYTES = 1 << 26  # what a task may bring back; some tasks per process are under way
_FILE_BYTES = 1 << 22  # a large photo
_FEW_FILES = 500  # starting processes takes longer than decoding these
_HEADERS = 100  # files whose headers decide the automatic image size
_EXAMPLES = 5

Submit = Callable[[Sequence[str]], Callable[[], list[Outcome]]]


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

    def changed(self) -> dict[str, dict[str, object]]:
        """Return what decoding altered -> how many accepted images it altered, and some of their paths."""
        paths: dict[str, list[str]] = {}
        for sample, outcome in self.outcomes:
            for change in () if isinstance(outcome, Rejection) else outcome.changes:
                paths.setdefault(change, []).append(sample.path)
        return {change: {"count": len(found), "examples": found[:_EXAMPLES]} for change, found in sorted(paths.items())}


def take_in(
    source: Source, plan: Plan, *, workers: int, keep: Callable[[bytes], None], known: Mapping[str, Outcome] | None = None
) -> Intake:
    """Decode every sample once, but for those whose outcome is `known` by path; `keep` gets what the cache keeps of each."""
    intake = Intake()
    outcomes = progress(
        _outcomes(source, plan, workers, known or {}), len(source.samples), f"decoding {source.name}", unit="image"
    )
    for sample, outcome in zip(source.samples, outcomes, strict=True):
        if isinstance(outcome, Rejection):
            intake.outcomes.append((sample, outcome))
            continue
        keep(outcome.kept)
        intake.outcomes.append((sample, outcome._replace(kept=b"")))
        intake.samples.append(sample)
        intake.sha256.append(outcome.sha256)
        intake.pixel_digests.append(outcome.pixel_digest)
        intake.shapes.append(outcome.shape)
        intake.sums.append(outcome.sums)
    return intake


# ---- outcomes in order -----------------------------------------------------------------------------------------------


def _outcomes(source: Source, plan: Plan, workers: int, known: Mapping[str, Outcome]) -> Iterator[Outcome]:
    """Yield what became of each sample, in the order of `source.samples`.

    Only so many chunks are under way that memory stays small where decoding outruns the writing.
    """
    under_way: deque[tuple[Sequence[Sample], Sequence[str | None], Callable[[], list[Outcome]]]] = deque()
    size = _chunk_size(plan)
    with _decoding(plan, workers, num_unknown=len(source.samples) - len(known)) as submit:
        for start in range(0, len(source.samples), size):
            samples = source.samples[start : start + size]
            paths = [source.path_of(sample) for sample in samples]
            new = [path for path, sample in zip(paths, samples, strict=True) if path is not None and sample.path not in known]
            under_way.append((samples, paths, submit(new)))
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
    decoded: Callable[[], list[Outcome]],
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


@contextmanager
def _decoding(plan: Plan, workers: int, num_unknown: int) -> Iterator[Submit]:
    """Yield what takes files to decode and returns a call that waits for their outcomes: in processes, if they are many."""
    if workers == 1 or num_unknown < _FEW_FILES:
        yield lambda paths: partial(ingest_files, paths, plan)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of every thread of the caller
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    try:
        yield lambda paths: partial(_result, paths, pool.submit(ingest_files, paths, plan)) if paths else list
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(paths: Sequence[str], future: Future[list[Outcome]]) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"a decoding process died, perhaps for lack of memory, at or soon after {paths[0]!r}; "
            "data.workers=1 decodes without extra processes, a lower data.max_pixels needs less memory"
        ) from None


# ---- a first look ----------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What the headers of some images tell: the automatic image size and, most probably, the channels."""

    side: int
    channels: int


def first_look(source: Source) -> Look:
    """Return what up to 100 evenly spaced images have in common; the side is 32 below 24, and at most 224."""
    step = max(1, len(source.samples) // _HEADERS)
    found = (_shape_of(source, sample) for sample in islice(source.samples, 0, None, step))
    shapes = [shape for shape in found if shape is not None]
    if not shapes:
        return Look(32, 3)  # nothing is readable, which decoding will say
    middle = int(np.median([min(height, width) for height, width, _ in shapes]))
    return Look(32 if middle < 24 else min(middle, 224), max(channels for _, _, channels in shapes))


def _shape_of(source: Source, sample: Sample) -> tuple[int, int, int] | None:
    path = source.path_of(sample)
    if path is not None:
        return _shape_of_frames(path) if os.path.isdir(path) else header_shape(path)  # noqa: PTH112 - hot
    try:
        shape = np.shape(source.array(sample))
    except RejectedImage:
        return None
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return (shape[-3], shape[-2], shape[-1]) if len(shape) in (3, 4) else None


def _shape_of_frames(folder: str) -> tuple[int, int, int] | None:
    try:
        return next((header_shape(frame) for frame in frame_files(folder)[:1]), None)
    except RejectedImage:
        return None


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
