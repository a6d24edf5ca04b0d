"""What the machine refuses - room, files, permission - in one line with what would help."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

_MANY_FILES = 4096
_IN_WORDS = {  # by sqlite, whose errors have no number; the last by PyTorch
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
    "disk I/O error": errno.EIO,
    "Too many open files": errno.EMFILE,
}


def refusal(error: BaseException, path: Path | None = None, needed_bytes: int | None = None) -> str | None:
    """Return what the machine refused, where, and the cure; None for any other error.

    `path` is what was to be written, where the error does not know it, `needed_bytes` how much of it.
    """
    for cause in _causes(error):
        number = _number(cause)
        if number in _CURES:
            named = getattr(cause, "filename", None) or path
            where = None if named is None else Path(os.fsdecode(named))
            room = "" if where is None or needed_bytes is None else _room(where, needed_bytes)
            return f"{'' if where is None else f'{where}: '}{os.strerror(number)}{room}; {_cure(number)}"
    return None


def open_more_files() -> None:
    """Let this process have as many files open as it may allow itself; loading processes take some twenty."""
    allowed, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if highest == resource.RLIM_INFINITY else min(_MANY_FILES, highest)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _number(error: BaseException) -> int:
    """Return the number of a system's error, 0 for any other."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search("|".join(_IN_WORDS), str(error))
    return _IN_WORDS[found[0]] if found else 0


def _room(path: Path, needed_bytes: int) -> str:
    """Return how much is needed, and how much is free."""
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    return f" ({needed_bytes:,} bytes needed, {shutil.disk_usage(there).free:,} free)"


def _cure(number: int) -> str:
    return _CURES[number].format(limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0], many=_MANY_FILES)


_ELSEWHERE = "or write elsewhere"
_CURES = {
    errno.ENOSPC: f"free some room there, {_ELSEWHERE}",
    errno.EDQUOT: f"free some of your quota there, {_ELSEWHERE}",
    errno.EFBIG: f"raise the largest size of a file (ulimit -f), {_ELSEWHERE}",
    errno.EROFS: f"make it writable, {_ELSEWHERE}",
    errno.EACCES: f"give this user the right to it, {_ELSEWHERE}",
    errno.EPERM: f"give this user the right to it, {_ELSEWHERE}",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EIO: f"look after the health of that device, {_ELSEWHERE}",
    errno.EMFILE: "{limit} may be open at a time: raise that by ulimit -n {many}, or lower loader.workers",
    errno.ENFILE: "this machine has too many files open: end something else",
}
