"""Interfaces of engines (executors) and worker tasks, and an ordered prefetching map."""

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
    """Resources of an open task that must be closed: models, processes, files."""

    run: Callable[[Sequence[T]], Sequence[U]]
    release: tuple[Callable[[], None], ...]

    def __call__(self, block: Sequence[T]) -> Sequence[U]:
        """Return one value for each item."""
        return self.run(block)

    def close(self) -> None:
        """Release the resources."""
        for release in self.release:
            release()


def close_resources(run: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    """Close the result of ``WorkerTask.open`` if it can be closed."""
    if isinstance(run, WorkerResources):
        run.close()


class WorkerTask(Protocol[T_contra, U_co]):
    """One kind of work: small, picklable, and opened once on every worker.

    Equal tasks (by ``==`` and hash) are opened once.
    """

    @property
    def concurrency(self) -> int:
        """Blocks that one worker may process concurrently; above 1 for tasks that mostly wait."""

    def open(self) -> Callable[[Sequence[T_contra]], Sequence[U_co]]:
        """Open resources (models, files); return a function from items to values.

        If the resources must be released, return a ``WorkerResources``, which the engine closes.
        """


class Engine(Protocol):
    """Executes tasks in blocks."""

    @property
    def name(self) -> str:
        """``local`` or ``ray``."""

    @property
    def is_remote(self) -> bool:
        """Whether work runs outside this process."""

    @property
    def num_workers(self) -> int:
        """Number of workers; 1 for this process only."""

    def choose_block_size(self, default: int) -> int:
        """Return the number of items per block: the user's setting or ``default``."""

    def call(self, work: WorkerTask[T, U], block: Sequence[T]) -> list[U]:
        """Return one value for each item of a block; thread-safe.

        Raises:
            StillroomError: As raised by the task; ``engine.worker-lost`` if workers die of it.
        """

    def stream(
        self,
        work: WorkerTask[T, U],
        items: Iterable[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order, reading items only a little ahead.

        For work that may end early, or whose items are produced meanwhile.

        Args:
            work: The task.
            items: Items, read on demand.
            block_size: Items per block, unless set by the user.
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
        """Yield one value for each item, in order; all items are processed."""

    def close(self) -> None:
        """Release the workers; may be called twice."""


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
    """Yield every item with its result of ``work``, in order, prefetched on threads.

    At most twice as many items as workers are started beyond the current one.
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
    """Yield the items in lists of ``size``; the last one may be shorter."""
    remaining = iter(items)
    while block := list(islice(remaining, size)):
        yield block
