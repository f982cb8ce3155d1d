"""An event loop on a thread of its own, and how other threads have it work for them.

Who waits for an answer keeps a thread busy with waiting; waking as many threads as there are
requests costs more processor time than the requests do. So work can also be handed in with a
function that takes what comes of it, and nobody waits. A bounded number of lanes works on what is
handed in: an answer that has come makes room for the next request at once, and is told of when no
more of them come, so that who goes on with the answers does not hold up the requests.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from stillroom.errors import Cancelled

__all__ = ["LoopThread", "cancelled"]

T = TypeVar("T")
_LOOK_S = 0.2
_GATHER_S = 0.001


class LoopThread:
    """Runs coroutines for threads that are not its own."""

    def __init__(self, name: str, *, lanes: int = 16) -> None:
        """Start the thread.

        Args:
            name: Of the thread.
            lanes: How much of what is handed in is worked on at once.
        """
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name=name)
        self.thread.start()
        self._handed_in: deque[tuple[Coroutine[Any, Any, Any], Callable[[Any], None]]] = deque()
        self._is_woken = False
        self._lanes, self._at_work = lanes, 0
        self._running: set[asyncio.Task[Any]] = set()  # which the loop itself forgets
        self._finished: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._telling: asyncio.TimerHandle | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it can take no more."""
        return self.loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, T], is_stopped: Callable[[], bool] | None = None) -> T:
        """Return what a coroutine returns, or raise what it raises.

        Raises:
            Cancelled: If ``is_stopped`` became true, or the loop was closed.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        while True:
            try:
                return future.result(_LOOK_S)
            except concurrent.futures.CancelledError:
                raise cancelled() from None
            except concurrent.futures.TimeoutError:
                if future.done():  # just after the wait for it gave up, or by its own error
                    return future.result()
                if self.is_closed:
                    raise cancelled() from None
                if is_stopped is not None and is_stopped():
                    future.cancel()
                    raise cancelled() from None

    def submit(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None]
    ) -> None:
        """Have a coroutine run, and ``done`` called on this thread with its value or its error.

        Raises:
            RuntimeError: If the loop is closed.
        """
        self._handed_in.append((work, done))
        if self._at_work < self._lanes and not self._is_woken:  # else a lane comes to it
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._take)

    async def rest(self, seconds: float) -> None:
        """Sleep within a coroutine that was handed in, and let another be worked on meanwhile."""
        self._lanes += 1
        self._take()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._lanes -= 1

    def cancel(self, wait_s: float = 5.0) -> None:
        """Break off what is at work, and have who waits for it told so.

        Not to be called on the thread itself; nor is ``close``.
        """
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result(wait_s)

    def close(self, wait_s: float = 5.0) -> None:
        """End the thread; closing twice does no harm."""
        if self.is_closed:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(wait_s)
        if self.thread.is_alive():
            return
        self.loop.close()
        self._is_woken = False  # so that who hands in more is refused
        while self._finished:
            done, value = self._finished.popleft()
            done(value)
        while self._handed_in:
            work, done = self._handed_in.popleft()
            work.close()
            done(cancelled())

    def _take(self) -> None:
        """Open as many lanes as there is work for."""
        self._is_woken = False  # before looking: what comes after the last look wakes it again
        for _ in range(min(self._lanes - self._at_work, len(self._handed_in))):
            self._at_work += 1
            task = self.loop.create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self) -> None:
        """Work on what is handed in until nothing is left, or too many do."""
        try:
            while self._handed_in and self._at_work <= self._lanes:
                work, done = self._handed_in.popleft()
                try:
                    value = await work
                except asyncio.CancelledError:
                    self._tell(done, cancelled())
                    raise
                except BaseException as error:  # noqa: BLE001  # told to who handed it in
                    value = error
                self._tell(done, value)
        finally:
            self._at_work -= 1
        if self._handed_in:  # since the last look, when this lane still seemed to come to it
            self._take()

    def _tell(self, done: Callable[[Any], None], value: Any) -> None:
        """Tell what has come of work: soon, or at once where nothing else is left to do."""
        self._finished.append((done, value))
        if not self._handed_in:
            self._tell_all()
        elif self._telling is None:
            self._telling = self.loop.call_later(_GATHER_S, self._tell_all)

    def _tell_all(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        while self._finished:
            done, value = self._finished.popleft()
            self.loop.call_soon(done, value)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def cancelled() -> Cancelled:
    """Return what is told to who waits for work that was broken off."""
    return Cancelled("stopped while waiting", code="job.cancelled")
