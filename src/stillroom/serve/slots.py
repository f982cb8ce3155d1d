"""Blocking work beside the event loop: so many at once, so many in line, all of it stoppable.

A slot is given free when its thread has really ended, not when its client has left, so that an
engine never runs more than it was promised. Who waits stands in a ``Line``.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from fastapi import Request

from stillroom.serve.counters import CLOCK, Clock
from stillroom.serve.limits import Limits
from stillroom.serve.line import Line
from stillroom.serve.refusals import Refusal, client_left, explain, stopping

__all__ = ["IsStopped", "Slots", "Work", "result_of"]

T = TypeVar("T")
IsStopped = Callable[[], bool]
Work = Callable[[IsStopped], Iterator[T]]
"""Blocking work that yields as it goes and looks at whether it should stop."""

_LOOK_S = 0.2


class Slots:
    """Lets some pieces of work run in threads and others stand in line."""

    def __init__(self, limits: Limits, lanes: int = 1) -> None:
        """Open the slots; the event loop is the one that first uses them.

        Args:
            limits: How many wait, and how long.
            lanes: How many run at once, unless the limits say.
        """
        self.limits = limits
        self._line = Line(limits, limits.running or lanes)
        self._last = math.inf

    def end_by(self, moment: float) -> None:
        """End what runs still, and let nobody in, from a moment of the monotonic clock on."""
        self._last = self._line.last = moment

    async def stream(self, work: Work[T], request: Request) -> AsyncIterator[T]:
        """Yield what the work yields; stops it when the client leaves or time is over.

        Raises:
            Refusal: If too many stand in line, the time is over, or the work fails.
        """
        clock: Clock = request.scope.get(CLOCK) or Clock()
        begun = time.perf_counter()
        await self._line.enter(request)
        clock.waited_s += time.perf_counter() - begun
        run = _Run[T](asyncio.get_running_loop(), self._line.leave, clock)
        run.start(work)
        end = time.monotonic() + self.limits.timeout_s
        ticking = run.tick()
        try:
            while True:
                await run.woken.wait()
                run.woken.clear()
                while run.items:
                    item = run.items.popleft()
                    if item is _END:
                        return
                    if isinstance(item, BaseException):
                        raise explain(item) from item
                    yield item
                if run.is_time_to_look:
                    run.is_time_to_look = False
                    await self._look(request, end)
        finally:
            ticking()
            run.stop.set()

    async def _look(self, request: Request, end: float) -> None:
        if await request.is_disconnected():
            raise client_left()
        if time.monotonic() > self._last:
            raise stopping()
        if time.monotonic() > end:
            raise Refusal(504, f"no answer within {self.limits.timeout_s:g} s", code="timeout")


async def result_of(items: AsyncIterator[T]) -> T:
    """Return the only item, closing the rest.

    Raises:
        Refusal: If there is none, since the client left.
    """
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        async for item in opened:
            return item
    raise client_left()


_END = object()


class _Run(Generic[T]):
    """One piece of work in its thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, release: Callable[[], None], clock: Clock
    ) -> None:
        self.items: deque[Any] = deque()
        self.woken = asyncio.Event()
        self.is_time_to_look = False
        self._is_waking = False
        self.stop = threading.Event()
        self._loop, self._release, self._clock = loop, release, clock

    def start(self, work: Work[T]) -> None:
        threading.Thread(target=self._go, args=(work,), daemon=True, name="stillroom-serve").start()

    def tick(self) -> Callable[[], None]:
        """Wake now and then to look at client and clock; returns what ends that."""
        timers: list[asyncio.TimerHandle] = []

        def look() -> None:
            self.is_time_to_look = True
            self.woken.set()
            timers[:] = [self._loop.call_later(_LOOK_S, look)]

        timers.append(self._loop.call_later(_LOOK_S, look))
        return lambda: timers[0].cancel()

    def _go(self, work: Work[T]) -> None:
        begun = time.perf_counter()
        try:
            items = work(self.stop.is_set)
            try:
                for item in items:
                    if self.stop.is_set():
                        break
                    self._put(item)
            finally:
                close = getattr(items, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001  # raised again in the request's task
            self._put(error)
        finally:
            self._clock.engine_s += time.perf_counter() - begun
            self._put(_END)
            self._call(self._release)

    def _put(self, item: object) -> None:
        self.items.append(item)
        if not self._is_waking:  # else the reader will be woken, and find this one too
            self._is_waking = True
            self._call(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self.woken.set()

    def _call(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop was closed: nobody listens, but the slot is given free
            self.stop.set()
            if call is self._release:
                self._release()
