"""Worker of a cluster: runs blocks of tasks and returns values or errors.

An error of the task is returned as a value, so that the cluster does not treat it as a failure of
its own and retry. Independent of Ray.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stillroom.errors import StillroomError
from stillroom.jobs.engines.interfaces import close_resources

__all__ = ["RayWorker", "RemoteError", "select_environment", "unpack_results"]

_MAX_OPEN_TASKS = 4
"""Maximum open tasks per worker; the least recently used one is closed first."""
_PASSED_PREFIXES = ("HF_", "OMP_WAIT_POLICY", "STILLROOM_", "TOKENIZERS_")
_SECRETS = frozenset(
    ("KEY", "KEYS", "TOKEN", "TOKENS", "SECRET", "PASSWORD", "CREDENTIALS", "POSTGRES")
)
"""Words of a variable's name that mark a secret; a database address may hold a password."""


@dataclass(frozen=True)
class RemoteError:
    """An error raised by the task, with its traceback."""

    error: Exception
    trace: str


@dataclass
class _OpenTask:
    """An open task: its number of blocks in progress, and whether to close it after them."""

    run: Callable[[Sequence[Any]], Sequence[Any]]
    turn: threading.Semaphore
    held: int = 0
    is_leaving: bool = False


class RayWorker:
    """Runs blocks of tasks, with each task's concurrency."""

    def __init__(self, threads: int, environment: Mapping[str, str]) -> None:
        """Create without open tasks.

        Args:
            threads: Threads of torch, as in the job's process: another number may change the last
                bits of a sum.
            environment: Environment variables to set in this process.
        """
        self._threads = threads
        os.environ.update(environment)
        self._opened: OrderedDict[str, _OpenTask] = OrderedDict()
        self._lock = threading.Lock()

    def ping(self) -> int:
        """Return the process id."""
        return os.getpid()

    def run(self, key: str, fetch: Callable[[], bytes], block: bytes) -> bytes:
        """Run one block of a task; return the pickled values, or ``RemoteError``."""
        try:
            with self._opened_for(key, fetch) as opened, opened.turn:
                return pickle.dumps(list(opened.run(pickle.loads(block))))  # noqa: S301  # ours
        except Exception as error:  # noqa: BLE001  # raised again where the job runs
            return pickle.dumps(_pack_error(error))

    @contextmanager
    def _opened_for(self, key: str, fetch: Callable[[], bytes]) -> Iterator[_OpenTask]:
        """Yield an open task; if it was evicted meanwhile, close it after its last block."""
        with self._lock:
            opened = self._open(key, fetch)
            opened.held += 1
        try:
            yield opened
        finally:
            with self._lock:
                opened.held -= 1
                if opened.is_leaving and not opened.held:
                    close_resources(opened.run)

    def _open(self, key: str, fetch: Callable[[], bytes]) -> _OpenTask:
        if key not in self._opened:
            work = pickle.loads(fetch())  # noqa: S301  # pickled by the job that started us
            run = work.open()
            if self._threads and "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)
            self._opened[key] = _OpenTask(run, threading.Semaphore(work.concurrency))
            if len(self._opened) > _MAX_OPEN_TASKS:
                oldest = self._opened.popitem(last=False)[1]
                oldest.is_leaving = True
                if not oldest.held:
                    close_resources(oldest.run)
        self._opened.move_to_end(key)
        return self._opened[key]


def select_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables for workers: locations and settings of models.

    Variables whose names contain a word for a secret are excluded.
    """
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_PASSED_PREFIXES) and _SECRETS.isdisjoint(name.upper().split("_"))
    }


def unpack_results(packed: bytes) -> list[Any]:
    """Return the values of a block, or raise the task's error."""
    results = pickle.loads(packed)  # noqa: S301  # pickled by a hand of ours
    if isinstance(results, RemoteError):
        if not isinstance(results.error, StillroomError):
            results.error.add_note(f"on a worker:\n{results.trace}")
        raise results.error
    return list(results)


def _pack_error(error: Exception) -> RemoteError:
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # what was just dumped
    except Exception:  # noqa: BLE001  # an error of a library that cannot travel
        return RemoteError(RuntimeError(f"{type(error).__name__}: {error}"), trace)
    return RemoteError(error, trace)
