"""Connecting: who opens a connection and does not say what they want is let go.

The server bounds how long a body may take and how long a connection may rest between requests; a
head that comes a byte at a time is neither, and enough of them would take every file descriptor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

__all__ = ["patient_protocol"]


class _Clock:
    """Runs while a head is awaited; further bytes of the same head do not set it back."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self._seconds, self._ring = seconds, ring
        self._timer: asyncio.TimerHandle | None = None

    def run(self, *, is_awaited: bool) -> None:
        if not is_awaited:
            self.stop()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def patient_protocol(head_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, closing connections whose next request's head takes too long.

    Args:
        head_s: Seconds from a connection's start, or a head's first bytes, to its end.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Patient(base):  # type: ignore[misc]  # whichever of uvicorn's two is installed
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._clock = _Clock(head_s, self._give_up)
            self._clock.run(is_awaited=True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._clock.run(is_awaited=self._awaits_head())

        def connection_lost(self, exc: Exception | None) -> None:
            self._clock.stop()
            super().connection_lost(exc)

        def _awaits_head(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _give_up(self) -> None:
            if self._awaits_head():
                self.transport.close()

    return cast("type[asyncio.Protocol]", Patient)
