"""uvicorn, listening with patience that ends: for a request's first lines, for a reader of answers, for work under way."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tracked_cls.serving.gateway import Gateway
from tracked_cls.serving.limits import Limits

IDLE_SECONDS = 30  # a connection that is kept open between requests
GRACE_SECONDS = 10  # for requests under way once the server is to end
_SPARE_CONNECTIONS = 256  # beside those that wait or are answered: kept open, or just arriving
_HEAD_BYTES = 16_384
_READ_BYTES = 16_384  # at a time: what one client sends keeps the others waiting for no longer than that takes
_FREE_CHUNKS, _CHUNK_BYTES = 256, 64  # so many may be of any size; more must hold so many bytes each, as a mean


class Reader(h11.Connection):
    """h11, which refuses some more: what costs much more than it brings, and what a proxy might read in another way."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _HEAD_BYTES)
        self.reason = "this is no valid HTTP request, or its first lines are longer than 16 kB"
        self._num_chunks, self._num_bytes = 0, 0

    def next_event(self) -> Any:
        """Return what comes next; raises `h11.RemoteProtocolError`, with `reason` in words of ours."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._check_head(event)
        elif isinstance(event, h11.Data):
            self._check_chunks(event)
        return event

    def _check_head(self, request: h11.Request) -> None:
        self._num_chunks, self._num_bytes = 0, 0
        if len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers) > _HEAD_BYTES:
            self._refuse(self.reason)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
            self._refuse("a request has Content-Length or Transfer-Encoding, not both")

    def _check_chunks(self, part: h11.Data) -> None:
        self._num_chunks += part.chunk_start
        self._num_bytes += len(part.data)
        if self._num_chunks > _FREE_CHUNKS + self._num_bytes // _CHUNK_BYTES:
            self._refuse(
                f"the request comes in more than {_FREE_CHUNKS:,} chunks of less than {_CHUNK_BYTES} bytes; send larger ones"
            )

    def _refuse(self, reason: str) -> NoReturn:
        self.reason = reason
        raise h11.RemoteProtocolError(reason)


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """One connection, with the limits that uvicorn has not: neither silent clients nor busy ones can hold the others up."""

    def __init__(self, *args: Any, patience_seconds: float, most: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn: Reader = Reader()
        self._received = bytearray(_READ_BYTES)
        self._patience_seconds, self._most = patience_seconds, most
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the head of a request, unless there are too many connections."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self._most:
            self._refuse(503, "too many connections; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        _stop(self._head, self._reader)
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where the next bytes go: no more of them at a time."""
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that are there."""
        self.data_received(bytes(self._received[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take some bytes; the head of a request is to be complete in time, however they drip."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            _stop(self._head)
            self._head = None

    def pause_writing(self) -> None:
        """Answers pile up: the client does not read them."""
        super().pause_writing()
        self._reader = self._reader or self.loop.call_later(self._patience_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads on."""
        super().resume_writing()
        _stop(self._reader)
        self._reader = None

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, also one whose client has not read its answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the words of all other refusals."""
        self._refuse(400, self.conn.reason)

    def _await_head(self) -> None:
        if self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self._patience_seconds, self._give_up)

    def _give_up(self) -> None:
        self._refuse(408, f"the request did not begin within {self._patience_seconds:g} s")

    def _refuse(self, status: int, reason: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = b'{"error": "%s"}' % reason.encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


def _stop(*clocks: asyncio.TimerHandle | None) -> None:
    for clock in clocks:
        if clock is not None:
            clock.cancel()


class _Server(uvicorn.Server):
    """Says when it answers, and ends in its own time when it is told to."""

    def __init__(
        self, config: uvicorn.Config, gateway: Gateway, on_ready: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._gateway, self._on_ready, self._on_end = gateway, on_ready, on_end
        self._announcement: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announcement = asyncio.create_task(self._announce())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.failure is None:
            self._on_end()
        if self._gateway.is_busy:
            os._exit(0)  # a thread that decodes cannot be stopped, and Python would wait for it

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End on the signals that ask for it, which end nothing but this server."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _announce(self) -> None:
        try:
            await asyncio.to_thread(self._on_ready)
        except Exception as error:  # raised where the server was started
            self.failure, self.should_exit = error, True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is worth a line: not that a request was given up at the end, which is said once for all."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def listen(
    gateway: Gateway, bound: socket.socket, limits: Limits, on_ready: Callable[[], None], on_end: Callable[[], None]
) -> None:
    """Answer requests until SIGINT or SIGTERM, then finish those under way, for some seconds at most.

    `on_ready` is called in a thread once requests are answered; what it raises ends the server and is raised here. `on_end` is
    called after the last answer; this process may end with it.
    """
    patience_seconds, most = min(limits.timeout_seconds, 30.0), limits.max_waiting + limits.at_once + _SPARE_CONNECTIONS

    class Bounded(Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, patience_seconds=patience_seconds, most=most, **options)

    config = uvicorn.Config(
        gateway,
        http=Bounded, loop="asyncio", ws="none", lifespan="off", interface="asgi3",
        log_config=None, log_level="error", access_log=False, proxy_headers=False, server_header=False,
        timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=GRACE_SECONDS, backlog=2048,
    )  # fmt: skip
    server = _Server(config, gateway, on_ready, on_end)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server.run(sockets=[bound])
    if server.failure is not None:
        raise server.failure
