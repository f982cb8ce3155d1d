"""Listening: a socket at an address of this machine, and whether others reach it."""

from __future__ import annotations

import ipaddress
import socket

from stillroom.errors import ResourceError

__all__ = ["is_loopback", "listen"]

_BACKLOG = 512


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        ResourceError: If the address is not this machine's, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found[4])
            listening.listen(_BACKLOG)  # who comes before the server has begun waits, unrefused
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ResourceError(
            f"cannot listen at {host}:{port}: {error.strerror or error}",
            code="serve.port",
            where="--host, --port",
            expected="an address of this machine and a free port",
            next="choose another --port; 0 takes a free one",
        ) from error
    return listening
