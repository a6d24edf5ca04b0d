"""Every image of a source decoded once, in parallel: the accepted ones column by column, the rejected ones by name."""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

import numpy as np

from tracked_cls.console import progress
from tracked_cls.data.decode import RejectedImage, header_size
from tracked_cls.data.ingest import Plan, Record, Rejection, ingest_array, ingest_files, start_worker
from tracked_cls.data.sources import ArraySource, FileSource, Sample, Source
from tracked_cls.errors import UserError

Outcome = Record | Rejection

CHUNK = 256  # files per task of a decoding process, and images per write
_FEW_FILES = 500  # starting processes takes longer than decoding these
_HEADERS = 100  # files whose headers decide the automatic image size


@dataclass
class Intake:
    """The accepted images, column by column in manifest order, and the rejected ones as (path, code, reason)."""

    samples: list[Sample] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    pixel_digests: list[str] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    rejected: list[tuple[str, str, str]] = field(default_factory=list)


def take_in(source: Source, plan: Plan, workers: int, spool: BinaryIO) -> Intake:
    """Decode every sample once; accepted pixels go to the spool, one image after the other."""
    intake = Intake()
    outcomes = progress(_outcomes(source, plan, workers), len(source.samples), f"decoding {source.name}", unit="image")
    for sample, outcome in zip(source.samples, outcomes, strict=True):
        if isinstance(outcome, Rejection):
            intake.rejected.append((_printable(sample.path), outcome.code, outcome.reason))
            continue
        spool.write(outcome.pixels.tobytes())
        intake.samples.append(sample)
        intake.sha256.append(outcome.sha256)
        intake.pixel_digests.append(outcome.pixel_digest)
        intake.shapes.append(outcome.shape)
    return intake


def _outcomes(source: Source, plan: Plan, workers: int) -> Iterator[Outcome]:
    """Yield what became of each sample, in the order of `source.samples`."""
    if isinstance(source, ArraySource):
        for sample in source.samples:
            yield _ingest_sample(source, sample, plan)
        return
    assert isinstance(source, FileSource)
    paths = [source.path_of(sample) for sample in source.samples]
    chunks = (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))
    if workers == 1 or len(paths) < _FEW_FILES:
        for chunk in chunks:
            yield from ingest_files(chunk, plan)
    else:
        yield from _ingest_in_processes(chunks, plan, workers)


def _ingest_sample(source: ArraySource, sample: Sample, plan: Plan) -> Outcome:
    try:
        return ingest_array(source.array(sample), plan)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)


def _ingest_in_processes(chunks: Iterator[Sequence[str]], plan: Plan, workers: int) -> Iterator[Outcome]:
    """Yield in order, with only so many chunks under way that memory stays small where decoding outruns the writing."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of every thread of the caller
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    under_way: deque[tuple[Sequence[str], Future[list[Outcome]]]] = deque()
    try:
        for chunk in chunks:
            under_way.append((chunk, pool.submit(ingest_files, chunk, plan)))
            if len(under_way) > 2 * workers:
                yield from _result(*under_way.popleft())
        while under_way:
            yield from _result(*under_way.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(chunk: Sequence[str], future: Future[list[Outcome]]) -> list[Outcome]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"a decoding process died, perhaps for lack of memory, at or soon after {chunk[0]!r}; "
            "data.workers=1 decodes without extra processes, a lower data.max_pixels needs less memory"
        ) from None


def usual_side(source: Source) -> int:
    """Return the automatic image size, from the headers of up to 100 evenly spaced images: 32 below 24, at most 224."""
    step = max(1, len(source.samples) // _HEADERS)
    sizes = (_size_of(source, sample) for sample in islice(source.samples, 0, None, step))
    sides = [min(size) for size in sizes if size is not None]
    if not sides:
        return 32  # nothing is readable, which decoding will say
    middle = int(np.median(sides))
    return 32 if middle < 24 else min(middle, 224)


def _size_of(source: Source, sample: Sample) -> tuple[int, int] | None:
    if isinstance(source, FileSource):
        return header_size(source.path_of(sample))
    assert isinstance(source, ArraySource)
    try:
        height, width = source.array(sample).shape[:2]
    except RejectedImage:
        return None
    return height, width


def check_classes_left(intake: Intake, source: Source) -> None:
    """Raise `UserError` where a class, or the whole source, has lost every image."""
    if not intake.samples:
        first = "; ".join(f"{path} ({reason})" for path, _, reason in intake.rejected[:3])
        raise UserError(f"{source.name}: none of the {len(intake.rejected)} images can be used: {first}")
    left = Counter(sample.label for sample in intake.samples)
    for name in source.class_names:
        if not left[name]:
            lost = {sample.path for sample in source.samples if sample.label == name}
            path, _, reason = next(entry for entry in intake.rejected if entry[0] in {_printable(path) for path in lost})
            raise UserError(f"class {name!r}: none of its {len(lost)} images can be used, e.g. {path} ({reason})")


def _printable(path: str) -> str:
    """Return a path that can be written as UTF-8, whatever bytes its name is made of."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
