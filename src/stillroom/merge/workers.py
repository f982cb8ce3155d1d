"""Workers: threads that work on several blocks at once, and give back in order.

numpy lets go of the interpreter while it computes, so threads are enough. How many is chosen by
what the first blocks took: as many as there are cores, but no more than keep the disk busy, for
beyond that they only wait for each other. BLAS is held to one thread of its own: its sums would
depend on how many there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import threadpoolctl

__all__ = ["Workers", "choose_threads"]

T = TypeVar("T")
_AHEAD = 2
_MOST = 16  # beyond that the digests, which one thread makes, set the pace
_SAMPLE_SECONDS = 0.02
_LEAST_WAIT = 1e-9
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, as glibc's malloc.h numbers them
_KEPT_BYTES = 64 << 20


class Workers:
    """A pool of threads; use as a context manager. One thread is no pool at all."""

    def __init__(self, count: int = 1) -> None:
        """Prepare ``count`` threads; 0 chooses by the cores and by what the first blocks take."""
        self.count = count
        self._cores = _count_cores() if count == 0 else count
        self._wall = self._busy = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._limits: threadpoolctl.threadpool_limits | None = None

    def __enter__(self) -> Workers:
        """Start the threads."""
        self._limits = threadpoolctl.threadpool_limits(1)
        _keep_freed_memory()
        self._start(self.count)
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
        begun = 0
        while begun < count and (self._pool is None or count < 2):
            yield self._try(work, begun) if self.count == 0 else work(begun)
            begun += 1
        if self._pool is None:
            return
        window: deque[Future[T]] = deque()
        while begun < count or window:
            while begun < count and len(window) < self.count + _AHEAD:
                window.append(self._pool.submit(work, begun))
                begun += 1
            yield window.popleft().result()

    def _try(self, work: Callable[[int], T], number: int) -> T:
        """Do a block here, and choose once the blocks so far say what one takes."""
        wall, busy = time.perf_counter(), time.thread_time()
        done = work(number)
        self._wall += time.perf_counter() - wall
        self._busy += time.thread_time() - busy
        if self._wall >= _SAMPLE_SECONDS:
            self._start(choose_threads(self._cores, self._wall, self._busy))
        return done

    def _start(self, count: int) -> None:
        self.count = count
        if count > 1:
            self._pool = ThreadPoolExecutor(count, "stillroom-merge")


def choose_threads(cores: int, wall: float, busy: float) -> int:
    """Return how many threads pay: those that keep busy what the blocks wait for.

    Args:
        cores: That this process may use.
        wall: Seconds that some blocks took on one thread.
        busy: Processor seconds of them; the rest was waiting, for the disk or for a core.
    """
    waited = max(wall - busy, _LEAST_WAIT)
    return max(1, min(cores, _MOST, round(wall / waited)))


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
