"""The two forms in which prepared images are kept: sized pixels as one array, or encoded files in shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np

from tracked_cls.data.decode import Pixels
from tracked_cls.data.ingest import Plan
from tracked_cls.data.shards import ShardWriter

PIXELS = "pixels.npy"
_BUFFER_BYTES = 1 << 22


class Store(Protocol):
    """Takes what `ingest.Record.kept` holds, image by image."""

    def add(self, kept: bytes, /) -> None:
        """Keep one image."""

    def finish(self, shapes: Sequence[tuple[int, int, int]], channels: int) -> None:
        """Make what was kept whole; `shapes` are those of the decoded images, `channels` what the model sees."""


def open_store(folder: Path, plan: Plan) -> Store:
    """Return what keeps the images of a plan."""
    return FileStore(folder) if plan.keep == "files" else PixelStore(folder, plan)


class FileStore:
    """Keeps encoded files as they are."""

    def __init__(self, folder: Path) -> None:
        self._writer = ShardWriter(folder)
        self.add = self._writer.add

    def finish(self, shapes: Sequence[tuple[int, int, int]], channels: int) -> None:
        """Write the index."""
        self._writer.finish()


class PixelStore:
    """Keeps sized pixels: spooled as they come, for their channels are known in the end only, then as one array."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._path = folder / PIXELS
        self._spool_path = folder / "spool"
        self._spool = self._spool_path.open("wb", buffering=_BUFFER_BYTES)

    def add(self, kept: bytes, /) -> None:
        """Spool one image."""
        self._spool.write(kept)

    def finish(self, shapes: Sequence[tuple[int, int, int]], channels: int) -> None:
        """Write ``pixels.npy``, uint8 [N,S,S,C], of clips [N,T,S,S,C]."""
        self._spool.close()
        frames = () if self._plan.frames is None else (self._plan.frames,)
        size = (*frames, self._plan.image_size, self._plan.image_size)
        shape = (len(shapes), *size, channels)
        pixels: Pixels = np.lib.format.open_memmap(self._path, mode="w+", dtype=np.uint8, shape=shape)
        num_values = math.prod(size)
        with self._spool_path.open("rb", buffering=_BUFFER_BYTES) as spool:
            start = 0
            for own, count in self._runs(shapes, most=max(1, _BUFFER_BYTES // num_values)):
                images = np.frombuffer(spool.read(count * num_values * own), np.uint8)
                pixels[start : start + count] = images.reshape(count, *size, own)  # grey repeats itself over three channels
                start += count
        assert isinstance(pixels, np.memmap)
        pixels.flush()
        self._spool_path.unlink()

    def _runs(self, shapes: Sequence[tuple[int, int, int]], most: int) -> Iterator[tuple[int, int]]:
        """Yield the channels of images that follow each other, and how many these are, at most `most` at a time."""
        for own, run in groupby(self._plan.channels or channels for _, _, channels in shapes):
            while count := sum(1 for _ in islice(run, most)):
                yield own, count
