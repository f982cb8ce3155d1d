"""Workers: threads that work on several blocks at once, and give back in order.

numpy lets go of the interpreter while it computes, so threads are enough; but handing it over costs
about as much as two threads gain where blocks are cheap, so one is the default, and more are for
methods that sort (DELLA). BLAS is held to one
thread of its own: its sums would depend on how many there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import threadpoolctl

__all__ = ["Workers"]

T = TypeVar("T")
_AHEAD = 2
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, as glibc's malloc.h numbers them
_KEPT_BYTES = 64 << 20


class Workers:
    """A pool of threads; use as a context manager. One thread is no pool at all."""

    def __init__(self, count: int = 1) -> None:
        """Prepare ``count`` threads."""
        self.count = count
        self._pool: ThreadPoolExecutor | None = None
        self._limits: threadpoolctl.threadpool_limits | None = None

    def __enter__(self) -> Workers:
        """Start the threads."""
        self._limits = threadpoolctl.threadpool_limits(1)
        _keep_freed_memory()
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "stillroom-merge")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads; what has not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._limits is not None:
            self._limits.restore_original_limits()

    def map(self, work: Callable[[int], T], count: int) -> Iterator[T]:
        """Yield ``work(0)`` to ``work(count - 1)`` in order, a few of them ahead of the reader."""
        if self._pool is None or count < 2:
            for number in range(count):
                yield work(number)
            return
        window: deque[Future[T]] = deque()
        begun = 0
        while begun < count or window:
            while begun < count and len(window) < self.count + _AHEAD:
                window.append(self._pool.submit(work, begun))
                begun += 1
            yield window.popleft().result()


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks, not to give each back and have the kernel zero it anew.

    Blocks come and go by the thousand, and their sizes lie just above where glibc begins to map
    memory; that took up to half of the processor time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
