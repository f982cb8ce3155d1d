"""Works for tests of engines, where workers in other processes can import them."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import chdir, nullcontext
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs.engines import LocalEngine, WorkerResources
from stillroom.jobs.engines.interfaces import close_resources
from stillroom.jobs.engines.worker import RayWorker, unpack_results


@dataclass(frozen=True)
class Squares:
    """Squares numbers and notes in a file who did which, and when it is closed.

    One number may be refused.
    """

    notes: Path
    seconds: float = 0.0
    refused: int = -1
    concurrency: int = 1

    def open(self) -> WorkerResources[int, int]:
        with self.notes.open("a") as file:
            file.write(f"open {os.getpid()}\n")

        def square(block: Sequence[int]) -> list[int]:
            time.sleep(self.seconds * len(block))
            if self.refused in block:
                raise DataError(f"{self.refused} is refused", code="data.refused")
            with self.notes.open("a") as file:
                file.write("".join(f"{number} {os.getpid()}\n" for number in block))
            return [number * number for number in block]

        def close() -> None:
            with self.notes.open("a") as file:
                file.write(f"close {os.getpid()}\n")

        return WorkerResources(square, (close,))

    def done(self) -> list[tuple[int, int]]:
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return [(int(number), int(who)) for number, who in lines if number.isdecimal()]

    def opened(self) -> int:
        return self.notes.read_text().count("open ")


class PicklingEngine(LocalEngine):
    """An engine without a cluster that treats works and items as a cluster does: all is copied.

    With ``elsewhere`` its work is done in that folder, as workers start in folders of their own;
    ``sent`` is all that left the process.
    """

    name = "pickling"
    is_remote = True
    num_workers = 3

    def __init__(self, elsewhere: Path | None = None) -> None:
        super().__init__()
        self.hand = RayWorker(1, {})
        self.elsewhere = elsewhere
        self.sent = bytearray()
        self.calls: list[tuple[str, int]] = []
        self._noting = threading.Lock()

    def call(self, work: Any, block: Sequence[Any]) -> list[Any]:
        packed = pickle.dumps(work)
        with self._noting:
            self.calls.append((type(work).__name__, len(block)))
        key = hashlib.sha256(packed).hexdigest()
        items = pickle.dumps(list(block))
        self.sent += packed + items
        with chdir(self.elsewhere) if self.elsewhere else nullcontext():
            # In a context of its own, as a worker's process has one.
            return unpack_results(Context().run(self.hand.run, key, lambda: packed, items))

    def close(self) -> None:
        super().close()
        for opened in self.hand._opened.values():  # a worker's process would end
            close_resources(opened.run)

    def count(self) -> dict[str, int]:
        """How many items each kind of work was given."""
        told: dict[str, int] = {}
        for name, size in self.calls:
            told[name] = told.get(name, 0) + size
        return told


@dataclass(frozen=True)
class Fatal:
    """Ends the process that does it."""

    concurrency: int = 1

    def open(self) -> Callable[[Sequence[int]], list[int]]:
        def die(block: Sequence[int]) -> list[int]:
            os._exit(1)

        return die
