"""An event loop on a thread of its own, and how other threads have it work for them.

Who waits for an answer keeps a thread busy with waiting; waking as many threads as there are
requests costs more processor time than the requests do. So work can also be handed in with a
function that takes what comes of it, and nobody waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from stillroom.errors import Cancelled

__all__ = ["LoopThread"]

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
        self._running: set[asyncio.Task[None]] = set()  # which the loop itself forgets

    @property
    def is_closed(self) -> bool:
        """Whether it can take no more."""
        return self.loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, T], is_stopped: Callable[[], bool] | None = None) -> T:
        """Return what a coroutine returns, or raise what it raises.

        Raises:
            Cancelled: If ``is_stopped`` became true.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        while True:
            try:
                return future.result(_LOOK_S)
            except concurrent.futures.TimeoutError:
                if future.done():  # just after the wait for it gave up, or by its own error
                    return future.result()
                if is_stopped is not None and is_stopped():
                    future.cancel()
                    raise Cancelled("stopped while waiting", code="job.cancelled") from None

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

    def _take(self) -> None:
        self._is_woken = False  # before looking: what comes after the last look wakes it again
        while self._handed_in:
            task = self.loop.create_task(_carry(*self._handed_in.popleft()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)


async def _carry(work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None]) -> None:
    try:
        value: T | BaseException = await work
    except BaseException as error:  # noqa: BLE001  # raised again by who takes it
        value = error
    done(value)
