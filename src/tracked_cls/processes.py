"""Which process did something, and whether it is still there: what a lock cannot say once its holder was killed."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SHELLS = {"bash", "sh", "dash"}
_MAIN_LOCK = threading.Lock()


@dataclass(frozen=True)
class Process:
    """A process of a host: `started` (clock ticks since boot, 0 where unknown) tells it from a later one of the same id.

    `boot` names the start of the machine those ticks are counted from ("" where unknown): after a reboot they begin anew.
    """

    host: str
    pid: int
    started: int
    boot: str = ""

    @classmethod
    def me(cls) -> Process:
        """Return this process."""
        return cls.here(os.getpid())

    @classmethod
    def here(cls, pid: int) -> Process:
        """Return the process that has this id on this host now."""
        status = _status(pid)
        return cls(socket.gethostname(), pid, status.started if status else 0, _boot())

    @classmethod
    def parse(cls, text: object) -> Process | None:
        """Read what ``str(process)`` wrote; None for anything else."""
        found = re.fullmatch(r"(\S+) (\d{1,9}) (\d+)(?: ([0-9a-f-]{36}))?", str(text), re.ASCII)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]), found[4] or "")

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.started} {self.boot}".rstrip()

    @property
    def mark(self) -> str:
        """What ends the name of a file that the process has under way."""
        return f"{self.pid}-{self.started}@{self.host}"

    @classmethod
    def marked(cls, name: str) -> Process | None:
        """Return the process that has a file of this name under way; None for any other name."""
        found = re.fullmatch(r".*-(\d{1,9})-(\d+)@(.+)", name, re.ASCII | re.DOTALL)
        return None if found is None else cls(found[3], int(found[1]), int(found[2]))

    def is_gone(self) -> bool:
        """Whether the process is known to have ended: only processes of this host can be asked."""
        if self.host != socket.gethostname():
            return False
        if self.boot and self.boot != _boot():
            return True
        status = _status(self.pid)
        if status is None:
            return not _exists(self.pid)
        has_ended = status.state in "ZX"  # Z: and its parent has not looked yet
        return has_ended or (self.started != 0 and status.started != self.started)


def launchers() -> list[Process]:
    """Return the process that started this one; where that is a shell, which may only stand between, its parent as well."""
    parent = os.getppid()
    status = _status(parent)
    chain = [parent, status.parent] if status is not None and status.name in _SHELLS else [parent]
    return [Process.here(pid) for pid in chain if pid > 0]


class _Status(NamedTuple):
    """What the system says of a process: `started` in clock ticks since boot."""

    name: str
    state: str
    parent: int
    started: int


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # no Linux
        return ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _status(pid: int) -> _Status | None:
    """Return what /proc says of a process; None where there is no /proc, or not that process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    front, _, rest = text.rpartition(")")  # the name may hold blanks and brackets
    words = rest.split()
    return _Status(front.partition("(")[2], words[0], int(words[1]), int(words[19]))  # fields 2, 3, 4 and 22


@contextmanager
def without_main() -> Iterator[None]:
    """Start processes inside the block that do not run the program of this one.

    multiprocessing imports it in every process that it starts: a program without ``if __name__ == "__main__"`` would begin
    anew in each, and imports that take seconds are made again. What is sent to such a process must come from a module.
    """
    with _MAIN_LOCK:
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = program
