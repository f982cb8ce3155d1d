"""What an engine is given, and what it must do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

__all__ = ["Engine", "Work"]

T = TypeVar("T")
U = TypeVar("U")
T_contra = TypeVar("T_contra", contravariant=True)
U_co = TypeVar("U_co", covariant=True)


class Work(Protocol[T_contra, U_co]):
    """One kind of work: small, picklable, and opened once on every worker.

    Equal works (by ``==`` and hash) are opened once.
    """

    @property
    def concurrency(self) -> int:
        """How many blocks one worker may have in hand at once; above 1 for what mostly waits."""

    def open(self) -> Callable[[Sequence[T_contra]], Sequence[U_co]]:
        """Open what it needs (models, files); return what makes one value of each item."""


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
