"""Where a server listens, taken before seconds are spent on what it is to say."""

from __future__ import annotations

import errno
import socket

from tracked_cls.errors import UserError


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address; raises `UserError` where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise _strange(host, error) from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1)  # of two that may share the address while nobody listens, the second fails here
        return bound
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _strange(host, error) from None
        what = f"serve.port: {host}:{port} cannot be listened on: {error.strerror}"
        raise UserError(f"{what}; give another serve.port (0: a free one), or end what uses it") from None


def _strange(host: str, error: Exception) -> UserError:
    return UserError(f"serve.host: {host!r} is no address of this machine: {error}; try 127.0.0.1")


def reached(bound: socket.socket) -> tuple[str, int]:
    """Return the host and port by which this machine reaches what was bound."""
    host, port = bound.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 - looked at, not bound
