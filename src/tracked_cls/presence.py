"""Who of the processes that train together is still there: each beats while it works, and says what made it leave.

They tell each other by the store where they met. Beats that stay away tell what nobody could say: that a process was killed, or
that its machine is gone.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import Any

from tracked_cls.errors import ProcessLost

_TROUBLE = "trouble"  # what made the first one leave that left in trouble
_LONGEST_BEAT_SECONDS = 2.0
_BEATS_IN_PATIENCE = 4
_POLL_SECONDS = 0.1
_AFTER = "the same command continues from the newest checkpoint"


class Presence:
    """This process, number `rank` of `world_size`, among the others; who shows no sign of life for so long is lost."""

    def __init__(self, store: Any, rank: int, world_size: int, patience_seconds: float) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._patience_seconds = patience_seconds
        self._every = min(_LONGEST_BEAT_SECONDS, patience_seconds / _BEATS_IN_PATIENCE)
        self._looked = 0.0
        self._seen: dict[int, tuple[bytes, float]] = {}  # of each other one: its last beat, and since when it is the last
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="presence", daemon=True)
        self._heart.start()

    def end(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._heart.join()

    def note(self, what: str) -> None:
        """Let the others know of something that they may wait for."""
        self._store.set(what, b"1")

    def note_trouble(self, why: str) -> None:
        """Let the others know why this process leaves them."""
        with suppress(RuntimeError):  # the store is gone: so is the process that kept it
            if not self._store.check([_TROUBLE]):
                self._store.set(_TROUBLE, f"{self._rank} {why}".encode())

    def trouble(self) -> str | None:
        """Return which other process has left, and why, if one has said so."""
        with suppress(RuntimeError):
            if self._store.check([_TROUBLE]):
                rank, _, why = self._store.get(_TROUBLE).decode().partition(" ")
                if int(rank) != self._rank:
                    return f"process {rank} of {self._world_size} has ended: {why}"
        return None

    def wait_for(self, what: str, at_most: float = math.inf) -> None:
        """Wait for a note, however long it takes or for so many seconds, as long as the others are there.

        Raises `ProcessLost` where one has left in trouble, or shows no sign of life.
        """
        last = time.monotonic() + at_most
        while not self._store.check([what]) and time.monotonic() < last:
            self._require_others()
            time.sleep(_POLL_SECONDS)

    def _require_others(self) -> None:
        why = self.trouble()
        if why is not None:
            raise ProcessLost(f"{why}; {_AFTER}")
        now = time.monotonic()
        if now - self._looked < self._every:
            return
        self._looked = now
        for rank in set(range(self._world_size)) - {self._rank}:
            last, since = self._seen.get(rank, (b"", now))
            beat = self._store.get(key) if self._store.check([key := _beat_of(rank)]) else b""
            self._seen[rank] = (beat, now if beat != last else since)
            if now - self._seen[rank][1] > self._patience_seconds:
                raise ProcessLost(f"process {rank} of {self._world_size} has shown no sign of life for "
                                  f"{self._patience_seconds:g} s; {_AFTER}")  # fmt: skip

    def _beat(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            with suppress(RuntimeError):
                self._store.set(_beat_of(self._rank), str(number).encode())
            self._ended.wait(self._every)


def _beat_of(rank: int) -> str:
    return f"beat/{rank}"
