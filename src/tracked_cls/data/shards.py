"""Encoded images in a few large files, each checked when it is read."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tracked_cls.errors import UserError

INDEX, DIGESTS = "index.npy", "file_digests.npy"
_NAME = re.compile(r"shard-\d{5}\.bin")
_SHARD_BYTES = 1 << 30  # a shard is closed before it grows beyond this, unless one file alone does


class ShardWriter:
    """Appends encoded images to ``shard-00000.bin``, ``shard-00001.bin``, ... of a folder."""

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._places: list[tuple[int, int, int]] = []
        self._digests: list[bytes] = []
        self._stream: BinaryIO = _shard(folder, 0).open("wb")
        self._shard = 0

    def add(self, encoded: bytes) -> None:
        """Append one image."""
        offset = self._stream.tell()
        if offset and offset + len(encoded) > self._shard_bytes:
            self._stream.close()
            self._shard, offset = self._shard + 1, 0
            self._stream = _shard(self._folder, self._shard).open("wb")
        self._stream.write(encoded)
        self._places.append((self._shard, offset, len(encoded)))
        self._digests.append(hashlib.sha256(encoded).digest())

    def finish(self) -> None:
        """Write the index, int64 [N,3] (shard, offset, length), and the SHA-256 of each image, uint8 [N,32]."""
        self._stream.close()
        np.save(self._folder / INDEX, np.array(self._places, np.int64).reshape(-1, 3), allow_pickle=False)
        digests = np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, 32)
        np.save(self._folder / DIGESTS, digests, allow_pickle=False)


class Shards:
    """The encoded images of a folder, by number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: npt.NDArray[np.int64] = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
        self._digests: npt.NDArray[np.uint8] = np.load(folder / DIGESTS, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> bytes:
        """Return one encoded image; a `UserError` names the shard and the image whose bytes have changed."""
        shard, offset, length = self._index[index].tolist()
        # no memory map: a shard that was cut would end the process; and no seek: threads share the stream
        data = os.pread(self._streams[shard].fileno(), length, offset)
        if hashlib.sha256(data).digest() != self._digests[index].tobytes():
            path = _shard(self.folder, shard)
            raise UserError(f"{path}: image {index} has changed; delete the folder and run prepare again")
        return data

    @cached_property
    def _streams(self) -> list[BinaryIO]:
        last = int(self._index[-1, 0])
        return [_shard(self.folder, shard).open("rb") for shard in range(last + 1)]


def is_shard(name: str) -> bool:
    """Tell whether a file of a prepared set holds images that are checked one by one."""
    return _NAME.fullmatch(name) is not None


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.bin"
