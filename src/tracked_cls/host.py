"""What the machine refuses - room, files, permission - in one line with what would help."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

_MANY_FILES = 4096
_KEPT_BYTES = 1 << 30  # of free memory
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of options in malloc.h
_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
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


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next who asks; return whether it will.

    Every step of a training frees what the next one takes again. Given back to the system meanwhile, each page has to be
    cleared anew, which took 3 % of the steps of small_cnn and 9 to 19 % of mobilenetv3_small's (28x28, batches of 128, two
    threads and one). The peak stays what it was. For glibc, where the user has not set this.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None or any(name in os.environ for name in _OF_THE_USER):
        return False
    return all(set_option(option, _KEPT_BYTES) == 1 for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))


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
    errno.ENOTDIR: f"a part of this path is a file: move it away, {_ELSEWHERE}",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EIO: f"look after the health of that device, {_ELSEWHERE}",
    errno.EMFILE: "{limit} may be open at a time: raise that by ulimit -n {many}, or lower loader.workers",
    errno.ENFILE: "this machine has too many files open: end something else",
}
