"""Entries to the pixels that a model takes: opened in processes of their own, sized there, and the next batch meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, cast

from tracked_cls.config import PredictConfig
from tracked_cls.data.decode import Pixels, RejectedImage
from tracked_cls.data.decoders import Decoders, Limits
from tracked_cls.data.ingest import Rejection
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.data.reading import Payload, Reading, read
from tracked_cls.prediction.engines import side_seen
from tracked_cls.prediction.inputs import Entry, Fetch
from tracked_cls.provenance import num_cores

_PART, _PART_BYTES = 64, 16_000_000  # the most that a decoding process is given at a time
_AHEAD = 2  # batches that are decoded while the caller is busy with one: its times vary, and theirs do
_BATCH_BYTES = 80_000_000  # of the members of an archive that are held for a batch

Found = Reading | Rejection
Transform = Callable[[Pixels], Pixels]
_Waiting = Callable[[], Sequence[Found]]


class Batch(NamedTuple):
    """Entries, and what was found behind each of them."""

    entries: list[Entry]
    found: list[Found]


class Reader:
    """Brings the images of entries as a model sees them, uint8 [R,R,C] (clips [T,R,R,C]); R is the side views are cut from."""

    def __init__(
        self, cfg: PredictConfig, geometry: Geometry, transform: Transform | None, decoders: Decoders[Found],
        threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._size = cfg.predict.batch_size
        self._part = min(_PART, math.ceil(self._size / _workers(cfg)))  # every process has a part of each batch
        self._geometry = geometry
        self._transform = transform
        self._decoders = decoders
        self._threads = threads

    def batches(self, entries: Iterable[Entry], fetch: Fetch) -> Iterator[Batch]:
        """Yield the images in batches; the next ones are decoded while the caller is busy with one."""
        waiting: list[tuple[list[Entry], _Waiting]] = []
        for batch, payloads in self._grouped(entries, fetch):
            waiting.append((batch, self._begin(payloads)))
            if len(waiting) > _AHEAD:
                ready, wait = waiting.pop(0)
                yield Batch(ready, list(wait()))
        for ready, wait in waiting:
            yield Batch(ready, list(wait()))

    def _grouped(self, entries: Iterable[Entry], fetch: Fetch) -> Iterator[tuple[list[Entry], list[Payload | Rejection]]]:
        """Yield so many entries at a time, fewer where their files are held in memory and large."""
        batch: list[Entry] = []
        payloads: list[Payload | Rejection] = []
        size_bytes = 0
        for entry in entries:
            payload = fetch(entry)
            batch.append(entry)
            payloads.append(payload)
            size_bytes += len(payload) if isinstance(payload, bytes) else 0
            if len(batch) == self._size or size_bytes > _BATCH_BYTES:
                yield batch, payloads
                batch, payloads, size_bytes = [], [], 0
        if batch:
            yield batch, payloads

    def _begin(self, payloads: list[Payload | Rejection]) -> _Waiting:
        """Return a call that waits for what becomes of each payload, in their order."""
        good = [payload for payload in payloads if not isinstance(payload, Rejection)]
        wait = self._begin_good(good)
        if len(good) == len(payloads):
            return wait

        def joined() -> list[Found]:
            found = iter(wait())
            return [payload if isinstance(payload, Rejection) else next(found) for payload in payloads]

        return joined

    def _begin_good(self, payloads: Sequence[Payload]) -> _Waiting:
        if self._transform is not None:
            return partial(list, self._threads.map(partial(self._transformed, self._transform), payloads))
        waiting = [self._submit(part) for part in _parts(payloads, self._part)]
        return lambda: list(chain.from_iterable(wait() for wait in waiting))

    def _submit(self, payloads: Sequence[Payload]) -> _Waiting:
        return self._decoders.submit(cast(Sequence[str], payloads))  # handed on to `read` as they are

    def _transformed(self, transform: Transform, payload: Payload) -> Found:
        """Whole photos come one by one: few of them are held at a time."""
        [found] = self._submit([payload])()
        try:
            if isinstance(found, Rejection):
                return found
            return found._replace(pixels=self._geometry.apply(transform(found.pixels)))
        except RejectedImage as error:
            return Rejection(error.code, error.reason)


@contextmanager
def reading(cfg: PredictConfig, preprocess: Preprocess) -> Iterator[Reader]:
    """Yield a reader whose files are opened in processes of their own, and sized there unless transforms come first."""
    geometry = replace(preprocess.geometry, image_size=side_seen(cfg.predict.tta, preprocess.geometry.image_size))
    transform = _own_transforms(cfg, preprocess.geometry)
    sized_to = geometry if transform is None else None
    work = partial(read, frames=preprocess.frames, geometry=sized_to, digests=cfg.predict.digest)
    limits = Limits(cfg.predict.decode_seconds, cfg.predict.decode_memory_bytes, "predict")
    workers = _workers(cfg)
    with ThreadPoolExecutor(workers) as threads, Decoders(work, workers, limits) as decoders:
        decoders.submit([])  # has the first process start now, and what the others are forked from
        yield Reader(cfg, geometry, transform, decoders, threads)


def _workers(cfg: PredictConfig) -> int:
    return cfg.predict.workers or num_cores()


def _own_transforms(cfg: PredictConfig, geometry: Geometry) -> Transform | None:
    """Return what ``transforms.predict`` does to a decoded image [H,W,C], if anything."""
    if not cfg.transforms.predict:
        return None
    from tracked_cls.transforms.inference import pixel_transform  # torch: prediction without transforms needs none

    return pixel_transform(cfg.transforms.predict, (geometry.channels, geometry.image_size), search=(Path.cwd(),))


def _parts(payloads: Sequence[Payload], most: int) -> Iterator[list[Payload]]:
    part: list[Payload] = []
    size_bytes = 0
    for payload in payloads:
        part.append(payload)
        size_bytes += len(payload) if isinstance(payload, bytes) else 0
        if len(part) == most or size_bytes > _PART_BYTES:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part
