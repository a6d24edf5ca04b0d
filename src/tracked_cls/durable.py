"""Files that are there whole or not at all, also after a loss of power, known by their digest; and locks on files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tracked_cls.processes import Process


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, content: bytes) -> None:
    """Replace a small file so that it is never seen half-written, whoever else writes it meanwhile."""
    temporary = path.with_name(f".tmp-{path.name}-{Process.me().mark}")
    try:
        temporary.write_bytes(content)
        publish(temporary, path)
    except OSError:
        discard(temporary)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Make a complete temporary file appear under its name, and stay there through a loss of power."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def discard(temporary: Path) -> None:
    """Delete a file that came to nothing."""
    with suppress(OSError):  # a folder that cannot be written any more
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot sync a folder
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock among the processes of this machine; the file is made, and stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked loader worker that is still ending holds a copy of the open file
