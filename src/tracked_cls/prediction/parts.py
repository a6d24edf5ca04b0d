"""What a prediction has done so far: on the disk beside the output, so that the same command goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from glob import escape
from io import FileIO
from pathlib import Path
from typing import Any

from tracked_cls import durable
from tracked_cls.console import say
from tracked_cls.errors import UserError
from tracked_cls.prediction.output import writing

ROWS, REJECTED, EMBEDDINGS = "rows", "rejected.csv", "embeddings.npy"
_PROGRESS = "progress.json"
_EVERY_SECONDS = 5.0


@dataclass
class Progress:
    """How far a prediction has come, at the end of a batch.

    `key` is a digest of all that decides the result, `done` how many entries are behind it and `listing` their digest,
    `sizes` the bytes that each file had, `told` what else is known by now.
    """

    key: str
    done: int = 0
    listing: str = ""
    sizes: dict[str, int] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


class Part:
    """The files of a prediction that is under way, in a folder that one process holds."""

    def __init__(self, folder: Path, output: Path, progress: Progress, starts: dict[str, bytes], files: ExitStack) -> None:
        self.folder = folder
        self.progress = progress
        self._output = output
        self._saved = time.monotonic()
        self._told: Callable[[], dict[str, Any]] = lambda: progress.told
        self._files = {name: files.enter_context(_continued(folder / name, progress, start)) for name, start in starts.items()}

    def write(self, name: str, content: bytes) -> None:
        """Write to the end of a file."""
        with self._writing():
            _write_all(self._files[name], content)

    def commit(self, done: int, listing: str, told: Callable[[], dict[str, Any]]) -> None:
        """Say that a batch is written, and what is known by now; every few seconds it is made to last.

        `told` is called when that is done: what it returns must not change from here on.
        """
        sizes = {name: file.tell() for name, file in self._files.items()}
        self.progress = Progress(self.progress.key, done, listing, sizes)
        self._told = told
        if time.monotonic() > self._saved + _EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        """Put what was committed on the disk."""
        with self._writing():
            for name, file in self._files.items():
                file.truncate(self.progress.sizes.get(name))  # a batch that was begun makes room where a disk is full
                os.fsync(file.fileno())
            about = asdict(self.progress) | {"told": self._told()}
            durable.write(self.folder / _PROGRESS, json.dumps(about).encode())
        self._saved = time.monotonic()

    def close(self) -> dict[str, Path]:
        """Return the finished files; from here on the folder is not continued from."""
        self.save()
        return {name: self.folder / name for name in self._files}

    def forget(self) -> None:
        """Do not continue from this folder: its files are about to leave it, and what stays there is of no use."""
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        self.progress = Progress(self.progress.key)

    def _writing(self) -> AbstractContextManager[None]:
        kept = f"; what was labelled so far is kept in {self.folder}, and the same command continues from there"
        return writing(self._output, kept)


@contextmanager
def part_of(output: Path, key: str, starts: dict[str, bytes], listed: Callable[[int], str]) -> Iterator[Part]:
    """Yield the part of an output: the one that an earlier process left, if it is of the same prediction, else a new one.

    `starts` maps the name of a file to what it begins with, `listed` returns the digest of so many first entries of the
    input. After an error it is kept for the next command, unless it was forgotten.
    """
    folder = output.with_name(f".part-{output.name}")
    with _held(folder, output), ExitStack() as files:
        progress = _continue_from(folder, key, starts, listed)
        part = Part(folder, output, progress, starts, files)
        try:
            yield part
        except BaseException:
            with suppress(OSError, UserError):  # of the disk that was full
                if part.progress.done:
                    part.save()
            raise
        finally:
            if not part.progress.done:
                _empty(folder)


def unfinished(folder: Path, stem: str, key: str) -> Path | None:
    """Return the output ``<stem>-<8 letters>.csv`` in a folder that a process that is gone left unfinished, by its key."""
    for part in sorted(folder.glob(f".part-{escape(stem)}-????????.csv")):
        found = _progress(part)
        if found is not None and found.key == key and not _is_held(part):
            return part.with_name(part.name.removeprefix(".part-"))
    return None


def _is_held(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def _held(folder: Path, output: Path) -> Iterator[None]:
    """Hold a folder, made where it is not there, among the processes of this machine; an empty one is removed."""
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(descriptor, output)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                yield
                return
        finally:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
            os.close(descriptor)


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise UserError(f"predict.output: another process is writing {str(output)!r} now; name another file") from None
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):  # a file system without locks
            raise


def _continue_from(folder: Path, key: str, starts: dict[str, bytes], listed: Callable[[int], str]) -> Progress:
    """Return how far an earlier process came with the same prediction; else empty the folder, and say so."""
    found = _progress(folder)
    if found is not None:
        why = _difference(found, folder, key, starts, listed)
        if why is None:
            say(f"predict: continues after {found.done:,} images, which were read before")
            return found
        say(f"predict: starts anew: {why}")
    _empty(folder)
    return Progress(key)


def _difference(found: Progress, folder: Path, key: str, starts: dict[str, bytes], listed: Callable[[int], str]) -> str | None:
    if found.key != key:
        return "an interrupted prediction of the same name had another model, input or options"
    if any(not (folder / name).is_file() or (folder / name).stat().st_size < found.sizes.get(name, -1) for name in starts):
        return "what an interrupted prediction wrote is not there any more"
    return None if listed(found.done) == found.listing else "images were added, altered or removed since it was interrupted"


def _progress(folder: Path) -> Progress | None:
    try:
        found = Progress(**json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.done else None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)


@contextmanager
def _continued(path: Path, progress: Progress, start: bytes) -> Iterator[FileIO]:
    """Open a file at the end of what was committed; a new one begins with `start`."""
    with path.open("r+b" if path.exists() else "w+b", buffering=0) as file:  # what a full disk refuses is not tried again
        if path.name in progress.sizes:
            file.truncate(progress.sizes[path.name])
            file.seek(0, os.SEEK_END)
        else:
            _write_all(file, start)
        yield file


def _write_all(file: FileIO, content: bytes) -> None:
    """Write to a file without a buffer, which may take a part of what it is given."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
