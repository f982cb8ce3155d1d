"""Blocking work beside the event loop: so many at once, so many in line, all of it stoppable.

A slot is given free when its thread has really ended, not when its client has left, so that an
engine never runs more than it was promised.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from fastapi import Request

from stillroom.serve.limits import Limits
from stillroom.serve.refusals import Refusal, explain

__all__ = ["IsStopped", "Slots", "Work", "result_of"]

T = TypeVar("T")
IsStopped = Callable[[], bool]
Work = Callable[[IsStopped], Iterator[T]]
"""Blocking work that yields as it goes and looks at whether it should stop."""

_LOOK_S = 0.2


class Slots:
    """Lets ``running`` pieces of work run in threads and ``waiting`` stand in line."""

    def __init__(self, limits: Limits) -> None:
        """Open the slots; the event loop is the one that first uses them."""
        self.limits = limits
        self._free = asyncio.Semaphore(limits.running)
        self._waiting = 0

    async def stream(self, work: Work[T], request: Request) -> AsyncIterator[T]:
        """Yield what the work yields; stops it when the client leaves or time is over.

        Raises:
            Refusal: If too many stand in line, the time is over, or the work fails.
        """
        await self._enter(request)
        run = _Run[T](asyncio.get_running_loop(), self._free.release)
        run.start(work)
        end = time.monotonic() + self.limits.timeout_s
        try:
            while True:
                try:
                    item = await asyncio.wait_for(run.queue.get(), _LOOK_S)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    if time.monotonic() > end:
                        raise Refusal(
                            504,
                            f"no answer within {self.limits.timeout_s:g} s",
                            code="timeout",
                        ) from None
                    continue
                if item is _END:
                    return
                if isinstance(item, BaseException):
                    raise explain(item) from item
                yield item
        finally:
            run.stop.set()

    async def _enter(self, request: Request) -> None:
        """Wait for a free slot in line, unless the line is full."""
        if self._free.locked() and self._waiting >= self.limits.waiting:
            raise Refusal(
                429,
                f"{self.limits.running} running and {self._waiting} waiting; come again later",
                code="too_many_requests",
                headers={"Retry-After": str(self.limits.retry_after_s)},
            )
        self._waiting += 1
        try:
            while True:
                try:
                    await asyncio.wait_for(self._free.acquire(), _LOOK_S)
                except TimeoutError:
                    if await request.is_disconnected():
                        raise Refusal(499, "the client left", code="client_left") from None
                else:
                    return
        finally:
            self._waiting -= 1


async def result_of(items: AsyncIterator[T]) -> T:
    """Return the only item, closing the rest.

    Raises:
        Refusal: If there is none, since the client left.
    """
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        async for item in opened:
            return item
    raise Refusal(499, "the client left", code="client_left")


_END = object()


class _Run(Generic[T]):
    """One piece of work in its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, release: Callable[[], None]) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.stop = threading.Event()
        self._loop = loop
        self._release = release

    def start(self, work: Work[T]) -> None:
        threading.Thread(target=self._go, args=(work,), daemon=True, name="stillroom-serve").start()

    def _go(self, work: Work[T]) -> None:
        try:
            items = work(self.stop.is_set)
            try:
                for item in items:
                    if self.stop.is_set():
                        break
                    self._tell(self.queue.put_nowait, item)
            finally:
                close = getattr(items, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001  # raised again in the request's task
            self._tell(self.queue.put_nowait, error)
        finally:
            self._tell(self.queue.put_nowait, _END)
            self._tell(self._release)

    def _tell(self, call: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *values)
        except RuntimeError:  # the loop was closed: nobody listens, but the slot is given free
            self.stop.set()
            if call is self._release:
                self._release()
