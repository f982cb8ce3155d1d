"""Hand: what stands on a worker of a cluster, opens works, and does blocks of them.

An error that the work raises travels back as a value, so that the cluster never takes it for a
failure of its own and tries again. Knows no cluster.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import StillroomError

__all__ = ["Hand", "Raised", "settle"]

_KEPT = 4
"""Works that stay open on one worker; the one that was used longest ago is closed first."""


@dataclass(frozen=True)
class Raised:
    """An error that the work raised, and where."""

    error: Exception
    trace: str


@dataclass
class _Opened:
    run: Callable[[Sequence[Any]], Sequence[Any]]
    turn: threading.Semaphore


class Hand:
    """Does blocks of works, as many at once as each work allows."""

    def __init__(self, threads: int, environment: Mapping[str, str]) -> None:
        """Begin with nothing opened.

        Args:
            threads: Of torch, as many as where the job runs: with another number the last bits of
                a sum may differ.
            environment: Variables that are set for this process.
        """
        self._threads = threads
        os.environ.update(environment)
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def ping(self) -> int:
        """Return the process's number."""
        return os.getpid()

    def run(self, key: str, fetch: Callable[[], bytes], block: bytes) -> bytes:
        """Do one block of the work of a key; return the pickled values, or ``Raised``.

        Args:
            key: The work's digest.
            fetch: Gives the pickled work, where it is not open yet.
            block: The pickled items.
        """
        try:
            opened = self._open(key, fetch)
            with opened.turn:
                return pickle.dumps(list(opened.run(pickle.loads(block))))  # noqa: S301  # ours
        except Exception as error:  # noqa: BLE001  # raised again where the job runs
            return pickle.dumps(_pack(error))

    def _open(self, key: str, fetch: Callable[[], bytes]) -> _Opened:
        with self._lock:
            if key not in self._opened:
                work = pickle.loads(fetch())  # noqa: S301  # pickled by the job that started us
                run = work.open()
                if "torch" in sys.modules:
                    sys.modules["torch"].set_num_threads(self._threads)
                self._opened[key] = _Opened(run, threading.Semaphore(work.concurrency))
                if len(self._opened) > _KEPT:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(key)
            return self._opened[key]


def settle(packed: bytes) -> list[Any]:
    """Return the values of a block, or raise what the work raised."""
    found = pickle.loads(packed)  # noqa: S301  # pickled by a hand of ours
    if isinstance(found, Raised):
        if not isinstance(found.error, StillroomError):
            found.error.add_note(f"on a worker:\n{found.trace}")
        raise found.error
    return list(found)


def _pack(error: Exception) -> Raised:
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # what was just dumped
    except Exception:  # noqa: BLE001  # an error of a library that cannot travel
        return Raised(RuntimeError(f"{type(error).__name__}: {error}"), trace)
    return Raised(error, trace)
