"""The line: so many at once, so many who wait, and nobody who has left is worked for.

Who waits longest is next; of several keys' clients each key has its turn. All of it runs on one
event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from fastapi import Request

from stillroom.serve.guard import ASKER
from stillroom.serve.limits import Limits
from stillroom.serve.refusals import Refusal, client_left, stopping

__all__ = ["Line", "stay"]

T = TypeVar("T")
_LOOK_S = 0.2
_LOOK_IN_LINE_S = 0.5


class Line:
    """Lets some in and has others wait: a queue for each asker, who take turns."""

    def __init__(self, limits: Limits, running: int, *, most_waiting: int | None = None) -> None:
        """Open the line.

        Args:
            limits: How many wait, how long, and when who is refused may come again.
            running: How many are let in at once.
            most_waiting: How many wait, if not as many as the limits say.
        """
        self.running, self.limits = running, limits
        self.most_waiting = limits.waiting if most_waiting is None else most_waiting
        self.last = math.inf
        """From which moment of the monotonic clock on nobody is let in: the server stops."""
        self._free, self._waiting, self._places = running, 0, 0
        self._askers: OrderedDict[object, deque[asyncio.Future[None]]] = OrderedDict()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place until the body ends, from before a request's body is read.

        Raises:
            Refusal: If as many as may be let in and wait have places.
        """
        if self._places >= self.running + self.most_waiting:
            raise self._full(self._places - self.running)
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """Wait to be let in, and be inside until the body ends.

        Raises:
            Refusal: If the line is full, the wait is too long, or the client left.
        """
        await self.enter(request)
        try:
            yield
        finally:
            self.leave()

    async def enter(self, request: Request) -> None:
        """Wait to be let in; who is in calls ``leave``.

        Raises:
            Refusal: If the line is full, the wait is too long, the server stops, or the client
                left.
        """
        if time.monotonic() > self.last:
            raise stopping()
        if self._free:
            self._free -= 1
            return
        if self._waiting >= self.most_waiting:
            raise self._full(self._waiting)
        asker = request.scope.get(ASKER, 0)
        place = self._stand(asker)
        end = time.monotonic() + self.limits.wait_s
        is_in = False
        try:
            while True:
                await asyncio.wait({place}, timeout=_LOOK_IN_LINE_S)
                if await request.is_disconnected():
                    raise client_left()
                if time.monotonic() > self.last:
                    raise stopping()
                if place.done():
                    is_in = True
                    return
                if time.monotonic() > end:
                    raise self._full(self._waiting)
        finally:
            if not is_in:
                self._quit(asker, place)

    def leave(self) -> None:
        """Let in the asker whose turn it is, or nobody."""
        if self._askers:
            asker, places = self._askers.popitem(last=False)
            place = places.popleft()
            if places:
                self._askers[asker] = places
            self._waiting -= 1
            place.set_result(None)
            return
        self._free += 1

    def _stand(self, asker: object) -> asyncio.Future[None]:
        """Stand in line; what is returned is done when it is our turn."""
        place = asyncio.get_running_loop().create_future()
        self._askers.setdefault(asker, deque()).append(place)
        self._waiting += 1
        return place

    def _quit(self, asker: object, place: asyncio.Future[None]) -> None:
        """Leave before it was our turn; if it came just now, the next is let in."""
        if place.done():
            self.leave()
            return
        self._waiting -= 1
        self._askers[asker].remove(place)
        if not self._askers[asker]:
            del self._askers[asker]

    def _full(self, waiting: int) -> Refusal:
        return Refusal(
            429,
            f"{self.running} running and {waiting} waiting; come again later",
            code="too_many_requests",
            headers={"Retry-After": str(self.limits.retry_after_s)},
        )


async def stay(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what some work gives; it is cancelled, and has ended, when the client leaves.

    Raises:
        Refusal: If the client left.
    """
    task = asyncio.ensure_future(work)
    try:
        while True:
            await asyncio.wait({task}, timeout=_LOOK_S)
            if task.done():
                return task.result()
            if await request.is_disconnected():
                raise client_left()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
