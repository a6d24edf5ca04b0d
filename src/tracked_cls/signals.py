"""SIGINT and SIGTERM as an exception, held back while something must not be cut in two."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from tracked_cls.errors import Interrupted

_deferring = False
_pending: int | None = None
_once = False


def install(*, once: bool = False) -> None:
    """Raise `Interrupted` on SIGINT and SIGTERM from now on; `once`: let all but the first pass."""
    global _once
    _once = once
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _handle)


def ignore() -> None:
    """Let SIGINT and SIGTERM pass from now on."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Hold signals back inside the block; the yielded function says whether one has come. It is raised at the end."""
    global _deferring, _pending
    _deferring = True
    try:
        yield lambda: _pending is not None
    finally:
        _deferring = False
        signum, _pending = _pending, None
        if signum is not None:
            _interrupt(signum)


def _handle(signum: int, _frame: FrameType | None) -> None:
    global _pending
    if not _deferring:
        _interrupt(signum)
    _pending = signum


def _interrupt(signum: int) -> NoReturn:
    if _once:
        ignore()
    raise Interrupted(signum)
