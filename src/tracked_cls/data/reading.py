"""What a classifier is asked about: anything that may be an image, decoded. Light to import: decoding processes do this."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tracked_cls.data.decode import MAX_PIXELS, Pixels, RejectedImage, as_array, as_clip, decode, decode_frames, read_file
from tracked_cls.data.ingest import Rejection, read_folder
from tracked_cls.data.preprocess import Geometry

Payload = str | bytes | Pixels  # the path of a file (or folder of frames), a file's content, or decoded pixels


class Reading(NamedTuple):
    """An image that was read: uint8 [H,W,C], a clip [T,H,W,C], and the SHA-256 of its file ("" where none was wanted).

    Of pixels that came in no file of their own it is the digest of their bytes, of a folder that of its files' digests.
    """

    pixels: Pixels
    sha256: str


def read(
    items: Iterable[Payload], frames: int | None, geometry: Geometry | None, *, digests: bool
) -> list[Reading | Rejection]:
    """Return each item decoded as prepare does it, or why it cannot be; with a geometry the pixels are sized.

    `frames`: every item is made a clip of so many.
    """
    return [_read(item, frames, geometry, digests=digests) for item in items]


def _read(item: Payload, frames: int | None, geometry: Geometry | None, *, digests: bool) -> Reading | Rejection:
    try:
        pixels, content = _decoded(item, frames)
        sha256 = content if isinstance(content, str) else hashlib.sha256(content).hexdigest() if digests else ""
        return Reading(pixels if geometry is None else geometry.apply(pixels), sha256)
    except RejectedImage as error:
        return Rejection(error.code, error.reason)
    except MemoryError:
        return Rejection("E_MEMORY", "no memory to read it")


def _decoded(item: Payload, frames: int | None) -> tuple[Pixels, bytes | str]:
    """Return the pixels, and the bytes they came in, or the digest of these."""
    if isinstance(item, np.ndarray):
        return (as_array(item) if frames is None else as_clip(item, frames)), item.tobytes()
    if frames is not None and isinstance(item, str) and os.path.isdir(item):  # noqa: PTH112 - a name of any bytes
        return read_folder(item, frames, MAX_PIXELS)
    data = read_file(item) if isinstance(item, str) else item
    return (decode(data) if frames is None else decode_frames(data, frames)), data
