"""The thread that brings journals to MLflow. Nobody who writes one waits for it, or hears of its troubles as an error."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from tracked_cls import failpoints
from tracked_cls.console import say
from tracked_cls.journal import Journal
from tracked_cls.redaction import reason_of
from tracked_cls.tracking.clerk import Clerk, NotYet
from tracked_cls.tracking.store import Store, is_refusal

_HEARTBEAT_SECONDS = 60.0
_STALL_SECONDS = 30.0  # a store that takes a connection and says nothing
_QUICK = ("open", "attach", "reap", "params", "metrics", "tags", "drop_tags", "inputs", "end")  # others upload
_LONGEST_SECONDS = 600.0
_OPENINGS = ("open", "attach")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0


@dataclass
class _Line:
    """One journal on its way: when it is tried again, and what is in its way."""

    journal: Journal
    pause: float = 0.0
    retry_at: float = 0.0
    failing_since: float | None = None
    reason: str = ""
    waits: bool = False
    is_left: bool = False
    busy_since: float | None = None
    refusal: tuple[str, str] = ("", "")
    singly: bool = False
    beat_at: float = field(default_factory=lambda: time.monotonic() + _HEARTBEAT_SECONDS)


class Sender:
    """Delivers the journals of a process in the background, each in its order, again and again until it succeeds."""

    def __init__(self, clerk: Clerk, store: Store, *, has_warned: bool = False) -> None:
        self._clerk = clerk
        self._store = store
        self._has_warned = has_warned
        self._lines: dict[str, _Line] = {}
        self._news = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def take(self, journal: Journal) -> None:
        """Deliver a journal from now on; raises `RuntimeError` once closed, when nobody would."""
        with self._news:
            if self._closing:
                raise RuntimeError("this tracker was closed: its runs would never arrive")
            self._lines.setdefault(journal.key, _Line(journal))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sender", daemon=True)
                self._thread.start()
            self._news.notify_all()

    @property
    def journals(self) -> list[Journal]:
        """What is being delivered."""
        with self._news:
            return [line.journal for line in self._lines.values()]

    def journal(self, key: str) -> Journal | None:
        """Return a journal that is being delivered."""
        with self._news:
            line = self._lines.get(key)
            return None if line is None else line.journal

    def journal_of(self, run_id: str) -> Journal | None:
        """Return the journal of a run, where it is being delivered."""
        with self._news:
            return next((line.journal for line in self._lines.values() if line.journal.run_id == run_id), None)

    def leave(self, journal: Journal) -> None:
        """Let go of a journal as soon as it has arrived: its run has ended."""
        with self._news:
            line = self._lines.get(journal.key)
            if line is not None:
                line.is_left = True

    def drain(self, journal: Journal, patience: float) -> bool:
        """Wait until a journal has arrived; give up where the store has not answered for `patience` seconds from now."""
        until = time.monotonic() + patience
        with self._news:
            line = self._lines.get(journal.key)
            if line is not None and line.failing_since is not None:
                line.retry_at = 0.0
            self._news.notify_all()
            while line is not None and (pending := journal.pending):
                now = time.monotonic()
                longest = _STALL_SECONDS if pending[0].kind in _QUICK else _LONGEST_SECONDS
                is_stuck = line.busy_since is not None and now - line.busy_since > max(patience, longest)
                if line.waits or is_stuck or (line.failing_since is not None and now >= until):
                    return False
                self._news.wait(0.05)
            return True

    def trouble(self, journal: Journal) -> str:
        """Return why a journal does not arrive, empty where nothing is in its way."""
        with self._news:
            line = self._lines.get(journal.key)
            return "" if line is None else line.reason

    def release(self, journal: Journal) -> None:
        """Let go of a journal; one that has served its purpose is removed."""
        with self._news:
            self._lines.pop(journal.key, None)
        journal.close(remove=journal.may_go)

    def close(self, patience: float) -> list[Journal]:
        """Deliver what can be delivered within `patience` seconds without an answer, and end; return what is left."""
        with self._news:
            journals = [line.journal for line in self._lines.values()]
        until = time.monotonic() + patience
        left = [journal for journal in journals if not self.drain(journal, max(0.0, until - time.monotonic()))]
        with self._news:
            self._closing = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(max(patience, _STALL_SECONDS) if left else None)
            if self._thread.is_alive():  # a call that takes its time; what it brings is brought again by the next command
                return left
        for journal in journals:
            self.release(journal)
        return left

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._news:
                if self._closing:
                    return
                lines = list(self._lines.values())
            busy = [self._attend(line) for line in lines]
            with self._news:
                self._news.notify_all()
                if not any(busy) and not self._closing:
                    self._news.wait(_FIRST_PAUSE_SECONDS)

    def _attend(self, line: _Line) -> bool:
        """Deliver something of a journal, and say that its process lives; whatever happens, the thread goes on."""
        try:
            line.busy_since = time.monotonic()
            is_busy = self._deliver(line)
            self._beat(line)
            if line.is_left and line.journal.may_go:
                self.release(line.journal)
            return is_busy
        except Exception as error:
            self._pause(line, error)
            return False
        finally:
            line.busy_since = None

    def _deliver(self, line: _Line) -> bool:
        """Deliver something of a journal; return whether to go on at once."""
        pending = line.journal.pending
        if not pending or time.monotonic() < line.retry_at:
            return False
        line.journal.sync()
        try:
            count, facts = self._clerk.deliver(line.journal, pending[:1] if line.singly else pending)
        except NotYet:
            line.waits = pending[0].kind != "open"  # a parent's run comes by itself
            return False
        except Exception as error:  # whatever it is, training goes on
            if not is_refusal(error) or pending[0].kind in _OPENINGS:  # nothing can follow where there is no run
                self._pause(line, error)
                return False
            if pending[0].kind == "metrics" and not line.singly:  # which of those that were sent together?
                line.singly = True
                return True
            self._tell_refusal(line, pending[0].kind, reason_of(error))
            count, facts = 1, {"refused": (line.journal.fact("refused") or 0) + 1}
        if line.failing_since is not None and self._has_warned:
            self._has_warned = False
            say(f"the tracking store answers again, after {time.monotonic() - line.failing_since:.0f} s")
        line.failing_since, line.pause, line.reason, line.waits = None, 0.0, "", False
        line.singly = line.singly and pending[0].number + count < pending[-1].number
        failpoints.reach("delivery.before_mark")
        line.journal.mark(pending[0].number + count, **facts)
        return True

    def _tell_refusal(self, line: _Line, kind: str, reason: str) -> None:
        if line.refusal != (kind, reason):  # a run deleted in the UI refuses every epoch
            line.refusal = (kind, reason)
            say(f"warning: the tracking store refuses {kind} of run {line.journal.run_id}: {reason}")

    def _pause(self, line: _Line, error: Exception) -> None:
        if line.failing_since is None:
            line.failing_since = time.monotonic()
        line.reason = self._store.absence() or reason_of(error)
        if not self._has_warned:
            self._has_warned = True
            say(f"warning: {line.reason}; what is logged waits in {line.journal.folder.parent}, and work goes on")
        line.pause = min(_LONGEST_PAUSE_SECONDS, 2 * line.pause or _FIRST_PAUSE_SECONDS)
        line.retry_at = time.monotonic() + line.pause

    def _beat(self, line: _Line) -> None:
        journal = line.journal
        if time.monotonic() < line.beat_at or journal.run_id is None or not journal.goes_on or line.failing_since:
            return
        line.beat_at = time.monotonic() + _HEARTBEAT_SECONDS
        try:
            self._clerk.beat(journal)
        except Exception as error:  # the next one will do
            line.reason = reason_of(error)
