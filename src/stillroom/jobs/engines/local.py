"""The local engine: this process does the work, block by block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from stillroom.jobs.ahead import in_blocks
from stillroom.jobs.engines.work import Work, close_opened

__all__ = ["LocalEngine"]

T = TypeVar("T")
U = TypeVar("U")


class LocalEngine:
    """Does every block here, one after the other."""

    name = "local"
    is_remote = False
    num_workers = 1

    def __init__(self) -> None:
        """Begin with nothing opened."""
        self._opened: dict[Any, Callable[[Sequence[Any]], Sequence[Any]]] = {}
        self._lock = threading.Lock()

    def choose_block_size(self, default: int) -> int:
        """Return the size that fits the work."""
        return default

    def call(self, work: Work[T, U], block: Sequence[T]) -> list[U]:
        """Return one value for each item of a block."""
        with self._lock:
            if work not in self._opened:
                self._opened[work] = work.open()
            return list(self._opened[work](block))

    def stream(
        self,
        work: Work[T, U],
        items: Iterable[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order."""
        for block in in_blocks(items, block_size):
            pause()
            yield from self.call(work, block)

    def map(
        self,
        work: Work[T, U],
        items: Sequence[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order."""
        return self.stream(work, items, block_size=block_size, pause=pause)

    def close(self) -> None:
        """Close what was opened."""
        with self._lock:
            while self._opened:
                close_opened(self._opened.popitem()[1])
