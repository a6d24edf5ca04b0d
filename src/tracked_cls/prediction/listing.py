"""The entries of an input, on disk: counted, in order, each id once, however many there are."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from heapq import merge
from itertools import islice, starmap
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO

import numpy as np

from tracked_cls.prediction.inputs import Entry, Source, key_of

_RUN = 20_000  # entries sorted in memory at a time
_LINE = 500  # entries in a line of a file: one by one they take three times as long


class Listing:
    """The entries of a source, spooled to a file without a name in a folder; 8 bytes of each stay in memory.

    An id that is listed again gets a number: ``a.png``, ``a.png#2``.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._spool = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        hashes = array("q")
        listed = source.entries() if source.is_sorted else _in_order(source.entries(), folder)
        while some := list(islice(listed, _LINE)):
            hashes.extend([hash(entry.image_id) for entry in some])
            _put(self._spool, some)
        self._spool.flush()  # a disk without room for it should say so here
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
    """Yield entries in natural order: sorted in runs, of which all but the first wait on the disk, and then merged."""
    with ExitStack() as stack:
        runs: list[Iterable[Entry]] = [sorted(islice(entries, _RUN), key=key_of)]
        while some := sorted(islice(entries, _RUN), key=key_of):
            run = stack.enter_context(TemporaryFile(dir=folder))
            for start in range(0, len(some), _LINE):
                _put(run, some[start : start + _LINE])
            runs.append(_taken(run))
        yield from merge(*runs, key=key_of)


def _put(file: IO[bytes], entries: list[Entry]) -> None:
    file.write(json.dumps(entries).encode() + b"\n")


def _taken(file: IO[bytes]) -> Iterator[Entry]:
    file.seek(0)
    for line in file:
        yield from starmap(Entry, json.loads(line))
