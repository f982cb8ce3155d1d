"""Ports for engines that answer on this machine's own network, in a process that may use few.

A fenced process may connect to the ports alone that were named before the fence went up; so some
free ones are named first, and engines that open a port afterwards take one of those.
"""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["choose_port", "name_ports"]

_VARIABLE = "STILLROOM_ENGINE_PORTS"
_HOST = "127.0.0.1"


def name_ports(count: int) -> list[int]:
    """Return free ports and keep them for the engines of this process and its children."""
    with contextlib.ExitStack() as opened:
        bound = [
            opened.enter_context(contextlib.closing(socket.create_server((_HOST, 0))))
            for _ in range(count)
        ]
        ports = [one.getsockname()[1] for one in bound]
    os.environ[_VARIABLE] = ",".join(map(str, ports))
    return ports


def choose_port() -> int:
    """Return a port that was named and is free, or 0 (any) where none was named."""
    named = os.environ.get(_VARIABLE, "")
    for port in map(int, named.split(",") if named else ()):
        with contextlib.suppress(OSError), socket.create_server((_HOST, port)):
            return port
    return 0
