"""Listening: a socket at an address of this machine, who reaches it, and an app behind it."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from stillroom.errors import ResourceError

__all__ = ["LOCAL", "address_of", "is_loopback", "listen", "name_of_host", "run_app"]

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
"""What this machine calls itself."""
_HEAD_S = 15.0
_BACKLOG = 512


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_of_host(host: str) -> str:
    """Return the name of a Host header, or of an origin without its scheme, without the port."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def address_of(listening: socket.socket, host: str) -> str:
    """Return the address that a client asks, under the host that was named."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


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


def run_app(
    app: Any, listening: socket.socket, *, drain_s: int, on_stop: Callable[[], None]
) -> None:
    """Serve an ASGI app until it is interrupted, or asked to end (SIGTERM), and return then.

    Args:
        app: The app.
        listening: A bound socket.
        drain_s: How long requests that run are waited for at the end.
        on_stop: Called before they are, so that those end that would go on for ever.
    """
    import uvicorn

    from stillroom.serve.connecting import patient_protocol

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            on_stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http=patient_protocol(_HEAD_S),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=drain_s,
    )
    with _outliving(signal.SIGTERM):
        Server(config).run(sockets=[listening])


@contextlib.contextmanager
def _outliving(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the body alone: uvicorn raises it once more when it has stopped.

    Taken as it comes by default, it would end the process there, before models, traces and locks
    are closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)
