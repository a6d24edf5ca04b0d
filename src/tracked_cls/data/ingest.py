"""One raw item in, one checked record out. Light to import: every decoding process starts with this module."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import NamedTuple

from tracked_cls.data.decode import Pixels, RejectedImage, as_array, decode, read_file
from tracked_cls.data.preprocess import Geometry


@dataclass(frozen=True)
class Plan:
    """What is done to every image. `channels` None keeps each image's own, 1 or 3, until all of them are known."""

    image_size: int
    channels: int | None
    fit: str
    interpolation: str
    max_pixels: int

    def geometry(self, channels: int) -> Geometry:
        """Return the geometry to so many channels, or to the plan's own."""
        return Geometry(self.image_size, self.channels or channels, self.fit, self.interpolation)


class Record(NamedTuple):
    """An accepted image: `pixels` [S,S,C] in the plan's geometry, digests of the raw item and of the decoded pixels."""

    pixels: Pixels
    sha256: str
    pixel_digest: str
    shape: tuple[int, int, int]


class Rejection(NamedTuple):
    """An image that cannot be used, and why."""

    code: str
    reason: str


def ingest_array(array: Pixels, plan: Plan) -> Record | Rejection:
    """Check and size an image that is already decoded."""
    try:
        pixels = as_array(array)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)
    return _record(pixels, pixels.tobytes(), plan)


def ingest_files(paths: Sequence[str], plan: Plan) -> list[Record | Rejection]:
    """Read, decode and size files, in their order."""
    return [_ingest_file(path, plan) for path in paths]


def start_worker() -> None:
    """Set a decoding process up: it leaves Ctrl-C to its parent and ends with it, however the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _ingest_file(path: str, plan: Plan) -> Record | Rejection:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return Rejection("E_NAME", "the file name is not valid UTF-8; rename the file")
    try:
        data = read_file(path)
        return _record(decode(data, plan.max_pixels), data, plan)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)


def _record(pixels: Pixels, raw: bytes, plan: Plan) -> Record:
    height, width, channels = pixels.shape
    return Record(
        pixels=plan.geometry(channels).apply(pixels),
        sha256=hashlib.sha256(raw).hexdigest(),
        pixel_digest=digest_of_pixels(pixels),
        shape=(height, width, channels),
    )


def digest_of_pixels(pixels: Pixels) -> str:
    """Return 32 hex characters of the SHA-256 over shape and decoded pixels, whatever file they came in."""
    shape = "x".join(map(str, pixels.shape)).encode()
    return hashlib.sha256(shape + b"\0" + pixels.tobytes()).hexdigest()[:32]
