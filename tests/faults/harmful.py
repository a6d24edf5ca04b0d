"""Work that harms the process that does it: light to import, for every decoding process that is started does."""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tracked_cls.data.ingest import Outcome, Plan, ingest_files


def harmful(paths: Iterable[str]) -> list[str]:
    """Do to this process what the file's name says; return the names of the others."""
    return [_do(path) for path in paths]


def _do(path: str) -> str:
    name = path.rpartition("/")[2]
    deeds: dict[str, Callable[[], object]] = {
        "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "exit": lambda: os._exit(3),
        "sleep": lambda: time.sleep(100),
        "compute": _compute,
        "hoard": lambda: bytearray(1 << 30),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "once": lambda: _once(path),
        "mistake": lambda: 1 // 0,
    }
    deeds.get(name, lambda: None)()
    return name


def _compute() -> None:
    while True:
        zlib.crc32(bytes(1_000_000))


def _once(path: str) -> None:
    """Die, but not where a neighbour left its mark: what was no fault of the file."""
    mark = Path(path + ".mark")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def dawdling(paths: Iterable[str]) -> list[str]:
    """Take 0.07 s by the clock for each file."""
    return [time.sleep(0.07) or "done" for _ in paths]


def slow_ingest(paths: Iterable[str], plan: Plan) -> list[Outcome]:
    """Decode files, 0.02 s apart."""
    return ingest_files((time.sleep(0.02) or path for path in paths), plan)
