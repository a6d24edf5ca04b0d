"""One raw item in, one checked record out. Light to import: every decoding process starts with this module."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from multiprocessing import connection, parent_process
from typing import Literal, NamedTuple

import numpy as np

from tracked_cls.data.decode import (
    Pixels,
    RejectedImage,
    as_array,
    as_clip,
    check_clip,
    decode,
    decode_frames,
    decode_noting,
    even_indices,
    frames_of,
    header_shape,
    read_file,
)
from tracked_cls.data.encode import to_png
from tracked_cls.data.files import frame_files
from tracked_cls.data.names import is_utf8
from tracked_cls.data.preprocess import Geometry
from tracked_cls.data.signature import FORMAT_OF_EXTENSION, FORMATS, sniff

Sums = tuple[tuple[int, int], ...]  # per channel: the sum of the pixels and that of their squares
_SUMMED_VALUES = 1 << 16  # pixel values that are summed at once


@dataclass(frozen=True)
class Plan:
    """What is done to every image. `channels` None keeps each image's own, 1 or 3, until all of them are known.

    `frames` makes a clip of every item; `keep` is what the cache holds: sized pixels, or files as they are. An image whose
    shorter side is below `min_side` is rejected.
    """

    image_size: int
    channels: int | None
    fit: str
    interpolation: str
    max_pixels: int
    frames: int | None = None
    keep: Literal["pixels", "files"] = "pixels"
    min_side: int = 1

    def geometry(self, channels: int) -> Geometry:
        """Return the geometry to so many channels, or to the plan's own."""
        return Geometry(self.image_size, self.channels or channels, self.fit, self.interpolation)


class Record(NamedTuple):
    """An accepted image.

    `kept` is what the cache keeps: uint8 [S,S,C] (a clip: [T,S,S,C]) in the plan's geometry as bytes, or an encoded file.
    The digests are those of the raw item and of the decoded pixels, `shape` (height, width, channels) is theirs; `sums` are
    over the sized pixels; `changes` names what decoding altered.
    """

    kept: bytes
    sha256: str
    pixel_digest: str
    shape: tuple[int, int, int]
    sums: Sums
    changes: tuple[str, ...] = ()


class Rejection(NamedTuple):
    """An image that cannot be used, and why."""

    code: str
    reason: str


Outcome = Record | Rejection


class _Item(NamedTuple):
    """A decoded item: its pixels [H,W,C] or [T,H,W,C], the file it came in if it is kept, its digest, what was changed."""

    pixels: Pixels
    encoded: bytes | None
    sha256: str
    changes: tuple[str, ...] = ()


def ingest_array(array: Pixels, plan: Plan) -> Outcome:
    """Check and size an image that is already decoded."""
    try:
        pixels = as_array(array) if plan.frames is None else as_clip(array, plan.frames)
        _check_side(pixels, plan.min_side)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)
    encoded = to_png(pixels) if plan.keep == "files" else None
    sized = _sized(_Item(pixels, encoded, _sha256(pixels.tobytes())), plan)
    return sized.record._replace(sums=_sums(sized.pixels))


def ingest_files(paths: Iterable[str], plan: Plan) -> list[Outcome]:
    """Read, decode and size files (or folders of frames, where the plan has frames), in their order."""
    sized = [_ingest_file(path, plan) for path in paths]
    sums = iter(_sums_of_all([each.pixels for each in sized if isinstance(each, _Sized)]))
    return [each if isinstance(each, Rejection) else each.record._replace(sums=next(sums)) for each in sized]


def _ingest_file(path: str, plan: Plan) -> _Sized | Rejection:
    if not is_utf8(path):
        return Rejection("E_NAME", "the file name is not valid UTF-8; rename the file")
    try:
        item = _decode_file(path, plan)
        _check_side(item.pixels, plan.min_side)
        return _sized(item, plan)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)
    except MemoryError:
        return _no_memory()


def _no_memory() -> Rejection:
    return Rejection("E_MEMORY", "no memory to read it")


def _check_side(pixels: Pixels, least: int) -> None:
    height, width = pixels.shape[-3:-1]
    if min(height, width) < least:
        raise RejectedImage("E_TOO_SMALL", f"the image has {width} x {height} pixels, a side below {least} (data.min_side)")


def _decode_file(path: str, plan: Plan) -> _Item:
    if plan.frames is not None and os.path.isdir(path):  # noqa: PTH112 - hot
        return _decode_folder(path, plan.frames, plan.max_pixels)
    data = read_file(path)
    if plan.frames is None:
        pixels, changes = decode_noting(data, plan.max_pixels)
    else:
        pixels, changes = decode_frames(data, plan.frames, plan.max_pixels), ()
    return _Item(pixels, data, _sha256(data), (*changes, *_misnamed(path, data)))


def _decode_folder(folder: str, count: int, max_pixels: int) -> _Item:
    """Return the evenly chosen frames of a folder; its digest is that of all its files' digests."""
    files = frame_files(folder)
    chosen = set(even_indices(len(files), count))
    digests, frames = hashlib.sha256(), []
    for index, path in enumerate(files):
        data = read_file(path)
        digests.update(_sha256(data).encode())
        if index in chosen:
            frames.append(decode(data, max_pixels))
            height, width, _ = frames[0].shape
            check_clip(height, width, count, max_pixels)
    return _Item(frames_of(frames, count), None, digests.hexdigest())


def _misnamed(path: str, data: bytes) -> tuple[str, ...]:
    """Return a note where the file's name promises another format than its bytes hold."""
    kind = sniff(data)
    promised = FORMAT_OF_EXTENSION.get(os.path.splitext(path)[1].lower(), kind)  # noqa: PTH122 - hot
    return ("wrong_extension",) if kind in FORMATS and promised != kind else ()


# ---- other questions to files ----------------------------------------------------------------------------------------


def read_folder(folder: str, frames: int, max_pixels: int) -> tuple[Pixels, str]:
    """Return a folder of frames as a clip, uint8 [frames,H,W,C], and its digest, that of all its files' digests."""
    item = _decode_folder(folder, frames, max_pixels)
    return item.pixels, item.sha256


def digests(paths: Iterable[str]) -> list[str | Rejection]:
    """Return the SHA-256 of each file as it is now, of a folder of frames that of all of them: as records have it."""
    return [_digest(path) for path in paths]


def _digest(path: str) -> str | Rejection:
    try:
        if os.path.isdir(path):  # noqa: PTH112 - a name of any bytes
            return _sha256("".join(_sha256(read_file(frame)) for frame in frame_files(path)).encode())
        return _sha256(read_file(path))
    except RejectedImage as error:
        return Rejection(error.code, error.reason)
    except MemoryError:
        return _no_memory()


def header_shapes(paths: Iterable[str]) -> list[tuple[int, int, int] | None]:
    """Return what `header_shape` does of each file; of a folder, that of its first frame."""
    return [_header_shape(path) for path in paths]


def _header_shape(path: str) -> tuple[int, int, int] | None:
    if not os.path.isdir(path):  # noqa: PTH112 - hot
        return header_shape(path)
    try:
        return next((header_shape(frame) for frame in frame_files(path)[:1]), None)
    except RejectedImage:
        return None


# ---- the record ------------------------------------------------------------------------------------------------------


class _Sized(NamedTuple):
    """A record that lacks its sums, and the pixels they are of."""

    record: Record
    pixels: Pixels


def _sized(item: _Item, plan: Plan) -> _Sized:
    height, width, channels = item.pixels.shape[-3:]
    sized = plan.geometry(channels).apply(item.pixels)
    kept = item.encoded if plan.keep == "files" else sized.tobytes()
    assert kept is not None, "a cache of files keeps no clips"
    digest = digest_of_pixels(item.pixels)
    return _Sized(Record(kept, item.sha256, digest, (height, width, channels), (), item.changes), sized)


def _sums_of_all(images: Sequence[Pixels]) -> Iterator[Sums]:
    """Yield the `_sums` of each image; of small ones of one shape, those of some at once: that takes a third of the time."""
    for shape, group in groupby(images, key=np.shape):
        at_once = max(1, _SUMMED_VALUES // math.prod(shape)) if len(shape) == 3 else 1
        while members := list(islice(group, at_once)):
            yield from _sums_of_stack(np.stack(members)) if len(shape) == 3 else map(_sums, members)


def _sums(pixels: Pixels) -> Sums:
    """Return sum and sum of squares per channel of uint8 [H,W,C] or [T,H,W,C]."""
    if pixels.ndim == 3:
        return _sums_of_stack(pixels[None])[0]
    frames = [_sums(frame) for frame in pixels]  # one by one: a float64 copy of a whole clip would be large
    return tuple((sum(one for one, _ in channel), sum(two for _, two in channel)) for channel in zip(*frames, strict=True))


def _sums_of_stack(images: Pixels) -> list[Sums]:
    """Return the sums of each image of uint8 [B,H,W,C]."""
    by_channel = images.reshape(len(images), -1, images.shape[3]).swapaxes(1, 2)
    values = by_channel.astype(np.float64, order="C")  # holds these whole numbers exactly
    both = np.stack([values.sum(axis=2), np.vecdot(values, values)], axis=2).astype(np.int64)
    return [tuple((total, squares) for total, squares in image) for image in both.tolist()]


def digest_of_pixels(pixels: Pixels) -> str:
    """Return 32 hex characters of the SHA-256 over shape and decoded pixels, whatever file they came in."""
    shape = "x".join(map(str, pixels.shape)).encode()
    return hashlib.sha256(shape + b"\0" + pixels.tobytes()).hexdigest()[:32]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- decoding processes ----------------------------------------------------------------------------------------------


def start_worker() -> None:
    """Set a decoding process up: it leaves Ctrl-C to its parent and ends with it, however the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
