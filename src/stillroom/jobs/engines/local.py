"""Local engine, selection of the engine from a recipe, and processes of this machine."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.jobs.engines.interfaces import Engine, WorkerTask, close_resources, iter_batches

if TYPE_CHECKING:
    from stillroom.recipes.settings import EngineChoice

__all__ = [
    "LocalEngine",
    "open_engine",
    "open_processes",
    "require_engine",
]

T = TypeVar("T")
U = TypeVar("U")


class LocalEngine:
    """Processes every block in this process, one after the other."""

    name = "local"
    is_remote = False
    num_workers = 1

    def __init__(self) -> None:
        self._opened: dict[Any, Callable[[Sequence[Any]], Sequence[Any]]] = {}
        self._lock = threading.Lock()

    def choose_block_size(self, default: int) -> int:
        """Return ``default``."""
        return default

    def call(self, work: WorkerTask[T, U], block: Sequence[T]) -> list[U]:
        """Return one value for each item of a block."""
        with self._lock:
            if work not in self._opened:
                self._opened[work] = work.open()
            return list(self._opened[work](block))

    def stream(
        self,
        work: WorkerTask[T, U],
        items: Iterable[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order."""
        for block in iter_batches(items, block_size):
            pause()
            yield from self.call(work, block)

    def map(
        self,
        work: WorkerTask[T, U],
        items: Sequence[T],
        *,
        block_size: int = 1,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """Yield one value for each item, in order."""
        return self.stream(work, items, block_size=block_size, pause=pause)

    def close(self) -> None:
        """Close open tasks."""
        with self._lock:
            while self._opened:
                close_resources(self._opened.popitem()[1])


def require_engine(choice: EngineChoice | None) -> None:
    """Check that the selected engine is installed, before a job's folder is created.

    Raises:
        MissingExtraError: If Ray is chosen and not installed.
    """
    if choice is not None and choice.ray is not None:
        with MissingExtraError.guard("ray", "ray", "engine: ray"):
            import ray  # noqa: F401  # only whether it is here


@contextmanager
def open_engine(
    choice: EngineChoice | None, tell: Callable[[str], None] = lambda line: None
) -> Iterator[Engine]:
    """Open the selected engine for the body of the ``with`` statement.

    Args:
        choice: The recipe's setting; None is this process.
        tell: Called with messages about lost workers.

    Raises:
        MissingExtraError: If Ray is chosen and not installed.
        ResourceError: If the cluster cannot be reached.
    """
    engine: Engine = LocalEngine()
    require_engine(choice)
    if choice is not None and choice.ray is not None:
        from stillroom.jobs.engines.ray import RayEngine

        engine = RayEngine(choice.ray, tell)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def open_processes(
    count: int, setting: str, start: Callable[..., None] | None = None, arguments: Any = ()
) -> Iterator[ProcessPoolExecutor]:
    """Yield processes of this machine; on leaving, work that has not begun is dropped.

    Args:
        count: Number of processes.
        setting: The setting that chose it, for the error.
        start: Called once in each process, with the arguments.
        arguments: Arguments of ``start``.

    Raises:
        ResourceError: If one of them is killed, as the system does if memory runs out.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start, arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise ResourceError(
            f"one of {count} worker processes ended before its work was done",
            code="engine.worker-lost",
            expected="memory for all of them",
            next=f"lower {setting}, then run again with --resume",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
