"""The signals that ask to stop as an exception, held back while something must not be cut in two.

The first one counts. What follows it (`mlflow run` sends SIGTERM after the Ctrl-C that reached the whole group) passes, so
that saving and ending the run are not cut in two either; Ctrl-C a third time, or later than ten seconds, ends at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from tracked_cls import processes
from tracked_cls.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 1.0

_depth = 0
_pending: int | None = None
_since: float | None = None
_presses = 0
_once = False


def install(*, once: bool = False) -> None:
    """Raise `Interrupted` on the first SIGINT, SIGTERM or SIGHUP from now on (what nohup ignores stays ignored).

    `once`: let all others pass, a third Ctrl-C too, which is the launcher's to hear.
    """
    global _depth, _pending, _since, _presses, _once
    _depth, _pending, _since, _presses, _once = 0, None, None, 0, once
    for signum in SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _handle)


def ignore() -> None:
    """Let all of them pass from now on."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Hold signals back inside the block; the yielded function says whether one has come. It is raised at the end.

    Of blocks inside each other, at the end of the outermost.
    """
    global _depth, _pending
    _depth += 1
    try:
        yield lambda: _pending is not None
    finally:
        _depth -= 1
        if _depth == 0 and _pending is not None:
            signum, _pending = _pending, None
            raise Interrupted(signum)


def join_in() -> None:
    """Behave as on SIGTERM: another process of this work was told to stop."""
    signal.raise_signal(signal.SIGTERM)


def watch_launcher() -> None:
    """Behave as on SIGTERM once whoever started this process is gone: `mlflow run`, ended alone, tells its child nothing."""
    launchers = processes.launchers()

    def watch() -> None:
        while not any(process.is_gone() for process in launchers):
            time.sleep(_POLL_SECONDS)
        _tell(f"{launchers[-1].pid}, which started this process, is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _handle(signum: int, _frame: FrameType | None) -> None:
    global _pending, _since
    if _since is not None:
        _insist(signum, time.monotonic() - _since)
        return
    _since = time.monotonic()
    if _depth == 0:
        raise Interrupted(signum)
    _pending = signum


def _insist(signum: int, seconds: float) -> None:
    """Take a signal that comes while this process is stopping already, `seconds` after the first."""
    global _presses
    if _once or signum != signal.SIGINT:
        return
    _presses += 1
    if _presses >= 2 or seconds > _PATIENCE_SECONDS:
        _give_up(signum)
    _tell("stopping already: saving, and ending the run; Ctrl-C once more ends at once")


def _give_up(signum: int) -> NoReturn:
    _tell("ended at once: the newest checkpoint stays, the same command continues from it")
    os._exit(128 + signum)


def _tell(line: str) -> None:
    """Write a line to stderr, below Python's buffers: a print may be under way."""
    with suppress(OSError):  # the terminal is gone
        os.write(2, f"{line}\n".encode())
