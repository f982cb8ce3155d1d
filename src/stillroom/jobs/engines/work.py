"""What an engine is given, and what it must do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Engine", "Opened", "Work", "close_opened"]

T = TypeVar("T")
U = TypeVar("U")
T_contra = TypeVar("T_contra", contravariant=True)
U_co = TypeVar("U_co", covariant=True)


@dataclass(frozen=True)
class Opened(Generic[T, U]):
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


def close_opened(run: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    """Close what ``Work.open`` gave, where there is something to close."""
    if isinstance(run, Opened):
        run.close()


class Work(Protocol[T_contra, U_co]):
    """One kind of work: small, picklable, and opened once on every worker.

    Equal works (by ``==`` and hash) are opened once.
    """

    @property
    def concurrency(self) -> int:
        """How many blocks one worker may have in hand at once; above 1 for what mostly waits."""

    def open(self) -> Callable[[Sequence[T_contra]], Sequence[U_co]]:
        """Open what it needs (models, files); return what makes one value of each item.

        Where that holds what must be given back, it is an ``Opened``, which the engine closes.
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

    def call(self, work: Work[T, U], block: Sequence[T]) -> list[U]:
        """Return one value for each item of a block; may be called from several threads.

        Raises:
            StillroomError: As the work does; ``engine.worker-lost`` where workers die of it.
        """

    def stream(
        self,
        work: Work[T, U],
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
        work: Work[T, U],
        items: Sequence[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order; all items are known and all are done."""

    def close(self) -> None:
        """Give the workers back; closing twice does no harm."""
