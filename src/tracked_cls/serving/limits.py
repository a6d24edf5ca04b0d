"""What one request may cost: bytes, images, a place in the queue, time. Whatever costs more is refused with one clear line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tracked_cls.errors import UserError

T = TypeVar("T")
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]

_BODIES = 8  # so many of the largest are held in memory at once; the next ones have to wait
_SMALL_BYTES = 1 << 16  # what is not counted there: large requests that come slowly keep no small one out
_RETRY = {"retry-after": "1"}
_LINGER_SECONDS, _LINGER_BYTES = 5.0, 1 << 30  # for a client that reads its answer only once all is sent


@dataclass(frozen=True)
class Limits:
    """The options of ``serve`` that bound a request; `at_once` are answered at the same time."""

    max_body_bytes: int
    max_images: int
    max_pixels: int
    max_waiting: int
    timeout_seconds: float
    at_once: int


class Refusal(Exception):  # noqa: N818 - an answer
    """A request that is not answered as asked: HTTP status, and one line that names rule and cure."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class Gone(Exception):  # noqa: N818 - nobody is left to answer
    """The client went away before its request was complete."""


# ---- the body --------------------------------------------------------------------------------------------------------


class Memory:
    """The bytes of all large bodies that are held, or announced, now."""

    def __init__(self, limits: Limits) -> None:
        self._most = _BODIES * limits.max_body_bytes
        self._held = 0

    def take(self, num_bytes: int) -> None:
        """Hold so many bytes more; raises `Refusal` where others hold too many."""
        if self._held + num_bytes > self._most:
            raise Refusal(503, "too many large requests at once; try again in a moment", _RETRY)
        self._held += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Hold so many bytes less."""
        self._held -= num_bytes


class Body:
    """The body of one request, read once, within its limits."""

    def __init__(self, headers: Mapping[str, str], receive: Receive, limits: Limits, memory: Memory) -> None:
        self._headers, self._receive, self._limits, self._memory = headers, receive, limits, memory
        self._num_bytes = self._num_held = 0
        self._bytes = bytearray()  # not a list of parts: a body sent byte by byte would take a hundred times its size
        self._is_complete = not {"content-length", "transfer-encoding"} & headers.keys()
        self._is_worth_draining = "expect" not in headers  # such a client sends only once it is asked to

    async def read(self) -> None:
        """Wait for all of it; raises `Refusal` for one that is too large, by its header before it is read, or too slow."""
        announced = self._headers.get("content-length", "0")
        self._hold(int(announced) if announced.isdecimal() else 0)  # at once: of many that grow together none would end
        self._is_worth_draining = True
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                while not self._is_complete:
                    self._keep(await self._next())
        except TimeoutError:
            self._is_worth_draining = False
            raise Refusal(408, f"the request did not arrive within {self._limits.timeout_seconds:g} s") from None

    def taken(self) -> bytes:
        """Return what was read, once: nothing of it stays here."""
        content, self._bytes = bytes(self._bytes), bytearray()
        return content

    async def drain(self) -> None:
        """Let a client send what it has begun, and drop it: one that is cut off while it sends does not see its answer."""
        dropped = 0
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._is_complete and self._is_worth_draining and dropped < _LINGER_BYTES:
                    dropped += len(await self._next())
        except (TimeoutError, Gone, asyncio.CancelledError):  # cancelled: the server ends
            pass

    def abandon(self) -> None:
        """Wait no longer for what is still to come."""
        self._is_worth_draining = False

    def release(self) -> None:
        """Give its memory back."""
        self._memory.give_back(self._num_held)
        self._num_held, self._bytes = 0, bytearray()

    @property
    def num_bytes(self) -> int:
        """How many bytes were read."""
        return self._num_bytes

    @property
    def is_complete(self) -> bool:
        """Whether nothing of it is left to be read."""
        return self._is_complete

    def _keep(self, part: bytes) -> None:
        self._hold(self._num_bytes + len(part))
        self._num_bytes += len(part)
        self._bytes += part

    def _hold(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_body_bytes:
            most = f"{self._limits.max_body_bytes:,} bytes (serve.max_body_bytes)"
            raise Refusal(413, f"the request is larger than {most}; send fewer or smaller images at a time")
        if num_bytes > max(self._num_held, _SMALL_BYTES):
            self._memory.take(num_bytes - self._num_held)
            self._num_held = num_bytes

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self._is_complete = not message.get("more_body", False)
        return bytes(message.get("body", b""))


# ---- time and places -------------------------------------------------------------------------------------------------


class Places:
    """So many requests are answered at once, so many wait, and none for ever."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.at_once)
        self._num_waiting = 0
        self._at_work: set[asyncio.Task[Any]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether anything is being computed, perhaps for somebody who has been told that it takes too long."""
        return bool(self._at_work)

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]], until: float) -> T:
        """Return what `work` does once a place is free; raises `Refusal` where none is, or where it is not done in time.

        Work that is late keeps its place to its end: a thread cannot be stopped.
        """
        await self._enter(until)
        task = asyncio.create_task(work())
        self._at_work.add(task)
        task.add_done_callback(self._leave)
        await asyncio.wait({task}, timeout=until - time.monotonic())
        if not task.done():
            raise late(self._limits)
        return task.result()

    async def _enter(self, until: float) -> None:
        if self._free.locked() and self._num_waiting >= self._limits.max_waiting:
            raise Refusal(503, "too many requests are waiting; try again in a moment", _RETRY)
        self._num_waiting += 1
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await self._free.acquire()
        except TimeoutError:
            raise Refusal(503, f"no place was free for {self._limits.timeout_seconds:g} s; try again later", _RETRY) from None
        finally:
            self._num_waiting -= 1

    def _leave(self, task: asyncio.Task[Any]) -> None:
        self._at_work.discard(task)
        self._free.release()
        if not task.cancelled():
            task.exception()  # seen: nobody may be waiting for it any more


def late(limits: Limits) -> Refusal:
    """Return the refusal of a request that takes too long."""
    return Refusal(504, f"no answer within {limits.timeout_seconds:g} s (serve.timeout_seconds); send fewer or smaller images")


def deadline(limits: Limits) -> float:
    """Return until when a request that has arrived now is to be answered, on the monotonic clock."""
    return time.monotonic() + limits.timeout_seconds


def whole_number(text: str) -> int:
    """Return a number of plain digits; Python itself would also take ``1_0``, blanks and the digits of other scripts."""
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(text)
    return int(text)


def number(text: str) -> float:
    """Return a number as JSON writes it."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError(text)
    return float(text)


def values_of(query: Mapping[str, list[str]], known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Return the values of a query string, each once and of its type; raises `UserError` for any other."""
    values: dict[str, Any] = {}
    for name, texts in query.items():
        if name not in known or len(texts) > 1:
            raise UserError(f"the address takes {' and '.join(sorted(known))}, each once")
        try:
            values[name] = known[name](texts[0])
        except ValueError:
            raise UserError(f"{name} must be a number") from None
    return values
