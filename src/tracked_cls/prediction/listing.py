"""The entries of an input, on disk: counted, in order, each id once, however many there are."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO

import numpy as np

from tracked_cls.prediction.inputs import Entry, Source, key_of

_RUN = 20_000  # entries sorted in memory at a time


class Listing:
    """The entries of a source, spooled to a file without a name in a folder; 8 bytes of each stay in memory.

    An id that is listed again gets a number: ``a.png``, ``a.png#2``.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._spool = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        hashes = array("q")
        for entry in source.entries() if source.is_sorted else _in_order(source.entries(), folder):
            hashes.append(hash(entry.image_id))
            _put(self._spool, entry)
        self._hashes = np.sort(np.frombuffer(hashes, np.int64))
        self._repeated = frozenset(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]].tolist())

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries from the first one; one reader at a time."""
        seen: Counter[str] = Counter()
        for entry in _taken(self._spool):
            if hash(entry.image_id) in self._repeated:
                seen[entry.image_id] += 1
                yield entry._replace(image_id=self._numbered(entry.image_id, seen))
            else:
                yield entry

    def _numbered(self, image_id: str, seen: Counter[str]) -> str:
        """Return the id, from the second time on with a number that makes it one that is not listed."""
        while seen[image_id] > 1:
            name = f"{image_id}#{seen[image_id]}"
            place = np.searchsorted(self._hashes, hash(name))
            if place == len(self) or self._hashes[place] != hash(name):
                return name
            seen[image_id] += 1
        return image_id

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._spool.close()


def digest_of(entries: Iterable[Entry]) -> str:
    """Return the SHA-256 of entries, as hex digits."""
    sha = hashlib.sha256()
    for entry in entries:
        sha.update(entry.line)
    return sha.hexdigest()


def _in_order(entries: Iterator[Entry], folder: Path) -> Iterator[Entry]:
    """Yield entries in natural order: sorted in runs, which wait on the disk and are then merged."""
    with ExitStack() as stack:
        runs = []
        while some := list(islice(entries, _RUN)):
            run = stack.enter_context(TemporaryFile(dir=folder))
            for entry in sorted(some, key=key_of):
                _put(run, entry)
            runs.append(_taken(run))
        yield from merge(*runs, key=key_of)


def _put(file: IO[bytes], entry: Entry) -> None:
    file.write(json.dumps(entry).encode() + b"\n")


def _taken(file: IO[bytes]) -> Iterator[Entry]:
    file.seek(0)
    for line in file:
        yield Entry(*json.loads(line))
