"""Interfaces of engines and worker tasks, and an ordered prefetching map."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

__all__ = [
    "Engine",
    "WorkerResources",
    "WorkerTask",
    "close_resources",
    "iter_batches",
    "map_prefetched",
]


T = TypeVar("T")


U = TypeVar("U")


T_contra = TypeVar("T_contra", contravariant=True)


U_co = TypeVar("U_co", covariant=True)


@dataclass(frozen=True)
class WorkerResources(Generic[T, U]):
    """What a work has opened and must give back: models, processes, files."""

    run: Callable[[Sequence[T]], Sequence[U]]
    release: tuple[Callable[[], None], ...]

    def __call__(self, block: Sequence[T]) -> Sequence[U]:
        """Return one value for each item."""
        return self.run(block)

    def close(self) -> None:
        """Give it back."""
        for release in self.release:
            release()


def close_resources(run: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    """Close what ``WorkerTask.open`` gave, where there is something to close."""
    if isinstance(run, WorkerResources):
        run.close()


class WorkerTask(Protocol[T_contra, U_co]):
    """One kind of work: small, picklable, and opened once on every worker.

    Equal works (by ``==`` and hash) are opened once.
    """

    @property
    def concurrency(self) -> int:
        """How many blocks one worker may have in hand at once; above 1 for what mostly waits."""

    def open(self) -> Callable[[Sequence[T_contra]], Sequence[U_co]]:
        """Open what it needs (models, files); return what makes one value of each item.

        Where that holds what must be given back, it is an ``WorkerResources``, which the engine
        closes.
        """


class Engine(Protocol):
    """Does work in blocks."""

    @property
    def name(self) -> str:
        """``local`` or ``ray``."""

    @property
    def is_remote(self) -> bool:
        """Whether work leaves this process."""

    @property
    def num_workers(self) -> int:
        """How many workers there are; 1 for this process alone."""

    def choose_block_size(self, default: int) -> int:
        """Return how many items a block holds: what the user said, or what fits the work."""

    def call(self, work: WorkerTask[T, U], block: Sequence[T]) -> list[U]:
        """Return one value for each item of a block; may be called from several threads.

        Raises:
            StillroomError: As the work does; ``engine.worker-lost`` where workers die of it.
        """

    def stream(
        self,
        work: WorkerTask[T, U],
        items: Iterable[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order, taking items only a little ahead.

        For work that may end early, or whose items are still being made.

        Args:
            work: What is done.
            items: Taken as they are needed.
            block_size: Items of one task, unless the user says otherwise.
            pause: Called on the caller's thread where it is safe to stop.
        """

    def map(
        self,
        work: WorkerTask[T, U],
        items: Sequence[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order; all items are known and all are done."""

    def close(self) -> None:
        """Give the workers back; closing twice does no harm."""


ItemT = TypeVar("ItemT")


ResultT = TypeVar("ResultT")


_POLL_S = 0.2


def map_prefetched(
    work: Callable[[ItemT], ResultT],
    items: Iterator[ItemT],
    *,
    workers: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield every item with what ``work`` made of it, in order, some of it made ahead on threads.

    At most twice as many items as workers are begun beyond the one that is waited for.
    """
    if workers <= 1:
        for item in items:
            pause()
            yield item, work(item)
        return
    begun: deque[tuple[ItemT, Future[ResultT]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stillroom-step")
    try:
        while True:
            for item in islice(items, 2 * workers - len(begun)):
                begun.append((item, pool.submit(work, item)))
            if not begun:
                return
            while not wait([begun[0][1]], _POLL_S).done:
                pause()
            pause()
            item, future = begun.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def iter_batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Yield the items in lists of ``size``, the last one shorter."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block
