"""Units asked about side by side, given back in order, each kept as soon as it is done.

There are some more units at work than requests at once, so that one whose answer is read leaves no
connection idle. At most twice as many are begun beyond the one that is waited for: memory does not
grow with their number, and a kill or a reached target wastes no more than those.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from stillroom.errors import BackendError
from stillroom.synth.asking import LOST, REFUSED
from stillroom.synth.method import Draft, Seed, Writer
from stillroom.synth.stepping import Stepping

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Shelf", "is_lost", "stream_units"]

_AHEAD = 2
_SPARE = 4
"""One unit more for so many: while some read an answer, others have a request ready."""
_LOOK_S = 0.2
_GATHER_S = 0.005
"""So long others may finish beside a unit that is waited for: being woken for each costs more than
taking it, and takes the interpreter from those who ask."""
_REFUSALS = 20
_LOST = 10


class Shelf(Protocol):
    """Where finished units are kept: a journal, or a dict that forgets."""

    def get(self, key: str, default: object = None) -> object:
        """Return a unit's value, or the default."""

    def put(self, key: str, value: object) -> None:
        """Keep a unit's value."""


def stream_units(
    seeds: Iterable[Seed],
    writer: Writer,
    model: TextModel,
    shelf: Shelf,
    *,
    workers: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[Draft]:
    """Yield the draft of every unit in order; finished ones come from the shelf.

    Args:
        seeds: The units, in order; taken as they are needed.
        writer: How the teacher is asked; called from several threads, a unit at a time.
        model: A teacher that may be asked from several threads.
        shelf: Where finished units are kept, whatever their order.
        workers: How many units are asked about at once.
        pause: Called on the caller's thread several times a second, and where it is safe to stop.

    Raises:
        BackendError: If the teacher fails, or refuses the first many units one after another.
    """
    stream = _Stream(shelf)
    remaining = iter(seeds)
    begun: deque[Future[Draft | None]] = deque()
    units = workers + -(-workers // _SPARE)
    crew = Stepping(writer, model, stream, units=units)

    def look() -> None:
        crew.relieve()
        pause()

    try:
        while True:
            begun.extend(crew.add(seed) for seed in islice(remaining, _AHEAD * units - len(begun)))
            if not begun:
                return
            found = _await(begun.popleft(), look)
            pause()
            if found is not None:
                stream.watch(found)
                yield found
    finally:
        crew.close()


def is_lost(draft: Draft) -> bool:
    """Return whether a unit is not done, because the server did not answer all of it."""
    return any(failure.reason == LOST for failure in draft.failures)


def _await(unit: Future[Draft | None], pause: Callable[[], None]) -> Draft | None:
    """Return a unit's draft when it is there, pausing several times a second until then."""
    if not unit.done():
        time.sleep(_GATHER_S)
    while True:
        try:
            return unit.result(_LOOK_S)
        except TimeoutError:
            if unit.done():  # just after the wait for it gave up, or by an error of its own
                return unit.result()
            pause()


class _Stream:
    """What the units share."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._lock = threading.Lock()
        self._refused = self._records = self._lost = 0

    def known(self, seed: Seed) -> Draft | None:
        """Return the unit's draft from the shelf."""
        with self._lock:
            known = self.shelf.get(seed.key)
        return Draft.from_json(known) if known is not None else None  # type: ignore[arg-type]

    def keep(self, made: Draft) -> Draft:
        """Put a draft on the shelf, unless it is lost; return it as a resume will read it."""
        if is_lost(made):
            return made
        with self._lock:
            self.shelf.put(made.key, made.to_json())
            kept = self.shelf.get(made.key)
        return Draft.from_json(kept)  # type: ignore[arg-type]  # put above

    def watch(self, found: Draft) -> None:
        """Count refusals; a server that takes nothing is not asked for every unit.

        Raises:
            BackendError: If it refused the first many units and gave no record, or has answered
                none of the last ten.
        """
        lost = [failure.text for failure in found.failures if failure.reason == LOST]
        self._lost = self._lost + 1 if lost else 0
        if self._lost >= _LOST:
            raise BackendError(
                f"{self._lost} units in a row had no answer: {lost[-1]:.300}",
                code="backend.unavailable",
                expected="a server that answers",
                next="run the same command again with --resume when it does",
            )
        said = [failure.text for failure in found.failures if failure.reason == REFUSED]
        self._records += len(found.records)
        self._refused += bool(said)
        if not self._records and self._refused >= _REFUSALS:
            raise BackendError(
                f"the first {self._refused} units were all refused: {said[-1]:.300}"
                if said
                else f"{self._refused} of the first units were refused",
                code="synth.refused",
                expected="a server that takes what the recipe asks",
                next="change the recipe as the server says; it was not asked further",
            )
