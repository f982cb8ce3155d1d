"""An event loop on a thread of its own, and how other threads have it work for them.

Who waits for an answer keeps a thread busy with waiting; waking as many threads as there are
requests costs more processor time than the requests do. So work can also be handed in with a
function that takes what comes of it, and nobody waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from stillroom.errors import Cancelled

__all__ = ["LoopThread", "cancelled"]

T = TypeVar("T")
_LOOK_S = 0.2


class LoopThread:
    """Runs coroutines for threads that are not its own."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name=name)
        self.thread.start()
        self._handed_in: deque[tuple[Coroutine[Any, Any, Any], Callable[[Any], None]]] = deque()
        self._is_woken = False
        self._running: set[asyncio.Task[Any]] = set()  # which the loop itself forgets

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
        if not self._is_woken:  # else all that lies there is taken when it wakes
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._take)

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
        while self._handed_in:
            work, done = self._handed_in.popleft()
            work.close()
            done(cancelled())

    def _take(self) -> None:
        self._is_woken = False  # before looking: what comes after the last look wakes it again
        while self._handed_in:
            work, done = self._handed_in.popleft()
            task = self.loop.create_task(work)
            self._running.add(task)
            task.add_done_callback(partial(self._tell, done))

    def _tell(self, done: Callable[[Any], None], task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled():
            done(cancelled())
        else:
            error = task.exception()
            done(task.result() if error is None else error)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def cancelled() -> Cancelled:
    """Return what is told to who waits for work that was broken off."""
    return Cancelled("stopped while waiting", code="job.cancelled")
