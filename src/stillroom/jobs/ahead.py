"""Work that is begun ahead of the place where its results are taken, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

__all__ = ["in_blocks", "map_ahead"]

T = TypeVar("T")
U = TypeVar("U")
_LOOK_S = 0.2


def map_ahead(
    work: Callable[[T], U],
    items: Iterator[T],
    *,
    workers: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, U]]:
    """Yield every item with what ``work`` made of it, in order, some of it made ahead on threads.

    At most twice as many items as workers are begun beyond the one that is waited for.
    """
    if workers <= 1:
        for item in items:
            pause()
            yield item, work(item)
        return
    begun: deque[tuple[T, Future[U]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stillroom-step")
    try:
        while True:
            for item in islice(items, 2 * workers - len(begun)):
                begun.append((item, pool.submit(work, item)))
            if not begun:
                return
            while not wait([begun[0][1]], _LOOK_S).done:
                pause()
            pause()
            item, future = begun.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``, the last one shorter."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block
