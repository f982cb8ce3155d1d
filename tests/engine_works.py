"""Works for tests of engines, where workers in other processes can import them."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs.engines import LocalEngine
from stillroom.jobs.engines.hand import Hand, settle


@dataclass(frozen=True)
class Squares:
    """Squares numbers and notes in a file who did which; one number may be refused."""

    notes: Path
    seconds: float = 0.0
    refused: int = -1
    concurrency: int = 1

    def open(self) -> Callable[[Sequence[int]], list[int]]:
        with self.notes.open("a") as file:
            file.write(f"open {os.getpid()}\n")

        def square(block: Sequence[int]) -> list[int]:
            time.sleep(self.seconds * len(block))
            if self.refused in block:
                raise DataError(f"{self.refused} is refused", code="data.refused")
            with self.notes.open("a") as file:
                file.write("".join(f"{number} {os.getpid()}\n" for number in block))
            return [number * number for number in block]

        return square

    def done(self) -> list[tuple[int, int]]:
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return [(int(number), int(who)) for number, who in lines if number != "open"]

    def opened(self) -> int:
        return self.notes.read_text().count("open ")


class PicklingEngine(LocalEngine):
    """An engine without a cluster that treats works and items as a cluster does: all is copied."""

    name = "pickling"
    is_remote = True
    num_workers = 3

    def __init__(self) -> None:
        super().__init__()
        self.hand = Hand(1, {})
        self.calls: list[tuple[str, int]] = []
        self._noting = threading.Lock()

    def call(self, work: Any, block: Sequence[Any]) -> list[Any]:
        packed = pickle.dumps(work)
        with self._noting:
            self.calls.append((type(work).__name__, len(block)))
        key = hashlib.sha256(packed).hexdigest()
        return settle(self.hand.run(key, lambda: packed, pickle.dumps(list(block))))

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
